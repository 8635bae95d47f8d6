"""The tokens of Stanford's PTBTokenizer on captions, without Java.

    ptb_tokens("The dogs don't run.")        # ["the", "dogs", "do", "n't", "run"]

Captions are scored on the tokens that pycocoevalcap takes from Stanford CoreNLP 3.4.1 (`-preserveLines -lowerCase`,
then punctuation marks are removed). `ptb_tokens` gives the same tokens. It was written by watching the output of the
original, not from its source. tests/text/test_ptb.py holds the original's tokens of difficult sentences.

At each place the longest token that any rule allows is taken, as in the original. Two results may surprise. Brackets
stay, as "-lrb-" and so on, because the list of marks to remove has them in capitals. A full stop stays with a word
before a comma ("etc.,", but also "dog.,").
"""

import html
import re
from functools import lru_cache

from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

_PUNCTUATIONS = frozenset(PUNCTUATIONS)
_NUMERIC = "²³¹¼-¾⁰-₟⅐-↉①-⓿"  # signs that Python counts among \w, but which are no part of words
_MARKS = "\u0300-\u036f"  # combining accents, which are
_LETTER = rf"(?:(?![{_NUMERIC}])[^\W\d_]|[{_MARKS}])"
_ALNUM = rf"(?:(?![{_NUMERIC}])[^\W_]|[{_MARKS}])"
_APOSTROPHE = "['’]"
_END = f"(?!{_ALNUM})"
_STOP = r"(?:\.(?=[,;:]))?"
# These keep their full stop wherever they stand; the second list only when capitalised ("Miss.", but "they miss").
_ABBREVIATIONS = (
    "adm|al|apr|ariz|assn|aug|ave|bhd|bldg|blvd|bros|calif|capt|cf|cmdr|co|col|colo|conn|corp|"
    "cpl|dec|dept|det|dr|elec|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|insp|intl|jan|"
    "jr|jul|jun|kan|ky|lt|ltd|maj|mar|md|messrs|mfg|mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|"
    "mt|natl|neb|nev|nov|oct|okla|penn|ph|plc|pres|prof|pte|pty|pvt|rd|rep|rev|rt|sen|sep|"
    "sept|seq|sgt|sq|sr|st|ste|supt|tel|tenn|thu|thurs|tue|tues|univ|va|vs|vt|wed|wis|wyo"
)
_CAPITALISED = "Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
# A single letter before one of these is the end of a sentence, not an initial: "vitamin B. The dog".
_OPENERS = (
    "a|about|according|additionally|after|an|as|at|but|he|her|however|if|in|it|last|many|more|"
    r"mr\.|ms\.|now|once|one|other|our|she|since|so|some|such|that|the|their|then|there|these|"
    "they|this|we|what|when|while|you"
)
# A rule with groups gives a token per group, one without gives a single token. Letter case counts only in (?-i:...).
_RULES = [
    # contractions, and words that hold an apostrophe
    rf"((?:{_LETTER}*(?!n){_LETTER})?)(n['’`]t{_LETTER}*)",
    rf"'(?:s|d|m|re|ve|ll){_END}|’(?:s|d|m|re|ve|ll)",
    rf"(can)(not){_END}",
    rf"(gon|wan)(na){_END}",
    rf"(got)(ta){_END}",
    rf"(gim|lem)(me){_END}",
    rf"({_APOSTROPHE}t)(is|was){_END}",
    rf"(more)({_APOSTROPHE}n){_END}",
    rf"(d{_APOSTROPHE})(ye){_END}",
    rf"y{_APOSTROPHE}(?={_LETTER})",
    rf"[dlo]{_APOSTROPHE}(?!y{_APOSTROPHE}){_LETTER}+|[dlj]{_APOSTROPHE}",
    rf"(?-i:[A-HJ-XZn]){_APOSTROPHE}(?!(?:re|ve|ll){_END}){_LETTER}{{2,}}",
    rf"(?!y{_APOSTROPHE}){_LETTER}*[aeiouy]{_APOSTROPHE}[aeiou]{_LETTER}*",
    rf"(?:ma{_APOSTROPHE}am|c{_APOSTROPHE}mon|li{_APOSTROPHE}l|s{_APOSTROPHE}mores|nor{_APOSTROPHE}easter){_END}",
    rf"(?:ev{_APOSTROPHE}ry|nat{_APOSTROPHE}l){_END}",
    rf"(?:dunkin|somethin|ol){_APOSTROPHE}",
    rf"{_APOSTROPHE}(?:em|til|cause|n{_APOSTROPHE}?){_END}",
    rf"{_APOSTROPHE}[2-9]0s{_END}",
    # abbreviations
    rf"(?:{_ABBREVIATIONS}|(?-i:{_CAPITALISED}|{_CAPITALISED.upper()}))\.",
    rf"(?:{_LETTER}\.)+|ph\.d\.",
    r"(?:nos?|figs?|pp?|op|ca)\.(?=\s?[0-9])",
    # numbers, fractions, telephone numbers
    rf"[-+]?[0-9]*(?:[.,:][0-9]+)+{_STOP}|[-+]?[0-9]+",
    rf"[0-9]+\.[0-9]+(?:-{_ALNUM}+)+",
    r"(?:[0-9]{1,4}[-\xa0])?[0-9]{1,4}/[0-9]{1,4}",
    r"\([0-9]{2,3}\)[0-9]{3,4}-[0-9]{3,5}",
    # words; they may be joined: "12-year-old", "and/or", "dog.The"
    rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*{_STOP}",
    rf"{_ALNUM}+(?:[-_/]{_ALNUM}+)*{_STOP}",
    r"(?-i:[A-Z]+[&+][A-Z]+)|c\+\+|c\#|(?-i:[A-Z]{1,2})\$",
    # addresses, tags, smileys
    r"(?:https?://|www\.)[^\s\"<>|(){}]+[^\s\"<>|.!?(){},;:'-]",
    r"[a-z0-9]{2,}(?:\.[a-z0-9]+)*\.(?:com|net|org|edu)(?:/[^\s\"<>|.!?(){},;]+)+",
    rf"[\w.+-]+@[\w-]+(?:\.[\w-]+)*|@[a-z_]\w*|\#{_LETTER}+",
    r"<[/!?]?[a-z][^<>]*>|&\#[0-9]+;",
    rf"(?-i:[<>]?[:;=][-o*']?(?:[()\[\]]|[DP]{_END}))|\^_\^",
    # runs of marks that stay together
    r"\.\.\.|-{5,}|--?|\*+|\#+|@+|_+|[!?]+|''|``",
]
_RULES = [re.compile(rule, re.IGNORECASE) for rule in _RULES]
_SIGNS = {
    "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "€": "$", "¤": "$", "£": "#", "¢": "cents",
    "“": "``", "”": "''", "«": "``", "»": "''", '"': "''", "‘": "`", "’": "'", "‛": "`", "‹": "`", "›": "'",
    "…": "...", "–": "--", "—": "--", "―": "--",
}  # fmt: skip
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"})
# Other signs are tokens of their own; what is not among these (emoji, for one) vanishes.
_KEPT = re.compile(
    "[\x21-\xff\u2016-\u2023\u2030-\u2044\u2070-\u208e\u2100-\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002]"
)
_ENTITY = re.compile("&(?:amp|lt|gt|quot|apos|nbsp);")
_WHOLE_AND_FRACTION = re.compile(r"(?<!\S)([0-9]{1,4}) (?=[0-9]{1,4}/[0-9]{1,4}(?![0-9/]))")
_SUFFIX = re.compile("’(?=(?:s|d|m|re|ve|ll|t)$)")


