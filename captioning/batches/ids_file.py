"""The file that keeps the word ids of many captions, so that the next run needs not split them into words again."""

import hashlib
import unicodedata
import zipfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from captioning.batches.captions import CaptionIds
from captioning.batches.sampler import LoaderSettings
from captioning.datasets.items import Items
from captioning.errors import UserError
from captioning.files import atomic_write, sha256_of
from captioning.text import paragraphs, tokenizers

FORMAT = 1  # another number where the arrays in the file change
KEEP_FROM = 100_000  # fewer captions than this are encoded in a second or two


def caption_ids(items: Items, vocabulary, settings: LoaderSettings, num_workers: int) -> CaptionIds:
    """The captions of `items` as ids. Many captions are encoded once, and kept in a file in `settings.ids_folder`.

    The name of the file is a hash of all that the ids depend on, so that a file of others is never taken. A damaged
    file is replaced. Where the folder cannot be written, a line says so. Of several processes of torchrun the first one
    writes. num_workers: processes that encode.
    """
    if settings.ids_folder is None or items.num_captions < KEEP_FROM:
        return CaptionIds.of(items, vocabulary, settings.max_sentences, num_workers)
    origin = ids_hash(items, vocabulary, settings.max_sentences)
    path = Path(settings.ids_folder) / f"{origin[:16]}.ids.npz"
    if (known := read_ids(path, origin, items, len(vocabulary))) is not None:
        return known
    made = CaptionIds.of(items, vocabulary, settings.max_sentences, num_workers)
    if settings.rank == 0:
        try:
            write_ids(path, origin, made)
            print(f"word ids of the captions written to {path}")
        except UserError as error:
            print(f"word ids of the captions are not kept: {error}")
    return made


def ids_hash(items: Items, vocabulary, max_sentences: int | None) -> str:
    """Another one where captions, vocabulary, tokenizer, its code or a package that it uses are others."""
    settings = FORMAT, vocabulary.tokenizer, vocabulary.lowercase, max_sentences, *_code()
    digest = hashlib.sha256(repr(settings).encode())
    digest.update("\0".join(vocabulary.words).encode("utf-8", "surrogatepass"))
    digest.update(items.caption_hash().encode())
    return digest.hexdigest()


@cache
def _code() -> tuple[str, ...]:
    """Hashes of the modules that split captions, and versions of what they use."""
    packages = []
    for name in ("nltk", "regex"):
        try:
            packages.append(version(name))
        except PackageNotFoundError:
            packages.append("")
    modules = [sha256_of(module.__file__) for module in (tokenizers, paragraphs)]
    return *modules, *packages, unicodedata.unidata_version


def write_ids(path: Path, origin: str, ids: CaptionIds) -> None:
    """Write the file that `read_ids` reads. Raises UserError where it cannot be written."""
    arrays = {"flat": ids.flat, "bounds": ids.bounds, "origin": np.array(origin)}
    if ids.sentences is not None:
        arrays["sentences"] = ids.sentences
    with atomic_write(path, "wb") as file:
        np.savez(file, **arrays)


def read_ids(path: Path, origin: str, items: Items, num_words: int) -> CaptionIds | None:
    """The CaptionIds of `items` in the file `path`; None where it is not there, damaged, or of another origin.

    num_words: of the vocabulary, whose ids they are.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["origin"]) != origin:
                return None
            sentences = file["sentences"] if "sentences" in file.files else None
            ids = CaptionIds(file["flat"], file["bounds"], items.caption_counts(), sentences)
            check_ids(ids, num_words)
            return ids
    except FileNotFoundError:
        return None
    # RuntimeError: a header of the archive says that it is encrypted, or packed in a way that zipfile does not know
    except (OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile) as error:
        print(f"{path} is damaged and is made anew: {error}")
        return None


def check_ids(ids: CaptionIds, num_words: int) -> None:
    """Raises ValueError where rows are not those of as many captions, or word ids not those of so many words."""
    rows = np.ones(ids.first[-1], np.int64) if ids.sentences is None else ids.sentences  # of each caption
    if ids.flat.dtype.kind not in "iu" or ids.bounds.dtype.kind != "i" or rows.dtype.kind != "i":
        raise ValueError("its arrays are not of whole numbers")
    if rows.shape != (ids.first[-1],) or rows.min(initial=1) < 1 or ids.bounds.shape != (rows.sum() + 1,):
        raise ValueError("it has rows of other captions")
    if ids.bounds[0] != 0 or np.diff(ids.bounds).min(initial=2) < 2 or ids.flat.shape != (ids.bounds[-1],):
        raise ValueError("its rows have other lengths")
    if not 0 <= ids.flat.min(initial=0) <= ids.flat.max(initial=0) < num_words:
        raise ValueError("its word ids are not those of the vocabulary")
