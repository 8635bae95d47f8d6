"""DeepCaption's vocabulary pickles, read without running what is in them."""

from captioning import pickles
from captioning.errors import UserError
from captioning.text.tokens import SPECIALS


class DeepCaptionVocabulary:
    """Stands in for DeepCaption's class vocabulary.Vocabulary: holds the attributes of the pickle and does nothing."""


def read_pickle(data: bytes):
    """The plain object in a vocabulary pickle. Raises UserError for a damaged one or one that builds a class."""
    try:
        return pickles.read_pickle(data, {"vocabulary.Vocabulary": DeepCaptionVocabulary})
    except pickles.PickleError as error:
        raise UserError(f"vocabulary: not a readable pickle of a vocabulary: {error}") from error


def from_deepcaption(state: DeepCaptionVocabulary) -> dict:
    """The arguments of Vocabulary(), from `word2idx` and, where they are there, `metadata` and `freq` (by word or id).

    Raises UserError where `word2idx` is malformed.
    """
    ids, metadata, freq = (getattr(state, name, None) or {} for name in ("word2idx", "metadata", "freq"))
    if not all(isinstance(table, dict) for table in (ids, metadata, freq)):
        raise UserError("vocabulary: the DeepCaption pickle has no readable word table")
    if not all(isinstance(word, str) and type(ids[word]) is int for word in ids):
        raise UserError("vocabulary: the word table of the DeepCaption pickle is not one of words and whole numbers")
    words = sorted(ids, key=ids.get)
    if not words or [ids[word] for word in words] != list(range(len(words))):
        raise UserError("vocabulary: the ids in the DeepCaption pickle are not 0, 1, 2, ...")
    if words[: len(SPECIALS)] != list(SPECIALS):
        raise UserError(f"vocabulary: the first words must be {' '.join(SPECIALS)}, not {words[:4]}")
    counts = [freq.get(word, freq.get(i, 0)) for i, word in enumerate(words)] if freq else None
    plain = not metadata.get("no_tokenize", False)  # without tokenising it did not lower-case either
    return {
        "words": words,
        "counts": counts,
        "tokenizer": "treebank" if plain else "whitespace",
        "lowercase": plain,
        "threshold": metadata.get("vocab_threshold") or 0,
        "dataset": metadata.get("dataset") or "",
    }
