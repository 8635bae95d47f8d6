"""Self-critical sequence training (Rennie et al. 2017): the CIDEr-D of sampled captions as the reward.

The baseline of a sample is the mean reward of the image's other samples (Luo 2020, "A better variant of self-critical
sequence training"), or with one sample per image the reward of its greedy caption.

The policy is softmax(logits / temperature) over the words that may be written, when drawing and in the gradient alike.
Below 1 it is sharper than the model: one trained with label smoothing would otherwise draw a random word in ten, and
rewards would say little.

Shapes: B images, N = B * samples rows, M real tokens, T time steps.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from captioning.datasets.base import image_key
from captioning.decoder.search import NEVER_WRITTEN, Search, generate_rows
from captioning.devices import autocast
from captioning.errors import UserError
from captioning.fast.steps import fast_decoder, ready
from captioning.rows import Packing, full_precision, log_probs_of
from captioning.text.tokens import PAD, START, upto_end
from model import Captioner, CaptionModel, batch_inputs
from training.cider_reward import CiderReward
from training.losses import Mean, Objective, StepLoss, token_cross_entropy
from training.self_critical_terms import WordCounts, extra_term, face_loss
from training.settings import TrainSettings

MAX_LENGTH = 20  # words


@torch.no_grad()
def sampled_captions(model: CaptionModel, memory, settings: TrainSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Captions drawn from the model, `self_critical_samples` for each of the B images of `memory`, without gradients.

    Returns captions (N, T) from <start> to <end>, lengths (N,) on the CPU and row_image (N,), as a batch has them.
    """
    row_image = torch.arange(len(memory), device=memory.device).repeat_interleave(settings.self_critical_samples)
    drawing = {"sample": True, "temperature": settings.self_critical_temperature}
    search = Search(max_length=MAX_LENGTH, trigram_penalty_alpha=settings.trigram_penalty_alpha, **drawing)
    tokens = generate_rows(*ready(fast_decoder(model.decoder), memory.select(row_image)), search).tokens[:, 0]
    tokens = tokens[:, :MAX_LENGTH]  # an <end> after the longest caption was forced, not drawn: it has no gradient
    captions = torch.cat([torch.full_like(tokens[:, :1], START), tokens], 1)
    return captions, (captions != PAD).sum(1).cpu(), row_image


@torch.no_grad()
def greedy_captions(model: CaptionModel, memory, settings: TrainSettings) -> list[list[int]]:
    """The word ids of the greedy caption of each of the B images of `memory`."""
    search = Search(max_length=MAX_LENGTH, trigram_penalty_alpha=settings.trigram_penalty_alpha)
    return generate_rows(*ready(fast_decoder(model.decoder), memory), search).tokens[:, 0].tolist()


def policy_logits(logits: Tensor, captions: Tensor, lengths: Tensor, alpha: float) -> Tensor:
    """Logits (M, V), in the order of `CaptionModel.decode`, of the policy that the captions were drawn from.

    captions (N, T) from <start>, lengths (N,). Words that are never written have -inf. A word that would repeat a
    trigram loses alpha * ln 2 per earlier time, as `Search.trigram_penalty_alpha` describes.
    """
    logits = logits.index_fill(1, torch.tensor(NEVER_WRITTEN, device=logits.device), -torch.inf)
    if alpha <= 0 or captions.shape[1] < 5:
        return logits
    token, word = repeated_trigrams(captions[:, 1:], Packing.of(lengths - 1, captions.device))
    penalty = logits.new_full((len(token),), -alpha * math.log(2))
    return logits.index_put((token, word), penalty, accumulate=True)


