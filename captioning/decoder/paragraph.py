"""The paragraph decoder: a sentence RNN decides what each sentence is about, a word RNN writes it.

Krause et al. 2017 ("A Hierarchical Approach for Generating Descriptive Image Paragraphs", section 4): the image's
regions are projected and max-pooled to one vector, which the sentence RNN reads at every step. From its hidden state a
classifier says whether the sentence is the last, and two fully connected layers make the sentence's topic vector,
which the word RNN, a SentenceDecoder, reads before <start>. Coherent sentences are those of Chatterjee and Schwing 2018
("Diverse and Coherent Paragraph Generation from Images", sections 3.2 and 3.3), without their variational part.

    memory = decoder.prepare(image, persist, regions)             once per image
    state = decoder.start(memory)
    topics, stops, state = decoder.step(state, memory)            once per sentence
    words = decoder.words_memory(...)                             then the word decoder's own start() and step()

`decoder(memory, captions, ...)` is the teacher-forced pass over whole paragraphs; a test holds it equal to the steps.

Shapes: B images, N rows (sentences), Q paragraphs, S sentences of a paragraph, T time steps, M real tokens, R regions,
D feature size, P pooling size, E embedding, H hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioning.config import ModelConfig
from captioning.decoder.sentence import ImageEmbedding, Memory, SentenceDecoder
from captioning.rows import ImageMemory, Packing, State

CONTINUE, STOP = 0, 1  # the classes of the stop classifier
Read = Callable[[SentenceDecoder, Memory, Tensor, Packing], tuple[Tensor, Tensor | None, Tensor]]


@dataclass
class ParagraphMemory(ImageMemory):
    """What the decoder keeps of each image."""

    pooled: Tensor  # (B, P) what the sentence RNN reads
    words: Memory  # what the word decoder keeps of the image; its `first` is set for each sentence


@dataclass
class ParagraphPass:
    """What the teacher-forced pass gives: of the words, and of the decision to stop after each sentence."""

    logits: Tensor  # (M, V)
    targets: Tensor  # (M,) the words
    weights: Tensor | None  # (M, R) attention weights
    row: Tensor  # (M,) the sentence of each token
    stops: Tensor  # (N, 2) logits of CONTINUE and STOP
    last: Tensor  # (N,) STOP for the last sentence of its paragraph, else CONTINUE


class RegionPooling(ImageEmbedding):
    """Regions (B, R, D), or vectors (B, D) -> (B, P): projected, the maximum over the regions taken (Krause, eq. 1);
    then SELU, dropout and batch norm, as in DeepCaption after the projection of its single vector.
    """

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """parts: vectors (B, D) and maps (B, R, D) with the same R; a vector stands beside each region."""
        regions = max((x.shape[1] for x in parts if x.dim() == 3), default=0)
        if regions:
            parts = [x if x.dim() == 3 else x.unsqueeze(1).expand(-1, regions, -1) for x in parts]
        projected = self.linear(torch.cat(list(parts), -1))
        if projected.dim() == 3:
            projected = projected.amax(1)
        return self.bn(self.dropout(self.non_lin(projected)))


class CouplingUnit(nn.Module):
    """Topic, the sentence before, and global topic to the vector that the word RNN reads (Chatterjee and Schwing).

    C = W_2 relu(W_1 h) of the hidden state h that the sentence before ended in, 0 for the first sentence;
    fused = (alpha T + beta C) / (alpha + beta); the result is a GRU's step from the global topic, reading `fused`.
    """

    def __init__(self, hidden_size: int, embed_size: int, alpha: float = 1.0, beta: float = 1.5):
        super().__init__()
        self.linear1 = nn.Linear(hidden_size, embed_size)
        self.linear2 = nn.Linear(embed_size, embed_size)
        self.gate = nn.GRU(embed_size, embed_size, batch_first=True)
        self.alpha, self.beta = alpha, beta

    def forward(self, topic: Tensor, global_topic: Tensor, before: Tensor, first: Tensor) -> Tensor:
        """topic, global_topic (N, E), before (N, H), first (N,): rows without a sentence before -> (N, E)."""
        coherence = self.linear2(torch.relu(self.linear1(before))).masked_fill(first.unsqueeze(1), 0.0)
        fused = (self.alpha * topic + self.beta * coherence) / (self.alpha + self.beta)
        return self.gate(fused.unsqueeze(1), global_topic.unsqueeze(0).contiguous())[0].squeeze(1)


class HierarchicalDecoder(nn.Module):
    """Sentence RNN over a word decoder of the same `config`, whose `paragraphs` is a ParagraphConfig."""

    def __init__(self, word_decoder: SentenceDecoder, config: ModelConfig):
        super().__init__()
        own, E, H = config.paragraphs, config.embed_size, config.hidden_size
        self.rnn_arch, self.max_sentences = config.rnn_arch, own.max_sentences
        image_size = sum(spec.shape[0] for spec in config.features)  # also of a map that the words attend to
        self.pooling = RegionPooling(image_size, own.pooling_size, config.encoder_non_lin, config.encoder_dropout)
        recurrent = {"LSTM": nn.LSTM, "GRU": nn.GRU}[self.rnn_arch]
        self.sentence_rnn = recurrent(own.pooling_size, H, batch_first=True)
        self.dropout_stopping = nn.Dropout(own.dropout_stopping)
        self.linear_stopping = nn.Linear(H, 2)
        fc_size = own.fc_size or own.pooling_size
        self.linear1 = nn.Linear(H, fc_size)
        self.linear2 = nn.Linear(fc_size, E)
        self.dropout_fc = nn.Dropout(own.dropout_fc)
        self.coupling_unit = None
        if own.coherent_sentences:
            self.coupling_unit = CouplingUnit(H, E, own.coupling_alpha, own.coupling_beta)
        self.word_decoder = word_decoder
        # Weights with which topics differ visibly between images. With torch's defaults they differ by a few
        # hundredths, and the word RNN learns to do without them. Large ones drift together until they saturate it.
        nn.init.xavier_normal_(self.sentence_rnn.weight_ih_l0, gain=2.0)
        for layer in (self.linear1, self.linear2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def set_dropout(self, p: float) -> None:
        """The word decoder's; that of the stop classifier and of the topics are `dropout_stopping` and `dropout_fc`."""
        self.word_decoder.set_dropout(p)

    def set_encoder_dropout(self, p: float) -> None:
        """The dropout probability on the pooled image and on the map that words attend to."""
        self.pooling.dropout.p = p
        self.word_decoder.set_encoder_dropout(p)

    # ---- per image ----

    def prepare(self, image: Sequence[Tensor], persist: Tensor | None, regions: Tensor | None) -> ParagraphMemory:
        """image: parts as RegionPooling takes them; persist (B, D), regions (B, R, D): the word decoder's, or None."""
        return ParagraphMemory(self.pooling(image), self.word_decoder.prepare(None, persist, regions))

    def start(self, memory: ParagraphMemory) -> State:
        """The sentence RNN's state before the first sentence: zero."""
        zeros = memory.pooled.new_zeros(1, len(memory), self.sentence_rnn.hidden_size)
        return (zeros, zeros) if self.rnn_arch == "LSTM" else (zeros,)

    # ---- per sentence ----

    def step(self, state: State, memory: ParagraphMemory) -> tuple[Tensor, Tensor, State]:
        """One sentence: its topic (B, E), logits of CONTINUE and STOP after it (B, 2), and the new state."""
        hidden, state = self.sentence_rnn(memory.pooled.unsqueeze(1), state if len(state) > 1 else state[0])
        topic, stop = self._topics_and_stops(hidden.squeeze(1))
        return topic, stop, state if isinstance(state, tuple) else (state,)

    def plan(self, memory: ParagraphMemory, n_sentences: int) -> tuple[Tensor, Tensor]:
        """`n_sentences` steps at once: topics (B, S, E), stop logits (B, S, 2)."""
        inputs = memory.pooled.unsqueeze(1).expand(-1, n_sentences, -1)  # (B, S, P)
        return self._topics_and_stops(self.sentence_rnn(inputs)[0])

    def _topics_and_stops(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        topics = self.dropout_fc(self.linear2(torch.relu(self.linear1(hidden))))
        return topics, self.linear_stopping(self.dropout_stopping(hidden))

    def words_memory(
        self, memory: ParagraphMemory, image: Tensor, topic: Tensor, overall: Tensor, before: Tensor, first: Tensor
    ) -> Memory:
        """The word decoder's memory for N sentences: image (N,) of each, topic and `overall`, the global topic (N, E);
        before (N, H): the state that the sentence before ended in; first (N,): rows that have none.
        """
        words = memory.words.select(image)
        words.first = topic if self.coupling_unit is None else self.coupling_unit(topic, overall, before, first)
        return words

    # ---- whole paragraphs ----

    def forward(
        self,
        memory: ParagraphMemory,
        captions: Tensor,
        lengths: Tensor,
        row_image: Tensor,
        sentences: Tensor,
        read: Read = SentenceDecoder.read,
    ) -> ParagraphPass:
        """Teacher forcing over Q paragraphs.

        captions (N, T): sentences from <start> to <end>, those of a paragraph in order, one after another; lengths (N,)
        of each, counting both, and sentences (Q,), how many each paragraph has, on the CPU; row_image (N,) the image of
        each. read: what runs the word decoder (`SentenceDecoder.read`, or scheduled sampling).
        """
        device = captions.device
        paragraph, position = places(sentences)
        groups = [torch.arange(len(lengths))]  # sentences that are read at a time: all
        if self.coupling_unit is not None:  # one of each paragraph, since the next waits for its end
            groups = [(position == s).nonzero().squeeze(1) for s in range(int(sentences.max()))]
        last = (position == sentences[paragraph] - 1).long().to(device)
        first_rows = (position == 0).nonzero().squeeze(1).to(device)
        paragraph, position = paragraph.to(device), position.to(device)
        topics, stops = self.plan(memory, int(sentences.max()))
        overall = global_topics(topics[row_image[first_rows]], sentences.to(device))  # (Q, E)
        before = topics.new_zeros(len(sentences), self.word_decoder.hidden_size)  # (Q, H)
        parts = []
        for rows in groups:
            packing = Packing.of(lengths[rows] - 1, device)
            rows = rows.to(device)
            in_order = rows[packing.order]
            owner, where, image = (x[in_order] for x in (paragraph, position, row_image))
            words = self.words_memory(memory, image, topics[image, where], overall[owner], before[owner], where == 0)
            logits, weights, hidden = read(self.word_decoder, words, captions[rows], packing)
            row = in_order[packing.rank]
            parts.append((logits, captions[row, packing.time + 1], weights, row))
            if self.coupling_unit is not None:
                before = before.index_copy(0, owner, hidden[packing.ends()].to(before.dtype))
        logits, targets, weights, row = zip(*parts)
        weights = None if weights[0] is None else torch.cat(weights)
        stops = stops[row_image, position]
        return ParagraphPass(torch.cat(logits), torch.cat(targets), weights, torch.cat(row), stops, last)


def places(sentences: Tensor) -> tuple[Tensor, Tensor]:
    """From the number of sentences of each paragraph (Q,): of each row its paragraph (N,) and its place in it (N,)."""
    paragraph = torch.arange(len(sentences)).repeat_interleave(sentences)
    begins = sentences.cumsum(0) - sentences
    return paragraph, torch.arange(len(paragraph)) - begins[paragraph]


def global_topics(topics: Tensor, sentences: Tensor) -> Tensor:
    """The mean of each paragraph's topics, weighted by their norms: topics (Q, S, E), sentences (Q,) -> (Q, E)."""
    real = torch.arange(topics.shape[1], device=topics.device) < sentences.unsqueeze(1)  # (Q, S)
    norms = topics.norm(dim=2) * real
    weights = norms / norms.sum(1, keepdim=True).clamp_min(1e-12)
    return (weights.unsqueeze(2) * topics).sum(1)
