"""Self-critical sequence training (Rennie et al. 2017): the CIDEr-D of sampled captions as the reward.

The baseline of a sample is the mean reward of the image's other samples (Luo 2020, "A better variant of self-critical
sequence training"), or with one sample per image the reward of its greedy caption.

The policy is softmax(logits / temperature), when drawing and in the gradient alike. Below 1 it is sharper than the
model: one trained with label smoothing would otherwise draw a random word in ten, and rewards would say little.

Shapes: B images, N = B * samples rows, M real tokens, T time steps.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from decoding import Search, generate_rows, memory_device
from ptb_tokenizer import ptb_tokens
from vocabulary import END, PAD, START, Vocabulary

END_TOKEN = "<end>"  # scored like a word in sample and references, or a caption could stop in the middle unpunished
Vector = tuple[list[dict], list[float], int]


class CiderReward:
    """CIDEr-D (Vedantam et al. 2015) of word ids against the captions of their image, as the COCO scorer computes it.

    references: for each image its captions; document frequencies are counted over these images. Words are compared as
    PTB tokens, so that punctuation counts as little as in the scores.
    """

    def __init__(self, references: dict[object, Sequence[str]], vocabulary: Vocabulary, end_token: bool = True):
        self.words = [tuple(ptb_tokens(word)) for word in vocabulary.words]
        self.words[:4] = [(), (), (END_TOKEN,) if end_token else (), ("<unk>",)]
        last = [END_TOKEN] if end_token else []
        self.references = {key: [[*ptb_tokens(text), *last] for text in texts] for key, texts in references.items()}
        self.frequency = Counter()
        for captions in self.references.values():
            self.frequency.update({ngram for caption in captions for ngram in ngrams(caption)})
        self.log_images = math.log(max(len(self.references), 2))
        self.vectors: dict[object, list[Vector]] = {}

    def score(self, key, tokens: Iterable[str], sigma: float = 6.0) -> float:
        """CIDEr-D, times ten as usual, of PTB `tokens` against the captions of image `key`."""
        if key not in self.vectors:
            self.vectors[key] = [self._vector(caption) for caption in self.references[key]]
        counts, norms, length = self._vector(list(tokens))
        total = 0.0
        for other, other_norms, other_length in self.vectors[key]:
            similarity = 0.0
            for n in range(4):
                if norms[n] and other_norms[n]:
                    theirs = other[n]
                    shared = sum(min(v, w) * w for k, v in counts[n].items() if (w := theirs.get(k)) is not None)
                    similarity += shared / (norms[n] * other_norms[n])
            total += similarity * math.exp(-((length - other_length) ** 2) / (2 * sigma**2))
        return 10 * total / 4 / len(self.vectors[key])

    def score_ids(self, key, ids: Iterable[int]) -> float:
        """The same for word ids up to and with <end>."""
        return self.score(key, [token for i in ids for token in self.words[i]])

    def _vector(self, tokens: list[str]) -> Vector:
        """tf-idf of the n-grams of each length, their norms, and the length (the COCO scorer counts bigrams)."""
        parts: list[dict] = [{}, {}, {}, {}]
        for ngram, count in Counter(ngrams(tokens)).items():
            parts[len(ngram) - 1][ngram] = count * (self.log_images - math.log(max(1, self.frequency.get(ngram, 0))))
        return parts, [math.sqrt(sum(v * v for v in part.values())) for part in parts], max(0, len(tokens) - 1)


def ngrams(tokens: Sequence[str]) -> list[tuple]:
    """All runs of one to four tokens."""
    return [tuple(tokens[i : i + n]) for n in range(1, 5) for i in range(len(tokens) - n + 1)]


def sampled_captions(
    model, memory, samples: int, max_length: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Captions drawn from the model, `samples` for each of the B images of `memory`, without gradients.

    Returns captions (N, T) from <start> to <end>, lengths (N,) on the CPU and row_image (N,), as a batch has them.
    """
    device = memory_device(memory)
    row_image = torch.arange(len(memory), device=device).repeat_interleave(samples)
    search = Search(sample=True, max_length=max_length, temperature=temperature)
    tokens = generate_rows(model.decoder, memory.select(row_image), search).tokens[:, 0]
    tokens = tokens[:, :max_length]  # an <end> after the longest caption was forced, not drawn: it has no gradient
    captions = torch.cat([torch.full_like(tokens[:, :1], START), tokens], 1)
    return captions, (captions != PAD).sum(1).cpu(), row_image


def advantages(reward: CiderReward, keys: list, samples: Tensor, greedy: Tensor | None) -> tuple[Tensor, float]:
    """Reward of each sample minus its baseline (N,), and the mean reward.

    keys: of the B images; samples (N, T) ids; greedy (B, T) ids of greedy captions where N = B, else None.
    """
    per_image = len(samples) // len(keys)
    rows = samples.tolist()
    scores = np.array([reward.score_ids(keys[i // per_image], upto_end(row)) for i, row in enumerate(rows)])
    grouped = scores.reshape(len(keys), per_image)
    if greedy is not None:
        baseline = np.array([[reward.score_ids(k, upto_end(row))] for k, row in zip(keys, greedy.tolist())])
    else:
        baseline = (grouped.sum(1, keepdims=True) - grouped) / (per_image - 1)
    return torch.tensor((grouped - baseline).reshape(-1), dtype=torch.float32), float(scores.mean())


def upto_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(END) + 1] if END in ids else ids


def self_critical_loss(logits: Tensor, targets: Tensor, advantage: Tensor, temperature: float = 1) -> Tensor:
    """Mean over tokens of -log p(token) times its caption's advantage: logits (M, V), targets (M,), advantage (M,)."""
    log_prob = (logits.float() / temperature).log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return -(log_prob * advantage).mean()