def repeated_trigrams(words: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
    """Which packed token (P,) would repeat a trigram with which word (P,): a pair for each earlier time of each.

    words (N, T): the captions without <start>, whose real ones `packing` names.
    """
    place = torch.full_like(words, -1)  # of a word in the packed order
    place[packing.row, packing.time] = torch.arange(len(packing.row), device=words.device)
    # the pair before word t, and the pairs that begin at p
    same = (words[:, :-2].unsqueeze(1) == words[:, :-2].unsqueeze(2)) & (
        words[:, 1:-1].unsqueeze(1) == words[:, 1:-1].unsqueeze(2)
    )  # (N, t - 2, p)
    row, time, earlier = same.tril(-1).nonzero(as_tuple=True)
    token, word = place[row, time + 2], words[row, earlier + 2]
    real = token >= 0
    return token[real], word[real]


def baselined(scores: np.ndarray, n_images: int, greedy: np.ndarray | None) -> np.ndarray:
    """Scores (N,) minus their baseline: that of the image's greedy caption (B,), else the mean of its other samples."""
    grouped = scores.reshape(n_images, -1)
    if greedy is not None:
        return (grouped - greedy.reshape(n_images, 1)).reshape(-1)
    others = (grouped.sum(1, keepdims=True) - grouped) / (grouped.shape[1] - 1)
    return (grouped - others).reshape(-1)


def self_critical_loss(logits: Tensor, targets: Tensor, advantage: Tensor, temperature: float = 1) -> Tensor:
    """Mean over tokens of -log p(token) times its caption's advantage: logits (M, V), targets (M,), advantage (M,)."""
    return -(log_probs_of(logits / temperature, targets) * advantage).mean()


class SelfCritical(Objective):
    """The rewarded captions that the model draws; mixed losses add the cross-entropy of the true captions.

    What is minimised is a mean over sentences: then the expected gradient is exactly that of minus the expected reward.
    A mean over the drawn tokens (`self_critical_mean` "tokens") weighs a sentence by how long the others turned out.

    settings: `self_critical_loss`, `self_critical_mean`, `self_critical_samples` per image (with 1 the greedy caption
    is the baseline), `self_critical_temperature`, `gamma_ml_rl`, `trigram_penalty_alpha`. reward: CIDEr-D of the
    training images. word_counts: how often each word was written, for mixed_with_face.
    """

    has_reward = True

    def __init__(self, settings: TrainSettings, reward: CiderReward):
        super().__init__(settings)
        self.reward, self.loss = reward, settings.self_critical_loss
        self.mixed, self.by_sentence = self.loss.startswith("mixed"), settings.self_critical_mean == "sentences"
        self.word_counts = WordCounts(len(reward.words)) if self.loss == "mixed_with_face" else None

    def state_dict(self) -> dict:
        return {"word_counts": self.word_counts and self.word_counts.counts}

    def load_state_dict(self, state: dict) -> None:
        counts = state.get("word_counts")
        if self.word_counts is not None and counts is not None:
            if not isinstance(counts, Tensor) or counts.shape != self.word_counts.counts.shape:
                raise UserError("the checkpoint's word counts (mixed_with_face) are not those of this vocabulary")
            self.word_counts.counts = counts.double().clone()

    def counts(self, batch) -> tuple[int, ...]:
        """The numbers of drawn and of true sentences; those of drawn tokens are not known before they are drawn."""
        assert self.by_sentence, "self_critical_mean: sentences"
        return len(batch.items) * self.settings.self_critical_samples, len(batch.lengths)

    def __call__(self, captioner: Captioner, batch, step: int) -> StepLoss:
        drawn = self._drawn_loss(captioner, batch)
        return self._mixed(drawn, captioner, batch, step) if self.mixed else drawn

    def _drawn_loss(self, captioner: Captioner, batch) -> StepLoss:
        """The self-critical loss. No dropout: the gradient must be that of what was drawn."""
        s, model, device = self.settings, captioner.model, captioner.device
        model.eval()
        with autocast(device, s.amp):
            memory = model.encode(*batch_inputs(captioner, batch))  # once: for drawing and for the gradient
            captions, lengths, row_image = sampled_captions(model, memory, s)
            greedy = greedy_captions(model, memory, s) if s.self_critical_samples == 1 else None
        keys = [image_key(item) for item in batch.items]
        wanted, reported, added, reward = self.advantages(keys, captions[:, 1:].tolist(), greedy)
        with autocast(device, s.amp):
            logits, targets, _, row = model.decode(memory, captions, lengths, row_image)
        logits = policy_logits(full_precision(logits), captions, lengths, s.trigram_penalty_alpha)
        if self.word_counts is not None:
            self.word_counts.add(targets.cpu() if batch.counted else targets.cpu()[:0])
        temperature = s.self_critical_temperature
        total = self_critical_loss(logits, targets, wanted.to(device)[row], temperature)
        loss = total.detach()
        if added is not None:
            loss = added + self_critical_loss(logits.detach(), targets, reported.to(device)[row], temperature)
        part = self._as_mean(total, len(targets), len(captions))
        return StepLoss([part], loss, len(targets), reward)

    def _as_mean(self, per_token: Tensor, tokens: int, sentences: int) -> Mean:
        """What is minimised of a loss per token: it, or the mean over sentences of its sum over their words."""
        return Mean(per_token * tokens / sentences, sentences) if self.by_sentence else Mean(per_token, tokens)

    def _mixed(self, drawn: StepLoss, captioner: Captioner, batch, step: int) -> StepLoss:
        """gamma * the self-critical loss + (1 - gamma) * the cross-entropy of the true captions, with dropout.

        Both are means over sentences of sums over their words, as in the paper, or both are means over tokens.
        """
        gamma, device = self.settings.gamma_ml_rl, captioner.device
        captioner.model.train()
        logits, targets, _, _ = self.teacher_forced(captioner, batch, step)
        if self.word_counts is None:
            truth = token_cross_entropy(logits, targets, self.settings.label_smoothing)
        else:
            truth = face_loss(logits, targets, self.word_counts.weights().to(device))
        rewarded = [Mean(gamma * part.value, part.count) for part in drawn.parts]
        wanted = self._as_mean((1 - gamma) * truth, len(targets), len(batch.lengths))
        reported = gamma * drawn.reported + (1 - gamma) * truth.detach()
        return replace(drawn, parts=[*rewarded, wanted], reported=reported)

    def advantages(
        self, keys: list, rows: list[list[int]], greedy: list[list[int]] | None
    ) -> tuple[Tensor, Tensor, float | None, float]:
        """Advantages (N,) that the gradient takes, those of CIDEr-D alone, the added term's value, the mean CIDEr-D.

        keys: of the B images; rows: word ids of N samples; greedy: of B greedy captions, or None.
        """
        samples = [upto_end(row, keep_end=True) for row in rows]
        compared = None if greedy is None else [upto_end(row, keep_end=True) for row in greedy]
        owners = [key for key in keys for _ in range(len(rows) // len(keys))]
        scores = self._scores(owners, samples)
        cider = baselined(scores, len(keys), None if compared is None else self._scores(keys, compared))
        term = self._term(owners, samples)
        wanted = cider
        if term is not None:
            others = None if compared is None or term.centred else self._term(keys, compared).costs
            wanted = cider - (term.costs if term.centred else baselined(term.costs, len(keys), others))
        both = torch.from_numpy(wanted).float(), torch.from_numpy(cider).float()
        return *both, term and term.value, float(scores.mean())

    def _scores(self, keys: list, samples: list[list[int]]) -> np.ndarray:
        return np.array([self.reward.score_ids(*pair) for pair in zip(keys, samples)])

    def _term(self, keys: list, samples: list[list[int]]):
        if self.loss == "sc" or self.mixed:
            return None
        kept = {key: self.reward.reference_tokens(key) for key in dict.fromkeys(keys)}
        return extra_term(self.loss, [self.reward.tokens(sample) for sample in samples], [kept[key] for key in keys])
