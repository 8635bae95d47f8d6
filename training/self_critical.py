"""Self-critical sequence training (Rennie et al. 2017): the CIDEr-D of sampled captions as the reward.

The baseline of a sample is the mean reward of the image's other samples (Luo 2020, "A better variant of self-critical
sequence training"), or with one sample per image the reward of its greedy caption.

The policy is softmax(logits / temperature), when drawing and in the gradient alike. Below 1 it is sharper than the
model: one trained with label smoothing would otherwise draw a random word in ten, and rewards would say little.

Shapes: B images, N = B * samples rows, M real tokens, T time steps.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from captioning.datasets.base import image_key
from captioning.decoder.search import Search, generate_rows
from captioning.fast.steps import fast_decoder, ready
from captioning.rows import Packing
from captioning.text.tokens import PAD, START, upto_end
from model import batch_inputs
from training.cider_reward import CiderReward
from training.losses import token_cross_entropy
from training.self_critical_terms import WordCounts, extra_term, face_loss


def sampled_captions(
    model, memory, samples: int, max_length: int, temperature: float = 1.0, trigram_penalty_alpha: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Captions drawn from the model, `samples` for each of the B images of `memory`, without gradients.

    Returns captions (N, T) from <start> to <end>, lengths (N,) on the CPU and row_image (N,), as a batch has them.
    """
    row_image = torch.arange(len(memory), device=memory.device).repeat_interleave(samples)
    search = Search(
        sample=True, max_length=max_length, temperature=temperature, trigram_penalty_alpha=trigram_penalty_alpha
    )
    decoder = fast_decoder(model.decoder)
    tokens = generate_rows(*ready(decoder, memory.select(row_image)), search).tokens[:, 0]
    tokens = tokens[:, :max_length]  # an <end> after the longest caption was forced, not drawn: it has no gradient
    captions = torch.cat([torch.full_like(tokens[:, :1], START), tokens], 1)
    return captions, (captions != PAD).sum(1).cpu(), row_image


def policy_logits(logits: Tensor, captions: Tensor, lengths: Tensor, alpha: float) -> Tensor:
    """Logits (M, V), in the order of `CaptionModel.decode`, less the trigram penalty that the captions were drawn with.

    captions (N, T) from <start>, lengths (N,). A word that would repeat a trigram loses alpha * ln 2 per earlier time:
    the gradient must be that of the policy that drew the words, which `Search.trigram_penalty_alpha` describes.
    """
    words = captions[:, 1:]
    n_rows, n_steps = words.shape
    if alpha <= 0 or n_steps < 4:
        return logits
    packing = Packing.of(lengths - 1, captions.device)
    place = torch.full((n_rows, n_steps), -1, device=captions.device)  # of the token in `logits`
    place[packing.row, packing.time] = torch.arange(len(logits), device=captions.device)
    # the pair before word t, and the pairs that begin at p
    same = (words[:, :-2].unsqueeze(1) == words[:, :-2].unsqueeze(2)) & (
        words[:, 1:-1].unsqueeze(1) == words[:, 1:-1].unsqueeze(2)
    )  # (N, t - 2, p)
    row, time, earlier = same.tril(-1).nonzero(as_tuple=True)
    token, word = place[row, time + 2], words[row, earlier + 2]
    real = token >= 0
    penalty = logits.new_full((int(real.sum()),), -alpha * math.log(2))
    return logits.index_put((token[real], word[real]), penalty, accumulate=True)


def advantages(reward: CiderReward, keys: list, samples: Tensor, greedy: Tensor | None) -> tuple[Tensor, float]:
    """Reward of each sample minus its baseline (N,), and the mean reward.

    keys: of the B images; samples (N, T) ids; greedy (B, T) ids of greedy captions where N = B, else None.
    """
    per_image = len(samples) // len(keys)
    owners = [key for key in keys for _ in range(per_image)]

    def scored(owners: list, rows: list) -> np.ndarray:
        return np.array([reward.score_ids(key, upto_end(row, keep_end=True)) for key, row in zip(owners, rows)])

    scores = scored(owners, samples.tolist())
    compared = None if greedy is None else scored(keys, greedy.tolist())
    return torch.tensor(baselined(scores, len(keys), compared), dtype=torch.float32), float(scores.mean())


