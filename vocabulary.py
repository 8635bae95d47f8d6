"""The vocabulary: words and their ids, counting the words of captions, vocabulary files.

    vocabulary = build_vocabulary(captions, threshold=4)
    ids = vocabulary.encode("A dog runs.")         # no <start>, no <end>
    vocabulary.sentence(ids)                       # "A dog runs."
    vocabulary.save("vocab.json")                  # or .pkl, .txt
    vocabulary = Vocabulary.load("vocab.json")

Ids 0..3 are `<pad> <start> <end> <unk>`; then come the words in order of their first appearance.
"""

import hashlib
import json
import pickle
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from captioning.deepcaption.vocabularies import DeepCaptionVocabulary, from_deepcaption, read_pickle
from captioning.errors import UserError
from captioning.files import atomic_write, known_ending, read_bytes, read_json, read_lines
from captioning.processes import in_chunks
from captioning.text.cleaning import clean_text
from captioning.text.detokenizers import as_sentence, detokenize
from captioning.text.tokenizers import load_treebank, tokenize, tokenize_function
from captioning.text.tokens import PAD, SPECIALS, START, UNK, upto_end

EXTENSIONS = (".json", ".pkl", ".txt")
FORMAT = 1
SAVED = ("tokenizer", "lowercase", "words", "counts", "threshold", "dataset")
MOST_UNKNOWN = 0.5  # of the words of captions: with more a model learns to write <unk>
KINDS = {
    "counts": (list, "a list"),
    "lowercase": (bool, "true or false"),
    "threshold": (int, "a whole number"),
    "dataset": (str, "a text"),
}
CHUNK = 10_000  # captions sent to a worker at a time
PARALLEL_FROM = 100_000  # fewer captions than this are counted sooner than a pool starts


def count_words(
    captions: Iterable[str],
    tokenizer: str = "treebank",
    lowercase: bool = True,
    num_workers: int = 1,
    bar=None,
) -> Counter:
    """Word -> occurrences over `captions`, in order of first appearance, whatever `num_workers` (processes) is.

    bar: a captioning.progress.Bar of the captions.
    """
    count = partial(_count, tokenizer=tokenizer, lowercase=lowercase)
    counter: Counter = Counter()
    for number, part in _by_chunks(count, captions, tokenizer, num_workers):
        counter.update(part)
        if bar is not None:
            bar.update(number)
    return counter


def _by_chunks(work, captions: Iterable[str], tokenizer: str, num_workers: int) -> Iterator[tuple[int, object]]:
    """How many captions each chunk of them has, and work(chunk); by several processes where there are many captions."""
    captions = iter(captions)
    first = list(islice(captions, PARALLEL_FROM)) if num_workers > 1 else []
    if len(first) < PARALLEL_FROM:
        num_workers = 1
    elif tokenizer == "treebank":
        load_treebank()  # once here instead of once in each forked worker
    return in_chunks(work, chain(first, captions), num_workers, CHUNK)


def _count(captions: Iterable[str], tokenizer: str, lowercase: bool) -> Counter:
    split = tokenize_function(tokenizer)
    counter: Counter = Counter()
    for caption in captions:
        counter.update(split(caption.lower() if lowercase else caption))
    return counter


def build_vocabulary(
    captions: Iterable[str], threshold: int, tokenizer: str = "treebank", lowercase: bool = True, dataset: str = ""
) -> "Vocabulary":
    """The words that occur at least `threshold` times in `captions`, in order of first appearance.

    `dataset` is the name to remember. Raises UserError for an unknown tokenizer.
    """
    return vocabulary_from_counts(count_words(captions, tokenizer, lowercase), threshold, tokenizer, lowercase, dataset)


def vocabulary_from_counts(
    counter: Counter, threshold: int, tokenizer: str = "treebank", lowercase: bool = True, dataset: str = ""
) -> "Vocabulary":
    """build_vocabulary() from the result of count_words(). The count of `<unk>` is that of all words left out."""
    kept = {word: count for word, count in counter.items() if count >= threshold and word not in SPECIALS}
    left_out = sum(counter.values()) - sum(kept.values())
    counts = [0, 0, 0, left_out, *kept.values()]
    return Vocabulary([*SPECIALS, *kept], counts, tokenizer, lowercase, threshold, dataset)


