"""Document frequencies of n-grams ("cached words"), by which CIDEr-D weighs words: counting them, and their files.

.npz and .json are this toolkit's own formats. .pkl holds the dict of `document_frequency` and `ref_len` that
DeepCaption and other programs read. Pickles are read by an unpickler that builds plain values only.

Shapes: G n-grams.
"""

import hashlib
import json
import math
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captioning.errors import UserError, one_line
from captioning.files import atomic_write, expect, known_ending, member, read_bytes, read_json, require_plain_file
from captioning.pickles import NUMBERS, PickleError, read_pickle
from captioning.text.score_tokens import score_tokenizer, score_tokens

END_TOKEN = "<end>"  # counted like a word, so that a caption that stops in the middle scores less
ORDERS = 4  # n-grams of one to four tokens
MOST_PACKED = 64  # how much smaller an .npz may be than what is in it
EXTENSIONS = (".npz", ".json", ".pkl", ".p")


@dataclass
class CachedWords:
    """In how many images each n-gram occurs.

    tokens: the words; ngrams (G, 4) int32: their numbers in `tokens`, -1 behind the last; counts (G,) float64;
    images: how many images were counted. origin: a hash of what was counted, "" where unknown.
    """

    tokens: list[str]
    ngrams: np.ndarray
    counts: np.ndarray
    images: float
    origin: str = ""

    def __len__(self) -> int:
        return len(self.counts)

    def to_dict(self) -> dict:
        """DeepCaption's layout: {"document_frequency": {("a", "dog"): 3.0}, "ref_len": images}."""
        names = np.array([*self.tokens, None], object)[self.ngrams].tolist()
        table = {tuple(t for t in row if t is not None): count for row, count in zip(names, self.counts.tolist())}
        return {"document_frequency": table, "ref_len": self.images}

    @classmethod
    def from_dict(cls, table: Mapping) -> "CachedWords":
        """The words of a table in DeepCaption's layout. Raises UserError where it is not one."""
        frequencies, images = check_table(table)
        counts = np.fromiter(frequencies.values(), float, len(frequencies))
        ids: dict[str, int] = {}
        grams = np.full((len(counts), ORDERS), -1, np.int32)
        for row, ngram in enumerate(frequencies):
            if not isinstance(ngram, tuple) or not 0 < len(ngram) <= ORDERS:
                raise UserError(f"'document_frequency' has {ngram!r}, which is not a tuple of one to four words")
            for place, token in enumerate(ngram):
                grams[row, place] = ids.setdefault(str(token), len(ids))
        return cls(list(ids), grams, counts, images)

    def save(self, path) -> None:
        """Write .npz, .json or .pkl, by the extension. Raises UserError for another one."""
        kind = known_ending(path, "cached words", EXTENSIONS)
        with atomic_write(path, "wb") as file:
            if kind == ".npz":
                words = np.frombuffer("\n".join(self.tokens).encode(errors="surrogatepass"), np.uint8)
                parts = {"tokens": words, "ngrams": self.ngrams, "counts": self.counts}
                np.savez_compressed(file, images=self.images, origin=self.origin, **parts)
            elif kind == ".json":
                table = self.to_dict()
                joined = {" ".join(ngram): count for ngram, count in table["document_frequency"].items()}
                content = {"format": 1, "ref_len": self.images, "origin": self.origin, "document_frequency": joined}
                file.write(json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace"))
            else:
                pickle.dump(self.to_dict(), file, protocol=4)

    @classmethod
    def load(cls, path) -> "CachedWords":
        """Read .npz, .json or, whatever else it ends in, a pickle. Raises UserError, naming the file, for a bad one."""
        kind = Path(path).suffix.lower()
        if not Path(path).is_file():
            raise UserError(f"cached words: no such file: {path}; build_cached_words.py makes one")
        try:
            if kind == ".npz":
                return cls._load_npz(path)
            if kind == ".json":
                return cls._load_json(path)
            return cls.from_dict(_read_pickle(path))
        except UserError as error:
            if str(path) in str(error):
                raise
            raise UserError(f"cached words: {path}: {error}") from error

    @classmethod
    def _load_npz(cls, path) -> "CachedWords":
        try:
            require_plain_file(path, "cached words")
            check_unpacked(path)
            with np.load(path, allow_pickle=False) as file:
                tokens = file["tokens"].tobytes().decode(errors="surrogatepass").split("\n")
                ngrams, counts = file["ngrams"], file["counts"]
                images, origin = float(file["images"]), str(file["origin"])
            fits = ngrams.shape == (len(counts), ORDERS) and len(counts) and -1 <= ngrams.min() <= ngrams.max()
            if not fits or ngrams.max() >= len(tokens) or counts.max() > images or ngrams.dtype.kind != "i":
                raise ValueError("its parts do not fit each other")
        except UserError:
            raise
        except Exception as error:  # damaged archives raise errors of many kinds
            raise UserError(f"this is not an .npz of build_cached_words.py, or damaged: {one_line(error)}") from error
        return cls(tokens, ngrams, counts.astype(float), images, origin)

    @classmethod
    def _load_json(cls, path) -> "CachedWords":
        content, what = read_json(path, "cached words"), f"cached words: {path}"
        table = member(content, "document_frequency", dict, what)
        table = {tuple(ngram.split(" ")): count for ngram, count in table.items()}
        words = cls.from_dict({"document_frequency": table, "ref_len": member(content, "ref_len", float, what)})
        words.origin = expect(content.get("origin", ""), str, what, "origin")
        return words


def check_unpacked(path) -> None:
    """Raises ValueError where the archive `path` says that it unpacks to many times its size: counts never do."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > MOST_PACKED * Path(path).stat().st_size + 2**20:
        raise ValueError(f"it unpacks to {unpacked:,} bytes")


def tokenized(references: Mapping[object, Sequence[str]], end_token: bool = True) -> dict[object, list[list[str]]]:
    """The tokens of the captions of each image, as the scores compare them, with <end> behind each caption."""
    last, tokens = [END_TOKEN] if end_token else [], score_tokens(tokenizer_of(references))
    return {key: [[*tokens(text), *last] for text in texts] for key, texts in references.items()}


def tokenizer_of(references: Mapping[object, Sequence[str]]) -> str:
    """By which tokens the captions of all images are compared: score_tokenizer()."""
    return score_tokenizer(text for texts in references.values() for text in texts)


def count_documents(captions: Iterable[Sequence[Sequence[str]]], known: set[str] | None = None) -> CachedWords:
    """Document frequencies over images, each given as its tokenised captions.

    known: the words to tell apart; all others count as <unk> (default: every word by itself).
    """
    ids: dict[str, int] = {}
    if known is not None:
        known = known | {END_TOKEN}
    coded = []
    for texts in captions:
        if known is not None:
            texts = [[token if token in known else "<unk>" for token in text] for text in texts]
        coded.append([[ids.setdefault(token, len(ids)) for token in text] for text in texts])
    size = pack_size(len(ids))
    counts: Counter = Counter()
    for texts in coded:
        counts.update({ngram for text in texts for run in packed_ngrams([i + 1 for i in text], size) for ngram in run})
    ngrams = unpack(np.array(list(counts), np.int64 if size**ORDERS < 2**63 else object), size)
    return CachedWords(list(ids), ngrams, np.fromiter(counts.values(), float, len(counts)), len(coded))


def pack_size(tokens: int) -> int:
    """The base in which an n-gram is written as one number, where that many tokens are numbered from 1."""
    return 1 << (tokens + 1).bit_length()


def packed_ngrams(ids: list[int], size: int) -> list[list[int]]:
    """All runs of one, two, three and four ids (each from 1 to below `size`), each run as one number."""
    runs = [ids]
    for n in range(1, ORDERS):
        runs.append([ngram * size + i for ngram, i in zip(runs[-1], ids[n:])])
    return runs


def unpack(packed: np.ndarray, size: int) -> np.ndarray:
    """Ids, from 0, of packed n-grams (G,) -> (G, 4) int32 with -1 behind the last."""
    columns = [(packed // size**place % size).astype(np.int32) for place in reversed(range(ORDERS))]
    grams = np.stack(columns, 1) if len(packed) else np.zeros((0, ORDERS), np.int32)
    first = (grams == 0).sum(1)  # shorter ones have zeros in front
    order = (np.arange(ORDERS) + first[:, None]) % ORDERS
    return np.take_along_axis(grams, order, 1) - 1


def pack(ngrams: np.ndarray, size: int) -> np.ndarray:
    """Packed n-grams (G,) of ids (G, 4), from 1, with 0 behind the last; of dtype object where int64 is too small."""
    packed = np.zeros(len(ngrams), np.int64 if size**ORDERS < 2**63 else object)
    for column in ngrams.T.astype(packed.dtype):
        packed = np.where(column > 0, packed * size + column, packed)
    return packed


def caption_hash(references: Mapping[object, Sequence[str]]) -> str:
    """A hash of the captions of all images, in the order of the images."""
    digest = hashlib.sha256(b"cached words 1\n")
    for texts in references.values():
        digest.update(json.dumps(list(texts), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def kept_words(references: Mapping[object, Sequence[str]], folder, name: str, write: bool = True) -> CachedWords:
    """The document frequencies of training captions: from `folder`/`name`-HASH.words.npz, or counted and kept there.

    HASH is that of the captions, so that a file of other captions is never taken. Where the folder cannot be written,
    the words are counted each time. write=False never writes: for all processes of a run but the first.
    """
    origin = caption_hash(references)
    path = Path(folder) / f"{name}-{origin[:12]}.words.npz"
    if path.exists():
        try:
            words = CachedWords.load(path)
            if words.origin == origin:
                return words
        except UserError as error:
            print(f"{error}: counted anew")
    words = count_documents(tokenized(references).values())
    words.origin = origin
    if write:
        try:
            words.save(path)
            print(f"document frequencies written to {path}")
        except UserError as error:
            print(f"document frequencies are not kept: {error}")
    return words


def check_table(table: Mapping) -> tuple[Mapping, float]:
    """(n-gram -> frequency, number of images) of a table in DeepCaption's layout. Raises UserError where it is not one.

    Tables in use hold the number of images or its logarithm.
    """
    try:
        frequencies, images = table["document_frequency"], float(table["ref_len"])
        counts = np.array([*frequencies.values(), 0.0])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        message = "document frequencies must be a dict of 'document_frequency' and 'ref_len'"
        raise UserError(f"{message}: {one_line(error)}") from error
    if counts.dtype.kind != "f" or not np.isfinite(counts).all():
        raise UserError("document frequencies: not every n-gram in 'document_frequency' has a finite number")
    largest = float(counts.max())
    if not largest > 0:
        raise UserError("document frequencies: there is no n-gram in 'document_frequency'")
    if images < largest:  # no n-gram is in more images than there are: it is the logarithm
        images = math.exp(min(images, 700))
    if not images >= largest * (1 - 1e-6):
        raise UserError(f"document frequencies: 'ref_len' is too small for an n-gram in {largest:g} images")
    return frequencies, images


def _table(*arguments) -> dict:
    """Stands in for the dicts of the standard library, made of nothing, a table, pairs, or the type of a default."""
    return dict(arguments[-1]) if arguments and isinstance(arguments[-1], dict | list) else {}


def _number(value=0) -> float:
    """Stands in for the types of numbers, which defaultdict has for what is missing."""
    return float(value)


KNOWN = {**NUMBERS, **{f"collections.{name}": _table for name in ("defaultdict", "Counter", "OrderedDict")}}
KNOWN |= {f"{module}.{name}": _number for module in ("builtins", "__builtin__") for name in ("float", "int")}


def _read_pickle(path):
    """The plain object in a pickle (of Python 2 too). Raises UserError for one that is damaged or builds a class."""
    try:
        return read_pickle(read_bytes(path, "cached words"), KNOWN, encoding="latin1")
    except PickleError as error:
        raise UserError(f"this is not a pickle of document frequencies: {error}") from error
