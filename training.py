"""Training and validating a captioner: optimizers, schedules, one epoch, and what a validation measures.

A `Trainer` knows nothing of command lines or files. Its randomness is a function of (seed, step), so that an exact
resume needs counters and no generator states.

Shapes: N rows (captions), M real tokens, R regions, V vocabulary.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common import UserError
from decoding import Search, generate_rows
from losses import attention_regularisation, projection_regularisation, token_cross_entropy
from model import Captioner, batch_inputs, caption_loader
from scoring import caption_statistics, score_captions
from self_critical import CiderReward, advantages, sampled_captions, self_critical_loss
from teacher_forcing import truth_probability

OPTIMIZERS = ("rmsprop", "adam", "adamw", "sgd")
SCHEDULERS = ("ReduceLROnPlateau", "StepLR", "CyclicalLR", "cosine")


@dataclass
class Settings:
    """How to train; meanings, units and defaults are those of train.py's flags."""

    optimizer: str = "rmsprop"
    learning_rate: float = 1e-3
    encoder_learning_rate: float | None = None
    weight_decay: float = 1e-6
    grad_clip: float | None = None
    lr_scheduler: str | None = None
    lr_step_size: int = 1
    lr_cyclical_min: float = 1e-4
    lr_cyclical_max: float = 1e-3
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    regularize_attn: float = 0.0
    regularize_projection: float = 0.15
    teacher_forcing: str = "always"
    teacher_forcing_k: float = 6500.0
    teacher_forcing_beta: float = 0.3
    ema: float = 0.0
    self_critical_samples: int = 5
    self_critical_temperature: float = 0.5
    amp: str = "off"
    seed: int = 42


