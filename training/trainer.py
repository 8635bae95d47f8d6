"""Training a captioner: one step, one epoch, averaged weights, and the state that an exact resume needs.

A `Trainer` knows nothing of command lines, files or losses. Its randomness is a function of (seed, step), so that an
exact resume needs counters and no generator states.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from captioning.devices import process, sum_gradients
from captioning.errors import UserError
from model import Captioner
from training.accumulation import backward
from training.losses import Objective, StepLoss
from training.optimizers import (
    ANEW,
    STATE_OF,
    ParameterGroups,
    learning_rate,
    load_optimizer,
    load_plateau,
    make_optimizer,
    make_plateau,
    shape_of,
)
from training.settings import TrainSettings


class Trainer:
    """Optimizer, schedule and averaged weights of a captioner, and the loop over one epoch.

    objective: what is minimised; steps: those of an epoch. The attribute step counts steps since training (re)started;
    the random numbers and, from step `began` on, the schedules follow it. turned: epoch of the last `restart`, or 0.
    """

    def __init__(
        self, captioner: Captioner, settings: TrainSettings, objective: Objective, steps: int = 1, num_epochs: int = 1
    ):
        self.captioner, self.settings, self.objective = captioner, settings, objective
        self.steps_per_epoch, self.num_epochs = steps, num_epochs
        self.groups = ParameterGroups.of(captioner.model)
        self.parameters = self.groups.every
        self.optimizer = make_optimizer(settings, self.groups)
        self.plateau = make_plateau() if settings.lr_scheduler == "ReduceLROnPlateau" else None
        self.average = [p.detach().clone() for p in self.parameters] if settings.ema else None
        self.step = self.began = self.turned = 0
        self.bad_step: torch.Tensor | None = None  # on a GPU: the first step that was not finite, or -1

    def restart(self, objective: Objective, epoch: int, epochs_left: int) -> None:
        """Go on with another objective from `epoch` on: optimizer, schedules and averaged weights begin anew.

        The optimizer is Adam with `self_critical_learning_rate`, as DeepCaption has it; about the weight decay see
        `self_critical_settings`.
        """
        self.objective, self.turned, self.began, self.num_epochs = objective, epoch, self.step, epochs_left
        self._adam()
        self.plateau = self.plateau and make_plateau()
        self.average = self.average and [p.detach().clone() for p in self.parameters]

    @property
    def method(self) -> str:
        """The optimizer and its learning rate, in words."""
        s = self.settings
        if s.lr_scheduler == "CyclicalLR":
            return f"{s.optimizer} at learning rates from {s.lr_cyclical_min:g} to {s.lr_cyclical_max:g} (CyclicalLR)"
        return f"{s.optimizer} at a learning rate of {s.learning_rate:g}"

    def _adam(self) -> None:
        s = self.settings.for_any_decoder()
        rate = s.self_critical_learning_rate
        encoder = s.encoder_learning_rate and s.encoder_learning_rate * rate / self.settings.learning_rate
        changes = {"optimizer": "adam", "learning_rate": rate, "encoder_learning_rate": encoder}
        self.settings = replace(s, weight_decay=s.weight_decay or 0.0, **changes)
        self.optimizer = make_optimizer(self.settings, self.groups)

    def train_epoch(self, loader, on_step: Callable, resumed: dict | None = None) -> "Progress":
        """Train over the batches of `loader` from the position it is set to.

        on_step(progress, index of the batch) is called after each step; True ends the epoch early. resumed: what
        `Progress.state()` gave when the epoch was interrupted.
        """
        self.captioner.model.train()
        progress = Progress(self.captioner.device, resumed)
        for batch in loader:
            progress.add(self.train_step(batch))
            if on_step(progress, batch.index):
                break
        return progress

    def train_step(self, batch) -> StepLoss:
        """One step of the optimizer on a batch: set the learning rate, forward, backward, clip, step."""
        s = self.settings
        torch.manual_seed(seed_of(s.seed, self.step, process()[0]))
        rate = learning_rate(s, self.step - self.began, self.steps_per_epoch, self.num_epochs)
        if self.plateau is not None:
            rate *= self.plateau.optimizer.param_groups[0]["lr"]
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.captioner.model.count_images(batch.counted)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        sum_gradients(self.parameters)
        self._check(loss)
        if s.grad_clip:
            nn.utils.clip_grad_value_(self.parameters, s.grad_clip)
        if s.grad_clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, s.grad_clip_norm)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self._update_average()
        return loss

    def _backward(self, batch) -> StepLoss:
        """Compute the gradients of the batch's loss, of several processes this one's share; gives the loss of all."""
        if self.settings.accumulate > 1:
            return backward(self.objective, self.captioner, batch, self.step, self.settings.accumulate).over_processes()
        loss = replace(self.objective(self.captioner, batch, self.step), captions=len(batch.lengths))
        loss = (loss if batch.counted else loss.without_weight()).over_processes()
        loss.total.backward()
        return loss

    @property
    def waits_for_nothing(self) -> bool:
        """Whether looking at a number costs no time: on a CPU."""
        return self.captioner.device.type == "cpu"

    @torch.no_grad()
    def _check(self, loss: StepLoss) -> None:
        """Raises UserError where the loss or a gradient is not finite, before the optimizer takes it.

        A GPU would be waited for: there the gradients of such a step and of all later ones become zero, and
        `require_finite` tells.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        largest = [torch.linalg.vector_norm(gradient, torch.inf).float() for gradient in gradients]  # no sum overflows
        finite = torch.isfinite(torch.stack([loss.total.detach().float(), *largest])).all()
        if self.waits_for_nothing:
            if not finite:
                raise not_finite(self.step)
            return
        if self.bad_step is None:
            self.bad_step = torch.full_like(finite, -1, dtype=torch.int64)
        self.bad_step = torch.where(~finite & (self.bad_step < 0), self.step, self.bad_step)
        for gradient in gradients:
            gradient.masked_fill_(self.bad_step >= 0, 0.0)

    def require_finite(self) -> None:
        """Raises UserError where the loss or a gradient of a step so far was not finite. Waits for the device."""
        if self.bad_step is not None and (step := int(self.bad_step)) >= 0:
            raise not_finite(step)

    @property
    def finished(self) -> bool:
        """Whether the learning rate has come down to 0 for good."""
        steps = self.num_epochs * self.steps_per_epoch
        return self.settings.lr_scheduler == "cosine" and self.step - self.began >= steps

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average of the weights, warmed up so that the first steps do not weigh for long."""
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for average, parameter in zip(self.average, self.parameters):
            average.lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within it the model has the averaged weights, where they are kept."""
        if self.average is None:
            yield
            return
        current = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            copy_all(self.parameters, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                copy_all(self.parameters, current)

    def epoch_ended(self, row: dict[str, float], validated: bool = True) -> None:
        """Give the plateau schedule the epoch's figures.

        validated: whether the run validates. The schedule then follows the validation loss, in self-critical training
        the validation CIDEr where there is one, and does not hear of epochs without validation. Otherwise it follows
        the training loss.
        """
        if self.plateau is None:
            return
        if not validated:
            self.plateau.step(row["training_loss"])
        elif "validation_cider" in row and self.objective.has_reward:
            self.plateau.step(-row["validation_cider"])
        elif "validation_loss" in row:
            self.plateau.step(row["validation_loss"])

    def state_dict(self) -> dict:
        """What an exact resume needs besides the weights."""
        return {**self.counters(), "optimizer": self.optimizer.state_dict(), "average": self.average}

    def counters(self) -> dict:
        """The part of `state_dict` that is small: where training is, without the optimizer's state."""
        return {
            "step": self.step,
            "num_epochs": self.num_epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "plateau": self.plateau and {k: v for k, v in self.plateau.state_dict().items() if not callable(v)},
            "plateau_factor": self.plateau and self.plateau.optimizer.param_groups[0]["lr"],
            "began": self.began,
            "turned": self.turned,
            "self_critical": self.objective.has_reward,
            "optimizer_name": self.settings.optimizer,
            **self.objective.state_dict(),
        }

    def load_state_dict(self, state: dict, changed: bool = False) -> None:
        """Go on exactly where `state_dict()` was taken; of `counters()` alone with an optimizer that begins anew.

        Raises UserError where the optimizer's state does not fit; with `changed`, where settings may differ, the
        optimizer begins anew then, and the schedules go on at the same part of an epoch.
        """
        self.began, self.turned = state.get("began", 0), state.get("turned", 0)
        self.objective.load_state_dict(state)
        if self.turned:
            self._adam()
        if "optimizer" in state:
            try:
                self._load_optimizer(state)
            except UserError:
                if not changed:
                    raise
                print("the optimizer's state does not fit the new settings: it begins anew")
        self.step, self.num_epochs = state["step"], state["num_epochs"]
        if changed and (before := state.get("steps_per_epoch")):
            self.began = self.step - (self.step - self.began) * self.steps_per_epoch // before
        if self.plateau is not None and state.get("plateau"):
            load_plateau(self.plateau, state["plateau"], state["plateau_factor"])
        if self.average is not None and state.get("average") is not None:
            self._load_average(state["average"])

    def _load_optimizer(self, state: dict) -> None:
        """Take the optimizer's state from a checkpoint. Options stay those of the flags, but for the learning rate."""
        name = state.get("optimizer_name", self.settings.optimizer)
        if name != self.settings.optimizer:
            wanted = f"not --optimizer {self.settings.optimizer}"
            raise UserError(f"the checkpoint has the state of {str(name)[:60]}, {wanted}: {ANEW}")
        try:
            load_optimizer(self.optimizer, STATE_OF[name], state["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(f"the checkpoint's optimizer does not fit ({error}): {ANEW}") from error

    def _load_average(self, average) -> None:
        if not isinstance(average, list) or list(map(shape_of, average)) != list(map(shape_of, self.average)):
            raise UserError("the checkpoint's averaged weights (--ema) are not those of this model")
        copy_all(self.average, average)


def seed_of(seed: int, step: int, process: int) -> int:
    """The seed of all random numbers of a step; each process has its own, as its rows would have in one process."""
    # On a CPU the lowest 32 bits count. By this factor the processes' steps lie far apart in them (Knuth's hashing).
    return (seed * 1_000_003 + step + process * 2_654_435_769) % 2**63


def not_finite(step: int) -> UserError:
    advice = "lower --learning_rate or set --grad_clip"
    return UserError(f"the loss or its gradient is not a finite number at step {step + 1}: {advice}")


def copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    for target, source in zip(targets, sources):
        target.copy_(source)


class Progress:
    """Running sums over an epoch, of all processes, kept on the device so that no step waits for it."""

    def __init__(self, device, resumed: dict | None = None):
        resumed = resumed or {"loss_sum": 0.0, "tokens": 0, "captions": 0, "reward_sum": 0.0}
        self.others = {name: tuple(pair) for name, pair in resumed.get("others", {}).items()}  # sums and counts
        self.reward_sum = resumed["reward_sum"]
        self.loss_sum = torch.tensor(resumed["loss_sum"], dtype=torch.float64).to(device)
        self.tokens, self.captions = resumed["tokens"], resumed["captions"]
        self.began, self.before = time.monotonic(), resumed["captions"]

    def add(self, loss: StepLoss) -> None:
        self.loss_sum += loss.reported * loss.tokens
        self.reward_sum += loss.reward * loss.captions
        self.tokens += loss.tokens
        self.captions += loss.captions
        for name, (value, count) in loss.others.items():
            total, number = self.others.get(name, (0.0, 0))
            self.others[name] = total + value.double() * count, number + count

    @property
    def loss(self) -> float:
        """Nats per token so far. Waits for the device."""
        return float(self.loss_sum) / max(1, int(self.tokens))

    @property
    def reward(self) -> float:
        """Mean CIDEr-D of the sampled captions so far, in self-critical training."""
        return float(self.reward_sum) / max(1, int(self.captions))

    @property
    def other_means(self) -> dict[str, float]:
        """The means so far of the other figures that the objective gives."""
        return {name: float(total) / max(1, int(count)) for name, (total, count) in self.others.items()}

    @property
    def speed(self) -> float:
        """Captions per second since the epoch began or was resumed."""
        return (int(self.captions) - self.before) / max(1e-9, time.monotonic() - self.began)

    def state(self) -> dict:
        sums = {"loss_sum": float(self.loss_sum), "reward_sum": float(self.reward_sum)}
        others = {name: (float(total), int(count)) for name, (total, count) in self.others.items()}
        return {**sums, "tokens": int(self.tokens), "captions": int(self.captions), "others": others}
