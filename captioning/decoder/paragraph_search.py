"""Writing paragraphs: a search per sentence over the word decoder, and the rules that hold between sentences.

    written = write_paragraphs(decoder, memory, Search(beam_size=3, no_repeat_sentences=True))

`generate` writes each sentence from its topic. Without a coupling unit no sentence waits for another, and all sentences
of all images are written at a time; with one, those at the same place of their paragraphs. The sentence that was chosen
is then run once more for the state it ends in, which the next sentence's topic is coupled to.

Shapes: B images, N rows (sentences), S sentences of a paragraph, T time steps, R regions, E embedding, H hidden.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from captioning.decoder.paragraph import CONTINUE, STOP, HierarchicalDecoder, ParagraphMemory, global_topics
from captioning.decoder.search import Search, generate
from captioning.decoder.sentence import Memory
from captioning.errors import UserError
from captioning.fast.steps import ready
from captioning.rows import log_probs_of, pack_sentences
from captioning.text.tokens import upto_end


@dataclass
class Paragraph:
    """A paragraph of an image, as the decoder wrote it."""

    sentences: list[list[int]] = field(default_factory=list)  # word ids without <start> and <end>
    topics: list[int] = field(default_factory=list)  # which topic each was written from: some may have been left out
    log_prob: float = 0.0  # natural, the sum over the words and <end> of each

    @property
    def words(self) -> list[int]:
        return [word for sentence in self.sentences for word in sentence]

    def add(self, sentence: list[int], topic: int, log_prob: float) -> None:
        self.sentences.append(sentence)
        self.topics.append(topic)
        self.log_prob += log_prob


class Draft:
    """The topics of B paragraphs, and the state that each is in while its sentences are written.

    counts (B,): how many sentences the stop classifier plans, at most `max_sentences`.
    """

    def __init__(self, decoder: HierarchicalDecoder, memory: ParagraphMemory):
        self.decoder, self.memory = decoder, memory
        state, topics = decoder.start(memory), []
        self.counts = torch.zeros(len(memory), dtype=torch.long, device=memory.pooled.device)
        going = torch.ones_like(self.counts, dtype=torch.bool)
        for _ in range(decoder.max_sentences):
            topic, stop, state = decoder.step(state, memory)
            topics.append(topic)
            self.counts += going
            going &= stop[:, CONTINUE] > stop[:, STOP]  # the threshold of Krause et al.: one half
            if not going.any():
                break
        self.topics = torch.stack(topics, 1)  # (B, S, E)
        self.overall = global_topics(self.topics, self.counts)  # (B, E)
        self.before = self.topics.new_zeros(len(memory), decoder.word_decoder.hidden_size)
        self.begun = torch.zeros_like(going)

    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Sentences that can be written at a time: of each its image (N,) and its place in the paragraph (N,)."""
        planned = torch.arange(self.topics.shape[1], device=self.counts.device) < self.counts.unsqueeze(1)  # (B, S)
        if self.decoder.coupling_unit is None:
            return [planned.nonzero(as_tuple=True)]
        images = [planned[:, s].nonzero().squeeze(1) for s in range(planned.shape[1])]
        return [(image, torch.full_like(image, s)) for s, image in enumerate(images)]

    def words(self, image: Tensor, place: Tensor) -> Memory:
        """The word decoder's memory for these sentences."""
        topic, overall, before = self.topics[image, place], self.overall[image], self.before[image]
        return self.decoder.words_memory(self.memory, image, topic, overall, before, ~self.begun[image])

    def read(self, image: Tensor, words: Memory, sentences: list[list[int]]) -> tuple[list[Tensor], list]:
        """Run sentences that are decided through the word decoder: the next ones follow on them.

        Gives of each the log-probabilities (T,) of its words and <end>, and attention weights (T, R) or None.
        """
        captions, packing = pack_sentences(sentences, self.counts.device)
        logits, weights, hidden = self.decoder.word_decoder.read(words.select(packing.order), captions, packing)
        owner = image[packing.order]
        self.before[owner] = hidden[packing.ends()].to(self.before.dtype)
        self.begun[owner] = True
        log_probs = log_probs_of(logits, packing.targets(captions))
        return packing.by_row(log_probs), [None] * len(sentences) if weights is None else packing.by_row(weights)


