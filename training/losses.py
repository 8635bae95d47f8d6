"""What a step minimises: the losses over the real tokens of a batch (padding is never computed), and cross-entropy.

Every objective is called in the same way: `objective(captioner, batch, step)` returns a `StepLoss`. Cross-entropy is
below; paragraphs, distillation and self-critical training have a module each.

Shapes: M real tokens, V vocabulary, N rows, R regions, H hidden.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.decoder.teacher_forcing import truth_probability
from captioning.devices import autocast, process, summed
from captioning.fast.cross_entropy import output_cross_entropy
from captioning.rows import ImageMemory, Packing
from model import Captioner, CaptionModel, batch_inputs
from training.settings import TrainSettings


def token_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats per token: logits (M, V), targets (M,). Smoothing as in Szegedy et al. 2016."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def caption_cross_entropy(
    model: CaptionModel,
    memory: ImageMemory,
    captions: Tensor,
    lengths: Tensor,
    row_image: Tensor,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, int, Tensor | None, Tensor]:
    """`token_cross_entropy` of `model.decode(memory, ...)` of a model of sentences, made without its logits.

    captions, lengths and row_image as there.
    Returns the loss, the number of tokens M, attention weights (M, R) or None, the row of each token (M,).
    """
    packing = Packing.of(lengths - 1, captions.device)
    outputs, weights = model.decoder.outputs(memory, captions, packing, row_image)
    layer, targets = model.decoder.linear, packing.targets(captions)
    loss = output_cross_entropy(outputs, layer.weight, layer.bias, targets, label_smoothing)
    return loss, len(targets), weights, packing.row


def attention_regularisation(weights: Tensor, row: Tensor, n_rows: int) -> Tensor:
    """Doubly stochastic attention (Xu et al. 2015, eq. 14): the mean of (1 - sum over time of weights)^2.

    weights (M, R) of the real tokens, row (M,) the row of each. The paper sums over the regions; the mean makes the
    factor independent of their number. Regions that an image lacks, whose weights are 0, are left out of its mean.
    """
    over_time = weights.new_zeros(n_rows, weights.shape[1]).index_add(0, row, weights)
    there = over_time.detach() != 0
    of_rows = ((1 - over_time) ** 2 * there).sum(1) / there.sum(1).clamp(min=1)
    return of_rows.mean()


def projection_regularisation(weight: Tensor) -> Tensor:
    """||P||_2 of the projection (H, H) in front of a shared output embedding (Press and Wolf 2017).

    The root of the sum of squares of all its numbers; the paper adds 0.15 times this to the loss.
    """
    return weight.float().norm()


class Mean(NamedTuple):
    """A part of a loss: the mean of `count` tokens, sentences or rows, which is its weight among several processes."""

    value: Tensor
    count: int


@dataclass
class StepLoss:
    """The loss of a batch, as an objective returns it.

    parts: what is minimised is their sum. reported: what is shown, in nats per token, without gradients; on the device,
    not waited for. tokens: M. reward: the mean CIDEr-D of captions that were drawn, else 0. captions: of the batch.
    others: further figures of an epoch's row, by name, without gradients.
    """

    parts: list[Mean]
    reported: Tensor
    tokens: int | Tensor
    reward: float | Tensor = 0.0
    captions: int | Tensor = 0
    others: dict[str, Mean] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return sum(part.value for part in self.parts)

    def without_weight(self) -> "StepLoss":
        """The loss of a batch that does not count."""
        others = {name: Mean(part.value, 0) for name, part in self.others.items()}
        return replace(self, parts=[Mean(part.value, 0) for part in self.parts], tokens=0, captions=0, others=others)

    def over_processes(self) -> "StepLoss":
        """The loss as one process has it that has the batches of all; of its parts only what this process adds.

        The gradients of `total` must then be summed over the processes. All of them must call it.
        """
        if process()[1] == 1:
            return self
        device, reward = self.reported.device, torch.tensor(self.reward)
        means = [Mean(self.reported, self.tokens), Mean(reward, self.captions), *self.others.values()]
        counts = torch.tensor([n for _, n in [*self.parts, *means]], dtype=torch.float64, device=device)
        sums = torch.stack([value.detach().to(counts) * n for value, n in means])
        everywhere = summed(torch.cat([counts, sums]))
        sums, everywhere = everywhere[len(counts) :], everywhere[: len(counts)]
        shares = counts / everywhere.clamp(min=1)
        parts = [Mean(part.value * share, part.count) for part, share in zip(self.parts, shares)]
        of_means = everywhere[len(parts) :]
        loss, reward, *others = (Mean(total / n.clamp(min=1), n) for total, n in zip(sums, of_means))
        return StepLoss(parts, *loss, *reward, dict(zip(self.others, others)))


class Objective:
    """What training minimises: called with a captioner, a batch and the step, it returns a `StepLoss`.

    has_reward: whether its `StepLoss.reward` means something.
    """

    has_reward = False

    def __init__(self, settings: TrainSettings):
        self.settings = settings

    def __call__(self, captioner: Captioner, batch, step: int) -> StepLoss:
        raise NotImplementedError

    def counts(self, batch) -> tuple[int, ...]:
        """How many tokens, sentences or rows each part of the loss of `batch` is a mean of; the last for all further.

        They are known before the loss is computed.
        """
        return int(batch.lengths.sum()) - len(batch.lengths), len(batch.lengths)

    def state_dict(self) -> dict:
        """What an exact resume needs of the objective, in plain types and tensors."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict()` was taken."""

    def forcing(self, step: int) -> tuple[str, float, torch.Generator] | None:
        """How much of the true captions the decoder reads at `step`, as `CaptionModel.forward` takes it."""
        s = self.settings
        if s.teacher_forcing == "always":
            return None
        p = truth_probability(step, s.teacher_forcing_k, s.teacher_forcing_beta)
        return s.teacher_forcing, p, torch.Generator().manual_seed(s.seed * 1_000_003 + step)

    def teacher_forced(self, captioner: Captioner, batch, step: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Logits, targets, attention weights and rows of the batch's captions, as `CaptionModel.forward` gives them."""
        with autocast(captioner.device, self.settings.amp):
            captions = captions_of(batch, captioner.device)
            return captioner.model(*batch_inputs(captioner, batch), *captions, self.forcing(step))

    def penalties(self, captioner: Captioner, weights: Tensor | None, row: Tensor, rows: int) -> list[Mean]:
        """The penalties that the settings ask for; attention weights (M, R), the row of each, rows N."""
        s, parts = self.settings, []
        if s.regularize_attn and weights is not None:
            parts.append(Mean(s.regularize_attn * attention_regularisation(weights, row, rows), rows))
        if s.regularize_projection and captioner.config.projection:
            weight = captioner.model.sentence_decoder.projection.weight
            parts.append(Mean(s.regularize_projection * projection_regularisation(weight), rows))
        return parts


class CrossEntropy(Objective):
    """The cross-entropy of the true words of a model of sentences."""

    def __call__(self, captioner: Captioner, batch, step: int) -> StepLoss:
        s = self.settings
        if s.teacher_forcing == "always" and s.amp == "off" and captioner.device.type == "cpu":
            memory = captioner.model.encode(*batch_inputs(captioner, batch))  # no logits are needed beyond the loss
            captions = captions_of(batch, captioner.device)
            loss, tokens, weights, row = caption_cross_entropy(captioner.model, memory, *captions, s.label_smoothing)
        else:
            logits, targets, weights, row = self.teacher_forced(captioner, batch, step)
            loss, tokens = token_cross_entropy(logits, targets, s.label_smoothing), len(targets)
        penalties = self.penalties(captioner, weights, row, len(batch.lengths))
        return StepLoss([Mean(loss, tokens), *penalties], loss.detach(), tokens)


def captions_of(batch, device) -> tuple[Tensor, Tensor, Tensor]:
    """Captions, lengths (on the CPU) and rows' images of a batch, as `CaptionModel.forward` takes them."""
    captions, row_image = (x.to(device, non_blocking=True) for x in (batch.captions, batch.row_image))
    return captions, batch.lengths, row_image
