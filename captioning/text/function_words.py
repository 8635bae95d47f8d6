"""Words that good sentences repeat, and those that they do not.

content_words(vocabulary.words)              # ids of "dog", "red", "runs"; not of "a", "in", "is", "two", ","
Search(once=content_words(vocabulary.words))
"""

from collections.abc import Iterable, Sequence

from captioning.text.tokens import SPECIALS

# English: articles and other determiners, numbers, pronouns, prepositions, conjunctions, auxiliary verbs, and what
# tokenizers make of contractions.
WORDS = """
    a an the this that these those some any no each every both all another other several many few more most much such
    zero one two three four five six seven eight nine ten
    i me my you your he him his she her hers it its we us our they them their who whom whose which what there here
    of in on at by for with without from to into onto out off up down over under above below near next behind beside
    besides between among through across along around against toward towards past inside outside within upon about
    after before during beneath underneath beyond atop amid like than as per via
    and or but nor so while when where if because though although whether then not
    is are was were be been being am has have had having does do did doing can could will would may might must shall
    should
    's 'm 're 've 'll 'd n't s t re ve ll d m
"""
FUNCTION_WORDS = frozenset(WORDS.split())


def content_words(words: Sequence[str], also: Iterable[str] = ()) -> tuple[int, ...]:
    """The ids of the words that are no function words of English, not among `also`, and hold a letter.

    words: those of a vocabulary, by id. Capitals do not matter.
    """
    free = FUNCTION_WORDS | {word.lower() for word in also}
    special = len(SPECIALS)
    found = enumerate(words[special:], special)
    return tuple(i for i, word in found if word.lower() not in free and any(map(str.isalpha, word)))
