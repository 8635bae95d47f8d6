"""Self-critical sequence training (Rennie et al. 2017): the CIDEr-D of sampled captions as the reward.

The baseline of a sample is the mean reward of the image's other samples (Luo 2020, "A better variant of self-critical
sequence training"), or with one sample per image the reward of its greedy caption.

The policy is softmax(logits / temperature), when drawing and in the gradient alike. Below 1 it is sharper than the
model: one trained with label smoothing would otherwise draw a random word in ten, and rewards would say little.

Shapes: B images, N = B * samples rows, M real tokens, T time steps.
"""

import math

import numpy as np
import torch
from torch import Tensor

from cider_reward import CiderReward
from decoding import Search, generate_rows, memory_device
from recurrence import Packing
from vocabulary import END, PAD, START

__all__ = [
    "CiderReward",
    "advantages",
    "baselined",
    "policy_logits",
    "sampled_captions",
    "self_critical_loss",
    "upto_end",
]


def sampled_captions(
    model, memory, samples: int, max_length: int, temperature: float = 1.0, trigram_penalty_alpha: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Captions drawn from the model, `samples` for each of the B images of `memory`, without gradients.

    Returns captions (N, T) from <start> to <end>, lengths (N,) on the CPU and row_image (N,), as a batch has them.
    """
    device = memory_device(memory)
    row_image = torch.arange(len(memory), device=device).repeat_interleave(samples)
    search = Search(
        sample=True, max_length=max_length, temperature=temperature, trigram_penalty_alpha=trigram_penalty_alpha
    )
    tokens = generate_rows(model.decoder, memory.select(row_image), search).tokens[:, 0]
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
    rows = samples.tolist()
    scores = np.array([reward.score_ids(keys[i // per_image], upto_end(row)) for i, row in enumerate(rows)])
    lines = None if greedy is None else greedy.tolist()
    compared = None if lines is None else np.array([reward.score_ids(k, upto_end(row)) for k, row in zip(keys, lines)])
    return torch.tensor(baselined(scores, len(keys), compared), dtype=torch.float32), float(scores.mean())


def baselined(scores: np.ndarray, n_images: int, greedy: np.ndarray | None) -> np.ndarray:
    """Scores (N,) minus their baseline: that of the image's greedy caption (B,), else the mean of its other samples."""
    grouped = scores.reshape(n_images, -1)
    if greedy is not None:
        return (grouped - greedy.reshape(n_images, 1)).reshape(-1)
    others = (grouped.sum(1, keepdims=True) - grouped) / (grouped.shape[1] - 1)
    return (grouped - others).reshape(-1)


def upto_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(END) + 1] if END in ids else ids


def self_critical_loss(logits: Tensor, targets: Tensor, advantage: Tensor, temperature: float = 1) -> Tensor:
    """Mean over tokens of -log p(token) times its caption's advantage: logits (M, V), targets (M,), advantage (M,)."""
    log_prob = (logits.float() / temperature).log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return -(log_prob * advantage).mean()