def require_known_words(counter: Counter, vocabulary: "Vocabulary", dataset: str) -> None:
    """Raises UserError, which proposes a --vocab_threshold, where most words of the captions are not in `vocabulary`.

    counter: the words of the captions, as count_words() gives them; dataset: their name.
    """
    total = sum(counter.values())
    share = 1 - sum(count for word, count in counter.items() if word in vocabulary) / max(total, 1)
    if total and share <= MOST_UNKNOWN:
        return
    if not total:
        raise UserError(f"--dataset {dataset}: its captions have no words")
    option, limit = f"--vocab_threshold {vocabulary.threshold}", highest_threshold(counter)
    if len(vocabulary) == len(SPECIALS):
        raise UserError(f"{option}: no word of {dataset} occurs that often: try --vocab_threshold {limit}")
    raise UserError(f"{option}: {share:.0%} of the words of {dataset} would be <unk>: try --vocab_threshold {limit}")


def highest_threshold(counter: Counter, unknown: float = 0.1) -> int:
    """The highest threshold at which a share of no more than `unknown` of the words of `counter` is left out."""
    left_out, total = 0, sum(counter.values())
    for threshold, words in sorted(Counter(counter.values()).items()):
        left_out += threshold * words
        if left_out > unknown * total:
            return threshold  # words as frequent as this are kept
    return 1


def auto_name(captions: Iterable[str], threshold: int, tokenizer: str = "treebank", lowercase: bool = True) -> str:
    """The file name of the vocabulary that build_vocabulary() makes: other captions or settings give another name."""
    digest = hashlib.sha256(f"vocabulary {FORMAT} {lowercase}\n".encode())
    for caption in captions:
        digest.update(caption.encode("utf-8", "surrogatepass") + b"\0")
    return f"{tokenizer}-{threshold}-{digest.hexdigest()[:16]}.json"


