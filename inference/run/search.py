"""How a run of infer.py searches for captions: from its flags to a Search.

wanted = SearchFlags.of(vars(args))
search = wanted.search(captioner)
"""

from dataclasses import dataclass, replace

from captioning.config import Settings
from captioning.decoder.search import Search
from captioning.errors import UserError
from captioning.text.function_words import content_words
from captioning.text.paragraphs import PERIODS
from inference.mentions import with_mentions
from model import Captioner
from vocabulary import Vocabulary


@dataclass(frozen=True)
class SearchFlags(Settings):
    """The flags of infer.py about the search. None: no flag says it."""

    beam_size: int | None = None
    n_best: int = 1
    length_penalty: float | None = None
    max_seq_length: int = 20
    max_words: int | None = None
    min_words: int = 0
    sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    allow_unk: bool = False
    block_trigrams: bool = False
    trigram_penalty_alpha: float = 0.0
    no_repeat_words: bool = False
    may_repeat: str | None = None
    repeat_words: bool = False
    no_repeat_sentences: bool = False
    only_complete_sentences: bool = False
    mention: str | None = None

    @property
    def sampling_seed(self) -> int | None:
        """The seed of the samples; None where nothing is drawn at random."""
        return (42 if self.seed is None else self.seed) if self.sample else None

    def as_deepcaption(self, captioner: Captioner) -> bool:
        """Whether a model of DeepCaption writes as that did: unless a flag says how to search."""
        asked = self.beam_size or self.sample or self.n_best > 1 or self.length_penalty or self.block_trigrams
        return captioner.of_deepcaption and not asked

    def search(self, captioner: Captioner) -> Search:
        """The Search that the flags ask for. Raises UserError for words that the model cannot count or write."""
        words = captioner.vocabulary.words
        default = captioner.default_search(
            self.as_deepcaption(captioner), self.beam_size, self.n_best, self.length_penalty
        )
        search = replace(
            default,
            beam_size=1 if self.sample else default.beam_size,
            min_length=self.min_words,
            max_length=self.max_words or self.max_seq_length,
            closing=tuple(words.index(mark) for mark in (*PERIODS, "!", "?") if mark in words),
            sample=self.sample,
            temperature=self.temperature or 1.0,
            top_k=self.top_k or 0,
            top_p=self.top_p or 1.0,
            allow_unk=self.allow_unk or default.allow_unk,
            block_trigrams=self.block_trigrams,
            trigram_penalty_alpha=self.trigram_penalty_alpha,
            once=() if self.repeat_words else self._once(captioner.vocabulary) or default.once,
            no_repeat_sentences=self.no_repeat_sentences,
            only_complete_sentences=self.only_complete_sentences,
        )
        return with_mentions(search, self.mention, captioner)

    def _once(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        """The ids of the words that --no_repeat_words keeps from coming twice."""
        if not self.no_repeat_words:
            return ()
        if vocabulary.tokenizer == "char":
            raise UserError("--no_repeat_words: the model writes characters, not words")
        return content_words(vocabulary.words, [word.strip() for word in (self.may_repeat or "").split(",")])
