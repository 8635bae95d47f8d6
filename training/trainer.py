"""Training and validating a captioner: optimizers, schedules, one epoch, and what a validation measures.

A `Trainer` knows nothing of command lines or files. Its randomness is a function of (seed, step), so that an exact
resume needs counters and no generator states.

Shapes: N rows (captions), M real tokens, R regions, V vocabulary.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from captioning.decoder.teacher_forcing import truth_probability
from captioning.devices import autocast, share_of_tokens, sum_gradients
from captioning.errors import UserError
from model import Captioner, batch_inputs
from training.distillation import Teachers
from training.losses import (
    attention_regularisation,
    caption_cross_entropy,
    projection_regularisation,
    token_cross_entropy,
)
from training.optimizers import SELF_CRITICAL_RATE, learning_rate, make_optimizer, make_plateau
from training.paragraph_losses import paragraph_losses, word_decoder_apart
from training.self_critical import SelfCritical
from training.settings import Settings


class Trainer:
    """Optimizer, schedule and averaged weights of a captioner, and the loop over one epoch.

    step: steps taken since training (re)started; the random numbers and, from step `began` on, the schedules follow it.
    self_critical: set for self-critical training instead of cross-entropy; teachers: set for distillation.
    turned: the epoch from which on a run was self-critical that was not before, else 0.
    """

    def __init__(self, captioner: Captioner, settings: Settings, steps_per_epoch: int, num_epochs: int):
        self.captioner, self.settings = captioner, settings
        self.steps_per_epoch, self.num_epochs = steps_per_epoch, num_epochs
        decoder, words = word_decoder_apart(captioner.model)
        encoder = [p for p in captioner.model.extractors.parameters() if p.requires_grad]
        self.parameters, self.groups = decoder + encoder + words, (decoder, encoder, words)
        self.optimizer = make_optimizer(settings, *self.groups)
        self.plateau = make_plateau() if settings.lr_scheduler == "ReduceLROnPlateau" else None
        self.average = [p.detach().clone() for p in self.parameters] if settings.ema else None
        self.step = self.began = self.turned = 0
        self.self_critical: SelfCritical | None = None
        self.was_self_critical = False  # as the checkpoint says that training goes on from
        self.word_counts: Tensor | None = None  # of mixed_with_face, from the checkpoint
        self.teachers: Teachers | None = None

    def turn_self_critical(self, epoch: int, epochs_left: int) -> None:
        """Begin the optimizer, the schedules and the averaged weights anew before `epoch`, with Adam as DeepCaption."""
        self.turned, self.began, self.num_epochs = epoch, self.step, epochs_left
        self._adam()
        self.plateau = self.plateau and make_plateau()
        self.average = self.average and [p.detach().clone() for p in self.parameters]

    def _adam(self) -> None:
        s = self.settings
        rate = s.self_critical_learning_rate or SELF_CRITICAL_RATE
        encoder = s.encoder_learning_rate and s.encoder_learning_rate * rate / s.learning_rate
        self.settings = replace(s, optimizer="adam", learning_rate=rate, encoder_learning_rate=encoder)
        self.optimizer = make_optimizer(self.settings, *self.groups)

    def train_epoch(self, loader, on_step: Callable, resumed: dict | None = None) -> "Progress":
        """Train over the batches of `loader` from the position it is set to.

        on_step(progress, index of the batch) is called after each step; True ends the epoch early. resumed: what
        `Progress.state()` gave when the epoch was interrupted.
        """
        self.captioner.model.train()
        progress = Progress(self.captioner.device, resumed)
        for batch in loader:
            progress.add(*self.train_step(batch), len(batch.lengths))
            if on_step(progress, batch.index):
                break
        return progress

    def train_step(self, batch) -> tuple[Tensor, int, float]:
        """One step: the batch's loss (on the device, not waited for), its number of tokens and its mean reward."""
        s = self.settings
        reseed(s.seed, self.step)
        rate = learning_rate(s, self.step - self.began, self.steps_per_epoch, self.num_epochs)
        if self.plateau is not None:
            rate *= self.plateau.optimizer.param_groups[0]["lr"]
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        losses = self._losses if self.self_critical is None else self._self_critical_losses
        loss, total, tokens, reward = losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        share = share_of_tokens(tokens, total.device)
        (total * share).backward()
        sum_gradients(self.parameters)
        if s.grad_clip:
            nn.utils.clip_grad_value_(self.parameters, s.grad_clip)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self._update_average()
        return loss.detach(), tokens, reward

    def _inputs(self, batch) -> tuple:
        """Pixels, inputs, captions, lengths and rows' images of a batch, as `CaptionModel.forward` takes them."""
        device = self.captioner.device
        captions, row_image = (x.to(device, non_blocking=True) for x in (batch.captions, batch.row_image))
        return *batch_inputs(self.captioner, batch), captions, batch.lengths, row_image

    def _teacher_forced(self, batch) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Logits, targets, attention weights and rows of the batch's captions, as `CaptionModel.forward` gives them."""
        with autocast(self.captioner.device, self.settings.amp):
            return self.captioner.model(*self._inputs(batch), self._forcing())

    def _losses(self, batch) -> tuple[Tensor, Tensor, int, float]:
        """The cross-entropy that is reported, what is minimised, the number of tokens, and no reward."""
        s, model = self.settings, self.captioner.model
        if self.captioner.config.paragraphs is not None:
            return self._paragraph_losses(batch)
        plain = self.teachers is None and s.teacher_forcing == "always" and s.amp == "off"
        if plain and self.captioner.device.type == "cpu":  # no logits are needed beyond the loss
            loss, tokens, weights, row = caption_cross_entropy(model, *self._inputs(batch), s.label_smoothing)
        else:
            logits, targets, weights, row = self._teacher_forced(batch)
            loss, tokens = token_cross_entropy(logits, targets, s.label_smoothing), len(targets)
        total = loss
        if self.teachers is not None:
            total = self.teachers.mixed(loss, logits, batch, s.distill_weight, s.distill_temperature)
        return loss, self._regularised(total, weights, row, len(batch.lengths)), tokens, 0.0

    def _regularised(self, total: Tensor, weights: Tensor | None, row: Tensor, rows: int) -> Tensor:
        """`total` with the penalties that are asked for; attention weights (M, R), the row of each."""
        s, model = self.settings, self.captioner.model
        if s.regularize_attn and weights is not None:
            total = total + s.regularize_attn * attention_regularisation(weights, row, rows)
        if s.regularize_projection and self.captioner.config.projection:
            weight = model.sentence_decoder.projection.weight
            total = total + s.regularize_projection * projection_regularisation(weight)
        return total

    def _forcing(self) -> tuple[str, float, torch.Generator] | None:
        """How much of the truth this step's decoder sees, as `CaptionModel.forward` takes it."""
        s = self.settings
        if s.teacher_forcing == "always":
            return None
        p = truth_probability(self.step, s.teacher_forcing_k, s.teacher_forcing_beta)
        return s.teacher_forcing, p, torch.Generator().manual_seed(s.seed * 1_000_003 + self.step)

    def _paragraph_losses(self, batch) -> tuple[Tensor, Tensor, int, float]:
        """As `_losses`, of a hierarchical model."""
        s, captioner = self.settings, self.captioner
        with autocast(captioner.device, s.amp):
            memory = captioner.model.encode(*batch_inputs(captioner, batch))
            losses = paragraph_losses(captioner, memory, batch, self._forcing(), s.label_smoothing)
        total = self._regularised(losses.total, losses.weights, losses.row, len(batch.lengths))
        return losses.total, total, losses.tokens, 0.0

    def _self_critical_losses(self, batch) -> tuple[Tensor, Tensor, int, float]:
        """As `_losses`, from captions that the model draws; a mixed loss adds the cross-entropy of the true ones."""
        s, objective, device = self.settings, self.self_critical, self.captioner.device
        loss, total, tokens, reward = objective.losses(self.captioner, batch, lambda: autocast(device, s.amp))
        if objective.mixed:
            self.captioner.model.train()
            logits, targets, _, _ = self._teacher_forced(batch)
            truth = objective.cross_entropy(logits, targets, s.label_smoothing)
            # the whole will be weighed by this process' share of the drawn tokens
            share = share_of_tokens(len(targets), device) / share_of_tokens(tokens, device)
            loss = objective.gamma * loss + (1 - objective.gamma) * truth.detach()
            total = objective.gamma * total + (1 - objective.gamma) * truth * share
        return loss, total, tokens, reward

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average of the weights, warmed up so that the first steps do not weigh for long."""
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within it the model has the averaged weights, where they are kept."""
        if self.average is None:
            yield
            return
        current = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, current)

    def epoch_ended(self, row: dict[str, float]) -> None:
        """Tell the plateau schedule the epoch's figures.

        It looks at the validation loss, or the training loss where nothing is validated; in self-critical training at
        the validation CIDEr where there is one, since the loss means little there.
        """
        if self.plateau is None:
            return
        loss = row.get("validation_loss", row["training_loss"])
        if self.self_critical is not None and "validation_cider" in row:
            loss = -row["validation_cider"]
        self.plateau.step(loss)

    def state_dict(self) -> dict:
        counts = self.self_critical and self.self_critical.word_counts
        return {
            "step": self.step,
            "num_epochs": self.num_epochs,
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau and {k: v for k, v in self.plateau.state_dict().items() if not callable(v)},
            "plateau_factor": self.plateau and self.plateau.optimizer.param_groups[0]["lr"],
            "average": self.average,
            "began": self.began,
            "turned": self.turned,
            "self_critical": self.self_critical is not None,
            "optimizer_name": self.settings.optimizer,
            "word_counts": counts and counts.counts,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where `state_dict()` was taken. Raises UserError where the optimizer's state does not fit."""
        self.began, self.turned = state.get("began", 0), state.get("turned", 0)
        self.was_self_critical, self.word_counts = state.get("self_critical", True), state.get("word_counts")
        if self.turned:
            self._adam()
        name = state.get("optimizer_name", self.settings.optimizer)
        if name != self.settings.optimizer:
            wanted = f"not --optimizer {self.settings.optimizer}"
            raise UserError(f"the checkpoint has the state of {name}, {wanted}: use --optimizer_reset")
        shares = [group["share"] for group in self.optimizer.param_groups]  # the flags', not the checkpoint's
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(f"the checkpoint's optimizer does not fit ({error}): use --optimizer_reset") from error
        for group, share in zip(self.optimizer.param_groups, shares):
            group["share"] = share
        self.step, self.num_epochs = state["step"], state["num_epochs"]
        if self.plateau is not None and state.get("plateau"):
            self.plateau.load_state_dict(state["plateau"])
            self.plateau.optimizer.param_groups[0]["lr"] = state["plateau_factor"]
        if self.average is not None and state.get("average"):
            torch._foreach_copy_(self.average, [x.to(self.captioner.device) for x in state["average"]])


class Progress:
    """Running sums over an epoch, kept on the device so that no step waits for it."""

    def __init__(self, device, resumed: dict | None = None):
        resumed = resumed or {"loss_sum": 0.0, "tokens": 0, "captions": 0, "reward_sum": 0.0}
        self.reward_sum = resumed["reward_sum"]
        self.loss_sum = torch.tensor(resumed["loss_sum"], dtype=torch.float64).to(device)
        self.tokens, self.captions = resumed["tokens"], resumed["captions"]
        self.began, self.before = time.monotonic(), resumed["captions"]

    def add(self, loss: Tensor, tokens: int, reward: float, captions: int) -> None:
        self.loss_sum += loss * tokens
        self.reward_sum += reward * captions
        self.tokens += tokens
        self.captions += captions

    @property
    def loss(self) -> float:
        """Nats per token so far. Waits for the device."""
        return float(self.loss_sum) / max(1, self.tokens)

    @property
    def reward(self) -> float:
        """Mean CIDEr-D of the sampled captions so far, in self-critical training."""
        return self.reward_sum / max(1, self.captions)

    @property
    def speed(self) -> float:
        """Captions per second since the epoch began or was resumed."""
        return (self.captions - self.before) / max(1e-9, time.monotonic() - self.began)

    def state(self) -> dict:
        sums = {"tokens": self.tokens, "captions": self.captions, "reward_sum": self.reward_sum}
        return {"loss_sum": float(self.loss_sum), **sums}


def reseed(seed: int, step: int) -> None:
    """All of torch's random numbers of a step are a function of (seed, step)."""
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)
