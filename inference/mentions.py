"""Words that captions must have: those of infer.py's --mention, or what the encoder's classes are sure of.

    search = with_mentions(Search(beam_size=3), "dog|dogs|puppy,frisbee", captioner)
    search = with_mentions(Search(beam_size=3), "auto", captioner)

Such captions are found by captioning/decoder/constrained.py.
"""

import difflib
from dataclasses import replace

from captioning.decoder.constrained import MOST_DEMANDS, Demand
from captioning.decoder.search import Search
from captioning.errors import UserError
from captioning.text.objects import CLASSES, words_of
from vocabulary import Vocabulary

AUTO = "auto"


def with_mentions(search: Search, text: str | None, captioner) -> Search:
    """`search` with the words of --mention `text`: words separated by commas, of which each caption has every one.

    "dog|dogs" stands for either word, and so does each of several with blanks between them. "auto": of each photo
    the objects that the model's classifier is sure of. captioner: the model.Captioner. Raises UserError for a word that
    the model does not know, too many of them, and a model that cannot do it.
    """
    if text is None:
        return search
    if captioner.config.paragraphs is not None:
        raise UserError("--mention is for captions of one sentence; the model writes paragraphs")
    if text == AUTO:
        if captioner.classes_at is None:
            advice = "name words, or a model trained with --persist_features efficientnet_lite2-classes"
            raise UserError(f"--mention auto: the model reads no classes of its photos: {advice}")
        return replace(search, mention=demands_of_objects(captioner.vocabulary))
    return replace(search, mention=demands_of_words(text, captioner.vocabulary))


def demands_of_words(text: str, vocabulary: Vocabulary) -> tuple[Demand, ...]:
    """What --mention `text` asks of every caption."""
    demands = []
    for phrase in filter(None, map(str.strip, text.split(","))):
        for word in phrase.split():
            demands.append(Demand(tuple(known_id(form, vocabulary) for form in filter(None, word.split("|")))))
    if not demands or not all(demand.words for demand in demands):
        raise UserError(f"--mention {text}: name words separated by commas, or auto")
    if len(demands) > MOST_DEMANDS:
        raise UserError(f"--mention {text}: {len(demands)} words are too many for one caption: {MOST_DEMANDS} at most")
    return tuple(demands)


def known_id(word: str, vocabulary: Vocabulary) -> int:
    """The id of a word. Raises UserError, with words that are near, where the vocabulary lacks it."""
    word = word.lower() if vocabulary.lowercase else word
    if word in vocabulary:
        return vocabulary.words.index(word)
    near = difflib.get_close_matches(word, vocabulary.words[4:], n=3)
    advice = f"; it knows {', '.join(near)}" if near else ""
    raise UserError(f"--mention {word}: the model has no such word, so it cannot write it{advice}")


def demands_of_objects(vocabulary: Vocabulary) -> tuple[Demand, ...]:
    """The objects that ImageNet's classes show, of which the model knows a word."""
    ids = {word: number for number, word in enumerate(vocabulary.words)}
    demands = []
    for name, classes in CLASSES.items():
        words = tuple(ids[word] for word in words_of(name) if word in ids)
        if words:
            demands.append(Demand(words, tuple(classes)))
    return tuple(demands)
