"""Statistics that papers report beside the scores: do captions differ, are they new, how many words do they use?

Tokens are those that scores compare: captioning.scoring.metrics.tokenize gives them.
"""

from collections.abc import Iterable, Sequence

from pycocoevalcap.bleu.bleu_scorer import BleuScorer


def caption_statistics(captions: Iterable[str]) -> dict[str, float]:
    """Three figures that show a model which writes the same caption for every image, or short or unknown words.

    `distinct`: share of captions that differ; `mean_length`: in words; `unk_share`: share of words that are <unk>.
    All are 0 where there are no captions.
    """
    sentences = [caption.split() for caption in captions]
    words = sum(map(len, sentences))
    unknown = sum(word.strip(".,").lower() == "<unk>" for sentence in sentences for word in sentence)
    return {
        "distinct": len(set(map(tuple, sentences))) / max(1, len(sentences)),
        "mean_length": words / max(1, len(sentences)),
        "unk_share": unknown / max(1, words),
    }


def vocabulary_used(captions: Iterable[str]) -> int:
    """How many different tokens there are in `captions`, each its tokens joined by blanks (Shetty et al. 2017)."""
    return len({token for caption in captions for token in caption.split()})


def novel_share(captions: Sequence[str], training: Iterable[str]) -> float:
    """The share of captions that are none of the `training` captions, token for token (Shetty et al. 2017).

    Each caption is its tokens joined by blanks.
    """
    known = set(training)
    return sum(caption not in known for caption in captions) / max(1, len(captions))


def diversity(captions: Iterable[Sequence[str]]) -> dict[str, float]:
    """How much several captions of the same image differ; `captions`: those of each image, tokens joined by blanks.

    `div_1`, `div_2`: the different words (pairs of words) of an image's captions divided by its number of words, mean
    over images (Shetty et al. 2017, Vijayakumar et al. 2018). `mbleu_4`: BLEU-4 of a caption against the others of its
    image (Shetty et al. 2017, Wang and Chan 2019). BLEU-4 of a single caption is often 0, so the first captions of all
    images are scored as one set, then the second ones and so on, and the mean of these is taken. More diverse captions
    have larger div and smaller mBLEU. Images with one caption are left out;
    where all are, there are no figures.
    """
    several = [[caption.split() for caption in group] for group in captions if len(group) > 1]
    if not several:
        return {}
    found = {f"div_{n}": sum(_distinct_ngrams(group, n) for group in several) / len(several) for n in (1, 2)}
    return found | {"mbleu_4": _mutual_bleu([[" ".join(words) for words in group] for group in several])}


def _distinct_ngrams(captions: list[list[str]], n: int) -> float:
    """Different n-grams of an image's captions for each of their words; 0 where there are no words."""
    ngrams = {tuple(words[i : i + n]) for words in captions for i in range(len(words) - n + 1)}
    return len(ngrams) / max(1, sum(map(len, captions)))


def _mutual_bleu(several: list[list[str]]) -> float:
    values = []
    for rank in range(max(map(len, several))):
        scorer = BleuScorer(n=4)
        for group in several:
            if rank < len(group):
                scorer += (group[rank], group[:rank] + group[rank + 1 :])
        values.append(scorer.compute_score(option="closest")[0][3])
    return sum(values) / len(values)
