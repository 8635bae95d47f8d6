"""One self-critical step: draw captions, reward them, and the loss whose gradient raises the reward.

Shapes: B images, N = B * samples rows, M real tokens, T time steps, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cider_reward import CiderReward
from dataset_items import image_key
from decoding import Search, generate_rows
from losses import token_cross_entropy
from model import batch_inputs
from self_critical import baselined, policy_logits, sampled_captions, self_critical_loss, upto_end
from self_critical_losses import WordCounts, extra_term, face_loss

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
                greedy = generate_rows(model.decoder, memory, search).tokens[:, 0].tolist()
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
        samples = [upto_end(row) for row in rows]
        compared = None if greedy is None else [upto_end(row) for row in greedy]
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
        return _tensor(wanted), _tensor(cider), value, float(scores.mean())

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


def _tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