def write_paragraphs(
    decoder: HierarchicalDecoder, memory: ParagraphMemory, search: Search, word_decoder=None
) -> list[list[Paragraph]]:
    """Paragraphs for each of the B images of `memory`: one, or `n_best` samples, the likeliest first.

    word_decoder: what fast_decoder() made of the decoder's own; None: its plain steps.
    Raises UserError where a beam search is asked for several.
    """
    several = search.n_best
    if several > 1 and not search.sample:
        raise UserError(f"--n_best {several}: a beam search writes one paragraph of an image; add --sample for more")
    if several > 1:
        memory = memory.select(torch.arange(len(memory), device=memory.device).repeat_interleave(several))
    draft = Draft(decoder, memory)
    paragraphs = [Paragraph() for _ in range(len(memory))]
    choosy = search.no_repeat_sentences or search.only_complete_sentences
    search = replace(search, n_best=search.beam_size if choosy and not search.sample else 1)
    for image, place in draft.groups():
        if len(image) == 0:
            break
        words = draft.words(image, place)
        found = generate(*ready(word_decoder or decoder.word_decoder, words), search)
        kept = []
        rows = zip(image.tolist(), place.tolist(), found.tokens.tolist(), found.log_prob.tolist())
        for row, (owner, topic, candidates, log_probs) in enumerate(rows):
            chosen = choose(candidates, log_probs, paragraphs[owner], search)
            if chosen is not None:
                paragraphs[owner].add(chosen[0], topic, chosen[1])
                kept.append(row)
        if decoder.coupling_unit is not None and kept:
            index = torch.tensor(kept, device=image.device)
            sentences = [paragraphs[owner].sentences[-1] for owner in image[index].tolist()]
            draft.read(image[index], words.select(index), sentences)
    grouped = [paragraphs[i : i + several] for i in range(0, len(paragraphs), several)]
    return [sorted(group, key=lambda paragraph: -paragraph.log_prob) for group in grouped]


def choose(candidates: list, log_probs: list, paragraph: Paragraph, search: Search) -> tuple[list[int], float] | None:
    """The first of a sentence's candidates, token ids with <end>, that the rules of `search` let into `paragraph`."""
    for tokens, log_prob in zip(candidates, log_probs):
        if log_prob == -float("inf"):
            continue
        sentence = upto_end(tokens)
        repeated = search.no_repeat_sentences and sentence in paragraph.sentences
        cut_off = search.only_complete_sentences and len(sentence) >= search.max_length
        if sentence and not repeated and not cut_off:
            return sentence, log_prob
    return None


def explain_paragraphs(
    decoder: HierarchicalDecoder, memory: ParagraphMemory, paragraphs: list[Paragraph]
) -> list[tuple[Tensor | None, Tensor]]:
    """`Captioner.explain` for paragraphs: T runs over all sentences, each with its <end>."""
    draft = Draft(decoder, memory)
    log_probs: list[list[Tensor]] = [[] for _ in paragraphs]
    weights: list[list[Tensor]] = [[] for _ in paragraphs]
    for topic in range(draft.topics.shape[1]):
        owners = [i for i, paragraph in enumerate(paragraphs) if topic in paragraph.topics]
        if not owners:
            continue
        image = torch.tensor(owners, device=draft.counts.device)
        sentences = [paragraphs[i].sentences[paragraphs[i].topics.index(topic)] for i in owners]
        explained = draft.read(image, draft.words(image, torch.full_like(image, topic)), sentences)
        for i, log_prob, attended in zip(owners, *explained):
            log_probs[i].append(log_prob.float().cpu())
            weights[i].append(attended if attended is None else attended.float().cpu())
    values = memory.words.values
    no_weights = None if values is None else torch.zeros(0, values.shape[1])
    return [
        (torch.cat(w) if w and values is not None else no_weights, torch.cat(p) if p else torch.zeros(0))
        for w, p in zip(weights, log_probs)
    ]
