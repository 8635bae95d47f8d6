"""The vocabulary: words and their ids, counting the words of captions, vocabulary files.

    vocabulary = build_vocabulary(captions, threshold=4)
    ids = vocabulary.encode("A dog runs.")         # no <start>, no <end>
    vocabulary.sentence(ids)                       # "A dog runs."
    vocabulary.save("vocab.json")                  # or .pkl, .txt
    vocabulary = Vocabulary.load("vocab.json")

Ids 0..3 are `<pad> <start> <end> <unk>`; then come the words in order of their first appearance.
"""

import json
import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path

from captioning.deepcaption.vocabularies import DeepCaptionVocabulary, from_deepcaption, read_pickle
from captioning.errors import UserError
from captioning.files import atomic_write, known_ending, read_bytes, read_json, read_lines
from captioning.text.tokenizers import as_sentence, load_treebank, tokenize, tokenize_function
from captioning.text.tokens import PAD, SPECIALS, START, UNK, upto_end

EXTENSIONS = (".json", ".pkl", ".txt")
FORMAT = 1
SAVED = ("tokenizer", "lowercase", "words", "counts", "threshold", "dataset")
CHUNK = 10_000  # captions sent to a worker at a time
PARALLEL_FROM = 100_000  # fewer captions than this are counted sooner than a pool starts


def count_words(
    captions: Iterable[str], tokenizer: str = "treebank", lowercase: bool = True, num_workers: int = 1
) -> Counter:
    """Word -> occurrences over `captions`, in order of first appearance, whatever `num_workers` (processes) is."""
    count = partial(_count, tokenizer=tokenizer, lowercase=lowercase)
    captions = iter(captions)
    first = list(islice(captions, PARALLEL_FROM)) if num_workers > 1 else []
    captions = chain(first, captions)
    if len(first) < PARALLEL_FROM:
        return count(captions)
    if tokenizer == "treebank":
        load_treebank()  # once here instead of once in each forked worker
    counter: Counter = Counter()
    with get_context().Pool(num_workers) as pool:
        for part in pool.imap(count, iter(lambda: list(islice(captions, CHUNK)), [])):
            counter.update(part)
        pool.close()
        pool.join()  # workers that are done end by themselves, whatever they do with a signal
    return counter


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
        """`ids` as a sentence to print: "A man in a red shirt."

        With `capitalize=False` it is what decode() gives. No words give the empty string.
        """
        text = self.decode(ids)
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
            raise UserError(f"vocabulary: format {number!r} is unknown, this toolkit reads format {FORMAT}")
        if not isinstance(state.get("counts"), list | None):
            raise UserError('vocabulary: "counts" is not a list')
        if type(state.get("threshold", 0)) not in (int, float) or not isinstance(state.get("dataset", ""), str):
            raise UserError('vocabulary: "threshold" is no number, or "dataset" no name')
        return cls(**{name: state[name] for name in SAVED if name in state})

    @classmethod
    def from_deepcaption(cls, state: "DeepCaptionVocabulary") -> "Vocabulary":
        """The vocabulary in a pickle of DeepCaption. Raises UserError where its attributes are other ones."""
        return cls(**from_deepcaption(state))

    def save(self, path) -> None:
        """Write .json, .pkl (a pickle of the same plain dict) or .txt (a word a line), by the ending of `path`."""
        extension = file_kind(path)
        if extension == ".txt" and (self.tokenizer != "treebank" or not self.lowercase):
            raise UserError(f"{path}: a .txt file cannot keep the tokenizer ({self.tokenizer}): use .json or .pkl")
        with atomic_write(path, "wb") as file:
            if extension == ".json":
                file.write((json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n").encode())
            elif extension == ".pkl":
                pickle.dump(self.to_dict(), file, protocol=4)
            else:
                file.writelines(f"{word}\n".encode() for word in self.words)

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