@dataclass(eq=False, repr=False)
class Vocabulary:
    """Words and ids, with the tokenizer that they belong to.

    words[i]: the word of id i; counts[i]: how often it occurs in the training captions, where known; threshold: how
    often a word had to occur; dataset: the name of the training set.
    Raises UserError where `words` do not start with the four special tokens or a word stands there twice, and where
    there are not as many `counts` as words.
    """

    words: list[str]
    counts: list[int] | None = None
    tokenizer: str = "treebank"
    lowercase: bool = True
    threshold: int = 0
    dataset: str = ""

    def __post_init__(self):
        tokenize_function(self.tokenizer)
        self.words, self.lowercase = list(self.words), bool(self.lowercase)
        if tuple(self.words[:4]) != SPECIALS:
            raise UserError(f"vocabulary: the first words must be {' '.join(SPECIALS)}, not {self.words[:4]}")
        for word in self.words:
            if not isinstance(word, str) or not word:
                raise UserError(f"vocabulary: {word!r} is not a word")
        self._ids = {word: i for i, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            word = next(word for i, word in enumerate(self.words) if self._ids[word] != i)
            raise UserError(f"vocabulary: the word {word!r} stands there twice")
        counts = [0] * len(self.words) if self.counts is None else self.counts
        if len(counts) != len(self.words) or any(type(count) is not int for count in counts):
            raise UserError(f"vocabulary: the counts are not {len(self.words)} whole numbers, one for each word")

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def tokenize(self, text: str) -> list[str]:
        return tokenize(text, self.tokenizer, self.lowercase)

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of `text`, UNK for words not in the vocabulary; no <start>, no <end>."""
        ids = self._ids
        return [ids.get(word, UNK) for word in self.tokenize(text)]

    def encode_all(self, texts: Iterable[str], num_workers: int = 1) -> Iterator[tuple[array, array]]:
        """The ids of `texts`, one after the other, and how many each has: arrays "i" and "q" for chunk after chunk.

        They are the same whatever `num_workers` (processes) is.
        """
        chunks = _by_chunks(self._encode_chunk, texts, self.tokenizer, num_workers)
        return (made for _, made in chunks)

    def _encode_chunk(self, texts: list[str]) -> tuple[array, array]:
        ids, lengths = array("i"), array("q")
        for text in texts:
            own = self.encode(text)
            ids.extend(own)
            lengths.append(len(own))
        return ids, lengths

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Words of `ids` (ints or a tensor) up to <end>, without <pad> and <start>.

        Raises IndexError for an id the vocabulary does not have.
        """
        ids = upto_end([int(i) for i in ids])
        if min(ids, default=0) < 0:
            raise IndexError(f"word id {min(ids)} is negative")
        return [self.words[i] for i in ids if i not in (PAD, START)]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids` up to <end>, joined by blanks (characters by nothing)."""
        return ("" if self.tokenizer == "char" else " ").join(self.tokens(ids))

    def sentence(self, ids: Iterable[int], capitalize: bool = True) -> str:
        """`ids` as people write it: "A man in a red shirt."

        With `capitalize=False` without a capital and without a period of its own. No words give the empty string.
        """
        text = detokenize(self.tokens(ids), self.tokenizer)
        return as_sentence(text) if capitalize else text

    def to_dict(self) -> dict:
        """The vocabulary as plain types; from_dict() is the way back."""
        return {"format": FORMAT} | {name: getattr(self, name) for name in SAVED}

    @classmethod
    def from_dict(cls, state: dict) -> "Vocabulary":
        """Raises UserError where `state` is not a dict as to_dict() gives it."""
        if not isinstance(state, dict) or not isinstance(state.get("words"), list):
            raise UserError('vocabulary: not a table with a list of "words"')
        number = state.get("format", FORMAT)
        if type(number) is not int or number != FORMAT:
            raise UserError(f"vocabulary: format {str(number)[:40]} is unknown, this toolkit reads format {FORMAT}")
        given = {name: state[name] for name in SAVED if state.get(name) is not None}
        for name, (kind, what) in KINDS.items():
            if not isinstance(given.get(name, kind()), kind):
                raise UserError(f'vocabulary: "{name}" is not {what} but {str(given[name])[:40]!r}')
        return cls(**given)

    @classmethod
    def from_deepcaption(cls, state: "DeepCaptionVocabulary") -> "Vocabulary":
        """The vocabulary in a pickle of DeepCaption. Raises UserError where its attributes are other ones."""
        return cls(**from_deepcaption(state))

    def save(self, path) -> None:
        """Write .json, .pkl (a pickle of the same plain dict) or .txt (a word a line), by the ending of `path`."""
        extension = file_kind(path)
        if extension == ".txt":
            self._require_plain(path)
        with atomic_write(path, "wb") as file:
            if extension == ".json":
                text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
                file.write(f"{text}\n".encode(errors="backslashreplace"))
            elif extension == ".pkl":
                pickle.dump(self.to_dict(), file, protocol=4)
            else:
                file.writelines(f"{word}\n".encode() for word in self.words)

    def _require_plain(self, path) -> None:
        """Raises UserError for what a .txt file, a word a line, cannot keep."""
        if self.tokenizer != "treebank" or not self.lowercase:
            raise UserError(f"{path}: a .txt file cannot keep the tokenizer ({self.tokenizer}): use .json or .pkl")
        for word in self.words:
            if word.split() != [word] or clean_text(word) != word:
                raise UserError(f"{path}: a .txt file cannot keep the word {word[:60]!r}: use .json or .pkl")

    @classmethod
    def load(cls, path) -> "Vocabulary":
        """Read a vocabulary file of any of the three kinds, or a vocabulary pickle of DeepCaption.

        Raises UserError naming the file where it is missing, of an unknown ending, or malformed.
        """
        extension = file_kind(path)
        if not Path(path).exists():
            raise UserError(f"vocabulary: no such file: {path}; build_vocab.py makes one")
        try:
            if extension == ".json":
                return cls.from_dict(read_json(path, "vocabulary"))
            if extension == ".txt":
                return cls(_words_of_lines(read_lines(path, "vocabulary")))
            state = read_pickle(read_bytes(path, "vocabulary"))
            return cls.from_deepcaption(state) if isinstance(state, DeepCaptionVocabulary) else cls.from_dict(state)
        except UserError as error:
            if str(path) in str(error):
                raise
            raise UserError(f"{path}: {error}") from error


def file_kind(path) -> str:
    """The ending of a vocabulary file, in lower case. Raises UserError for one that is none of EXTENSIONS."""
    return known_ending(path, "vocabulary", EXTENSIONS)


def _words_of_lines(lines: list[str]) -> list[str]:
    words = [word for line in lines for word in line.split()]
    if not words:
        raise UserError("vocabulary: the file holds no words")
    return words if set(words) & set(SPECIALS) else [*SPECIALS, *words]