def ptb_tokens(caption: str) -> list[str]:
    """Tokens of one caption: lower-cased, contractions split ("do", "n't"), punctuation removed."""
    text = _ENTITY.sub(lambda match: html.unescape(match.group()), caption).replace("\xad", "")
    text = " ".join(text.split())
    # "1 1/2" is one token, held together by a space that does not break; words are otherwise independent
    words = _WHOLE_AND_FRACTION.sub("\\1\xa0", text).split(" ")
    tokens = []
    for word, following in zip(words, [*words[1:], ""]):
        if following[:1].isdigit() and word.endswith("."):
            tokens += _word_tokens(f"{word} 1")[:-1]  # "no. 5": the abbreviation looks at the digit
        else:
            closes = not following or bool(following[0].isupper() and re.fullmatch(_OPENERS, following.lower()))
            tokens += _word_tokens(word, closes and word.endswith("."))
    return tokens


@lru_cache(maxsize=1 << 16)
def _word_tokens(text: str, closes: bool = False) -> tuple[str, ...]:
    """Tokens of a text without spaces; `closes`: a sentence ends after it."""
    text = re.sub("(?<!-)-{3,4}(?!-)", "--", text)
    tokens, place = [], 0
    while place < len(text):
        longest = max((rule.match(text, place) for rule in _RULES), key=lambda match: match.end() if match else -1)
        if longest and longest.end() > place:
            place = longest.end()
            tokens += longest.groups() if longest.lastindex else [longest.group()]
        else:
            sign = text[place]
            place += 1
            tokens.append(_SIGNS.get(sign) or (sign if _KEPT.match(sign) else ""))
    if closes and tokens and len(tokens[-1]) == 2 and tokens[-1][0].isalpha():
        tokens[-1] = tokens[-1].rstrip(".")
    spelled = (_SUFFIX.sub("'", token.lower()).translate(_BRACKETS) for token in tokens)
    return tuple(token for token in spelled if token and not token.isspace() and token not in _PUNCTUATIONS)