def baselined(scores: np.ndarray, n_images: int, greedy: np.ndarray | None) -> np.ndarray:
    """Scores (N,) minus their baseline: that of the image's greedy caption (B,), else the mean of its other samples."""
    grouped = scores.reshape(n_images, -1)
    if greedy is not None:
        return (grouped - greedy.reshape(n_images, 1)).reshape(-1)
    others = (grouped.sum(1, keepdims=True) - grouped) / (grouped.shape[1] - 1)
    return (grouped - others).reshape(-1)


def self_critical_loss(logits: Tensor, targets: Tensor, advantage: Tensor, temperature: float = 1) -> Tensor:
    """Mean over tokens of -log p(token) times its caption's advantage: logits (M, V), targets (M,), advantage (M,)."""
    log_prob = (logits.float() / temperature).log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return -(log_prob * advantage).mean()


MAX_LENGTH = 20  # words


class SelfCritical:
    """Reward, loss and settings of self-critical training; meanings and defaults are those of train.py's flags.

    loss: one of `self_critical_losses.NAMES`. samples: captions drawn per image; with 1 the greedy caption is the
    baseline. word_counts: how often each word was written, for mixed_with_face (None: begin at nothing).
    """

    def __init__(
        self,
        reward: CiderReward,
        loss: str = "sc",
        samples: int = 5,
        temperature: float = 0.5,
        gamma: float = 0.9995,
        trigram_penalty_alpha: float = 0.0,
        word_counts: Tensor | None = None,
    ):
        self.reward, self.loss, self.samples, self.temperature = reward, loss, samples, temperature
        self.gamma, self.trigram_penalty_alpha = gamma, trigram_penalty_alpha
        self.word_counts = None
        if loss == "mixed_with_face":
            self.word_counts = WordCounts(len(reward.words), "cpu")
            if word_counts is not None:
                self.word_counts.counts = word_counts.double().clone()

    @property
    def mixed(self) -> bool:
        return self.loss.startswith("mixed")

    def losses(self, captioner, batch, autocast: Callable) -> tuple[Tensor, Tensor, int, float]:
        """The loss that is reported, what is minimised, the number of drawn tokens, and the mean CIDEr-D.

        autocast: gives the context that the model computes in. No dropout: the gradient must be that of what was drawn.
        """
        model, device, alpha = captioner.model, captioner.device, self.trigram_penalty_alpha
        model.eval()
        with autocast():
            memory = model.encode(*batch_inputs(captioner, batch))  # once: for drawing and for the gradient
        with torch.no_grad():
            captions, lengths, row_image = sampled_captions(
                model, memory, self.samples, MAX_LENGTH, self.temperature, alpha
            )
            greedy = None
            if self.samples == 1:
                search = Search(max_length=MAX_LENGTH, trigram_penalty_alpha=alpha)
                greedy = generate_rows(*ready(fast_decoder(model.decoder), memory), search).tokens[:, 0].tolist()
        keys = [image_key(item) for item in batch.items]
        wanted, reported, added, reward = self.advantages(keys, captions[:, 1:].tolist(), greedy)
        with autocast():
            logits, targets, _, row = model.decode(memory, captions, lengths, row_image)
        logits = policy_logits(logits.float(), captions, lengths, alpha)
        if self.word_counts is not None:
            self.word_counts.add(targets.cpu())
        total = self_critical_loss(logits, targets, wanted.to(device)[row], self.temperature)
        loss = total.detach()
        if added is not None:
            loss = added + self_critical_loss(logits.detach(), targets, reported.to(device)[row], self.temperature)
        return loss, total, len(targets), reward

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
        wanted, value = cider, None
        term = self._term(owners, samples)
        if term is not None:
            costs = term.costs
            if not term.centred:
                others = None if compared is None else self._term(keys, compared).costs
                costs = baselined(costs, len(keys), others)
            wanted, value = cider - costs, term.value
        return _to_tensor(wanted), _to_tensor(cider), value, float(scores.mean())

    def _scores(self, keys: list, samples: list[list[int]]) -> np.ndarray:
        return np.array([self.reward.score_ids(*pair) for pair in zip(keys, samples)])

    def _term(self, keys: list, samples: list[list[int]]):
        if self.loss == "sc" or self.mixed:
            return None
        kept = {key: self.reward.reference_tokens(key) for key in dict.fromkeys(keys)}
        return extra_term(self.loss, [self.reward.tokens(sample) for sample in samples], [kept[key] for key in keys])

    def cross_entropy(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """The second part of the mixed losses, on the true captions: logits (M, V), targets (M,)."""
        if self.word_counts is None:
            return token_cross_entropy(logits, targets, label_smoothing)
        return face_loss(logits, targets, self.word_counts.weights().to(logits.device))


def _to_tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