def learning_rate(settings: Settings, step: int, steps_per_epoch: int, num_epochs: int) -> float:
    """The learning rate of `step`, counted from 0 (ReduceLROnPlateau scales it further by what validation shows).

    cosine: from the top down to 0 over all steps (Loshchilov and Hutter 2017). StepLR: a tenth after every lr_step_size
    epochs. CyclicalLR: a triangle between the minimum and the maximum, lr_step_size epochs up and as many down (Smith
    2017). The first warmup_steps rise linearly under every schedule.
    """
    top = settings.learning_rate
    if settings.lr_scheduler == "cosine":
        progress = min(1.0, step / max(1, num_epochs * steps_per_epoch))
        rate = top * 0.5 * (1 + math.cos(math.pi * progress))
    elif settings.lr_scheduler == "StepLR":
        rate = top * 0.1 ** (step // steps_per_epoch // settings.lr_step_size)
    elif settings.lr_scheduler == "CyclicalLR":
        half = settings.lr_step_size * steps_per_epoch
        height = 1 - abs(step % (2 * half) / half - 1)
        rate = settings.lr_cyclical_min + (settings.lr_cyclical_max - settings.lr_cyclical_min) * height
    else:
        rate = top
    return rate * min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else rate


def make_optimizer(
    settings: Settings, decoder: list[nn.Parameter], encoder: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer that `settings` names; each group's `share` is its part of the learning rate of a step.

    Raises UserError for an unknown one.
    """
    kinds = {
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
    }
    if settings.optimizer not in kinds:
        raise UserError(f"--optimizer {settings.optimizer}: unknown; known are {', '.join(OPTIMIZERS)}")
    groups = [{"params": decoder, "share": 1.0}]
    if encoder:
        own = settings.encoder_learning_rate or settings.learning_rate
        groups.append({"params": encoder, "share": own / settings.learning_rate})
    return kinds[settings.optimizer](groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


class Trainer:
    """Optimizer, schedule and averaged weights of a captioner, and the loop over one epoch.

    step: steps taken since training (re)started; the schedules and the random numbers follow it.
    """

    def __init__(self, captioner: Captioner, settings: Settings, steps_per_epoch: int, num_epochs: int):
        self.captioner, self.settings = captioner, settings
        self.steps_per_epoch, self.num_epochs = steps_per_epoch, num_epochs
        decoder = [p for p in captioner.model.decoder.parameters() if p.requires_grad]
        encoder = [p for p in captioner.model.extractors.parameters() if p.requires_grad]
        self.parameters = decoder + encoder
        self.optimizer = make_optimizer(settings, decoder, encoder)
        self.plateau = None
        if settings.lr_scheduler == "ReduceLROnPlateau":
            # a stand-in optimizer: only the factor it reaches is used
            stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau
            self.plateau = schedule(stand_in, factor=0.1, patience=settings.lr_step_size)
        self.average = [p.detach().clone() for p in self.parameters] if settings.ema else None
        self.step = 0
        self.reward: CiderReward | None = None  # set: self-critical training instead of cross-entropy

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
        rate = learning_rate(s, self.step, self.steps_per_epoch, self.num_epochs)
        if self.plateau is not None:
            rate *= self.plateau.optimizer.param_groups[0]["lr"]
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        loss, total, tokens, reward = self._losses(batch) if self.reward is None else self._self_critical_losses(batch)
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

    def _losses(self, batch) -> tuple[Tensor, Tensor, int, float]:
        """The cross-entropy that is reported, what is minimised, the number of tokens, and no reward."""
        s, captioner = self.settings, self.captioner
        forcing = None
        if s.teacher_forcing != "always":
            p = truth_probability(self.step, s.teacher_forcing_k, s.teacher_forcing_beta)
            forcing = (s.teacher_forcing, p, torch.Generator().manual_seed(s.seed * 1_000_003 + self.step))
        pixels, inputs = batch_inputs(captioner, batch)
        with autocast(captioner.device, s.amp):
            logits, targets, weights, row = captioner.model(
                pixels,
                inputs,
                batch.captions.to(captioner.device, non_blocking=True),
                batch.lengths,
                batch.row_image.to(captioner.device, non_blocking=True),
                forcing,
            )
        loss = token_cross_entropy(logits, targets, s.label_smoothing)
        total = loss
        if s.regularize_attn and weights is not None:
            total = total + s.regularize_attn * attention_regularisation(weights, row, len(batch.lengths))
        if s.regularize_projection and captioner.config.projection:
            weight = captioner.model.decoder.projection.weight
            total = total + s.regularize_projection * projection_regularisation(weight)
        return loss, total, len(targets), 0.0

    def _self_critical_losses(self, batch) -> tuple[Tensor, Tensor, int, float]:
        """As `_losses`, from captions that the model draws. No dropout: the gradient must be that of what was drawn."""
        captioner, samples = self.captioner, self.settings.self_critical_samples
        temperature = self.settings.self_critical_temperature
        model, inputs = captioner.model, batch_inputs(captioner, batch)
        keys = [image_key(item) for item in batch.items]
        model.eval()
        with autocast(captioner.device, self.settings.amp):
            memory = model.encode(*inputs)  # once: for drawing and for the gradient
        with torch.no_grad():
            captions, lengths, row_image = sampled_captions(model, memory, samples, 20, temperature)
            greedy = generate_rows(model.decoder, memory, Search()).tokens[:, 0] if samples == 1 else None
        advantage, reward = advantages(self.reward, keys, captions[:, 1:], greedy)
        with autocast(captioner.device, self.settings.amp):
            logits, targets, _, row = model.decode(memory, captions, lengths, row_image)
        loss = self_critical_loss(logits, targets, advantage.to(captioner.device)[row], temperature)
        return loss, loss, len(targets), reward

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

    def epoch_ended(self, loss: float) -> None:
        """Tell the plateau schedule the validation loss (or the training loss where nothing is validated)."""
        if self.plateau is not None:
            self.plateau.step(loss)

    def state_dict(self) -> dict:
        return {
            "step": self.step,
            "num_epochs": self.num_epochs,
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau and {k: v for k, v in self.plateau.state_dict().items() if not callable(v)},
            "plateau_factor": self.plateau and self.plateau.optimizer.param_groups[0]["lr"],
            "average": self.average,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where `state_dict()` was taken. Raises UserError where the optimizer's state does not fit."""
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise UserError(f"the checkpoint's optimizer does not fit ({error}): use --optimizer_reset") from error
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


def validate(
    captioner: Captioner, loader, metrics: tuple[str, ...], search: Search, amp: str = "off", bar=None
) -> dict[str, float]:
    """Validation loss under teacher forcing and scores of free-running captions over `loader` (with_captions).

    Returns `validation_loss` (nats per token), `validation_METRIC`, and what warns of collapse: the share of distinct
    captions, their mean length in words, the share of <unk>. Tokens by the Python tokenizer: the same everywhere.
    """
    loss_sum, tokens, written, references = 0.0, 0, {}, {}
    for batch, memory, captions in caption_loader(captioner, loader, search if metrics else None, amp):
        with torch.inference_mode(), autocast(captioner.device, amp):
            logits, targets, _, _ = captioner.model.decode(
                memory,
                batch.captions.to(captioner.device),
                batch.lengths,
                batch.row_image.to(captioner.device),
            )
        loss_sum += token_cross_entropy(logits, targets).item() * len(targets)
        tokens += len(targets)
        for item, best in zip(batch.items, captions or []):
            written[item.image_id] = best[0].text
            references[item.image_id] = item.captions
        if bar is not None:
            bar.update(len(batch.items))
    results = {"validation_loss": loss_sum / max(1, tokens)}
    if metrics:
        scores = score_captions(written, references, metrics, tokenizer="python")
        results |= {f"validation_{name}": value for name, value in scores.values.items()}
        results |= {f"validation_{name}": value for name, value in caption_statistics(list(written.values())).items()}
        for name, reason in scores.left_out.items():
            print(f"validation: {name} left out: {reason}")
    return results


def image_key(item) -> tuple:
    """What tells the images of a joined dataset apart."""
    return item.part, item.image_id


def reseed(seed: int, step: int) -> None:
    """All of torch's random numbers of a step are a function of (seed, step)."""
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)


def autocast(device: torch.device, amp: str):
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")


# ---- several processes (torchrun) ----


def share_of_tokens(tokens: int, device) -> Tensor | float:
    """This process' part of the tokens of all: a batch over several processes has the gradient of one large batch."""
    if not torch.distributed.is_initialized():
        return 1.0
    count = torch.tensor(float(tokens), device=device)
    torch.distributed.all_reduce(count)
    return tokens / count


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in one message."""
    if not torch.distributed.is_initialized():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = part.view_as(parameter)
