"""Captions for photos that have none: sentences that people wrote about other photos, chosen by a trained captioner.

    sentences = Sentences(lines, captioner.vocabulary)
    pairs = dict(pair_photos(captioner, loader, sentences))     # image id -> [Pair, ...], the best first

The captioner writes a caption of a photo; of the sentences that share most n-grams with it those stay that are likely
under the captioner. Its own captions are poor in words, those of people are not. What is right about a photo, the
captioner must know already: "a kitchen with a kitchen" finds "a kitchen with a stove and a microwave". Training on such
pairs is self-training with sentences, a kind of unpaired captioning (Feng et al. 2019 have another, by adversarial
training).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from captioning.errors import UserError
from captioning.text.nearest import NearestSentences, without_marks
from captioning.text.tokens import UNK
from model import Captioner, caption_loader
from vocabulary import Vocabulary

FEWEST, MOST = 7, 16  # tokens of a sentence
CANDIDATES = 16  # sentences near the captioner's caption, of which it reads each
SIMILARITY = 0.7  # what a similarity of 1 counts beside a mean log-probability
LEAST = -1.6  # mean log-probability: less likely sentences are the best one of a photo or none


@dataclass(frozen=True)
class Pair:
    """A sentence for a photo: its mean log-probability there, its similarity to the captioner's own caption."""

    sentence: str
    log_prob: float
    similarity: float

    @property
    def score(self) -> float:
        return self.log_prob + SIMILARITY * self.similarity


class Sentences:
    """Those of `lines` that have FEWEST to MOST tokens, all of them in the vocabulary; each once, whatever its marks.

    Raises UserError where none is left.
    """

    def __init__(self, lines: Iterable[str], vocabulary: Vocabulary):
        self.texts: list[str] = []
        self.ids: list[list[int]] = []
        known = set()
        for text in map(str.strip, lines):
            ids = vocabulary.encode(text)
            words = tuple(without_marks(vocabulary.tokens(ids)))
            if UNK not in ids and FEWEST <= len(ids) <= MOST and words not in known:
                known.add(words)
                self.texts.append(text)
                self.ids.append(ids)
        if not self.texts:
            raise UserError(f"no sentence has {FEWEST} to {MOST} words, all of which the model knows")
        self.nearest = NearestSentences([vocabulary.tokens(ids) for ids in self.ids])


def pair_photos(
    captioner: Captioner, loader: Iterable, sentences: Sentences, per_image: int = 3
) -> Iterator[tuple[object, list[Pair]]]:
    """(image id, its best sentences) of each image of a loader: `per_image` at most, none where nothing is near."""
    for batch, memory, captions in caption_loader(captioner, loader, captioner.default_search()):
        found = [sentences.nearest.of(captioner.words(best[0])[:-1], CANDIDATES) for best in captions]
        rows = [row for row, near in enumerate(found) for _ in near]
        numbers = [number for near in found for number, _ in near]
        read = [sentences.ids[number] for number in numbers]
        log_probs = iter(captioner.mean_log_probs(memory, read, rows) if read else ())
        for item, near in zip(batch.items, found):
            pairs = [Pair(sentences.texts[n], next(log_probs), similarity) for n, similarity in near]
            pairs.sort(key=lambda pair: -pair.score)
            yield item.image_id, [pair for n, pair in enumerate(pairs[:per_image]) if n == 0 or pair.log_prob > LEAST]


def as_coco(names: dict[object, str], pairs: dict[object, list[Pair]], share: float) -> dict:
    """Annotations in COCO's format of the `share` of the photos whose best sentences have the highest scores.

    names: image id -> name of the file; pairs: image id -> its sentences. Photos without sentences are left out.
    """
    ranked = sorted((key for key in pairs if pairs[key]), key=lambda key: -pairs[key][0].score)
    images, annotations = [], []
    for number, key in enumerate(ranked[: round(share * len(pairs))]):
        images.append({"id": number, "file_name": names[key]})
        for pair in pairs[key]:
            annotations.append({"id": len(annotations), "image_id": number, "caption": pair.sentence})
    return {"images": images, "annotations": annotations}
