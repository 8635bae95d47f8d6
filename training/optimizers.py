"""Optimizers and learning rate schedules."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn, optim

from captioning.encoder.encoder import ImageEncoder
from captioning.errors import UserError
from model import CaptionModel
from training.settings import TrainSettings

WEIGHT_DECAY = 1e-6  # unless the settings say otherwise, as in DeepCaption


def learning_rate(settings: TrainSettings, step: int, steps_per_epoch: int, num_epochs: int) -> float:
    """The learning rate of `step`, counted from 0 (ReduceLROnPlateau scales it further by what validation shows).

    cosine: from the top down to 0 over all steps (Loshchilov and Hutter 2017). StepLR: halved after every lr_step_size
    epochs. CyclicalLR: a triangle between the minimum and the maximum, an epoch up and one down (Smith 2017).
    inverse_sqrt: from the end of the warm-up on falling with the root of the step (Vaswani et al. 2017, eq. 3, whose
    factor is the rate at its highest here). The first warmup_steps rise linearly under every schedule.
    """
    top = settings.learning_rate
    if settings.lr_scheduler == "cosine":
        progress = min(1.0, step / max(1, num_epochs * steps_per_epoch))
        rate = top * 0.5 * (1 + math.cos(math.pi * progress))
    elif settings.lr_scheduler == "StepLR":
        rate = top * 0.5 ** (step // steps_per_epoch // settings.lr_step_size)
    elif settings.lr_scheduler == "CyclicalLR":
        height = 1 - abs(step % (2 * steps_per_epoch) / steps_per_epoch - 1)
        rate = settings.lr_cyclical_min + (settings.lr_cyclical_max - settings.lr_cyclical_min) * height
    elif settings.lr_scheduler == "inverse_sqrt":
        warm = max(1, settings.warmup_steps)
        rate = top * (warm / max(warm, step + 1)) ** 0.5
    else:
        rate = top
    return rate * min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else rate


def self_critical_settings(settings: TrainSettings, typed_flags: dict) -> TrainSettings:
    """The settings of a run that is self-critical from its first epoch: Adam at 5e-5, as DeepCaption, unless typed.

    typed_flags: what the flags say that were typed. The rate is that of --self_critical_learning_rate, else that of
    --learning_rate. Without --weight_decay there is none: Adam divides by the size of the gradients, and those of a
    word that is never drawn are next to nothing, so that its weights would shrink by the whole rate at every step.
    """
    settings = settings.for_any_decoder()
    kept = [name for name in ("optimizer", "learning_rate") if name in typed_flags]
    if "self_critical_learning_rate" in typed_flags:
        kept = [name for name in kept if name != "learning_rate"]
    changes = {"optimizer": "adam", "learning_rate": settings.self_critical_learning_rate}
    changes = {name: value for name, value in changes.items() if name not in kept}
    return replace(settings, weight_decay=settings.weight_decay or 0.0, **changes)


class ParameterGroups(NamedTuple):
    """What is trained of a model.

    words: the word decoder of a hierarchical model, which `decoder` lacks then. depth: of each weight of `encoder` how
    many blocks stand between it and the encoder's end.
    """

    decoder: list[nn.Parameter]
    encoder: list[nn.Parameter]
    words: list[nn.Parameter]
    depth: list[int]

    @property
    def every(self) -> list[nn.Parameter]:
        """All that is trained."""
        return self.decoder + self.encoder + self.words

    @classmethod
    def of(cls, model: CaptionModel) -> "ParameterGroups":
        encoder = {p: 0 for p in model.extractors.parameters() if p.requires_grad}
        for extractor in model.extractors:
            if isinstance(extractor, ImageEncoder):
                encoder |= {p: depth for p, depth in extractor.depths().items() if p.requires_grad}
        decoder = [p for p in model.decoder.parameters() if p.requires_grad]
        of_encoder = list(encoder), list(encoder.values())
        if model.config.paragraphs is None:
            return cls(decoder, of_encoder[0], [], of_encoder[1])
        words = [p for p in model.decoder.word_decoder.parameters() if p.requires_grad]
        apart = {id(p) for p in words}
        return cls([p for p in decoder if id(p) not in apart], of_encoder[0], words, of_encoder[1])


def make_optimizer(settings: TrainSettings, groups: ParameterGroups) -> optim.Optimizer:
    """The optimizer that `settings` names; each group's `share` is its part of the learning rate of a step.

    encoder_lr_decay: the rate of a block of the encoder is so many times that of the block behind it (Clark et al.
    2020, "ELECTRA", section 3.3 of the appendix); there is a group for each depth then.
    """
    kinds = {"rmsprop": optim.RMSprop, "adam": optim.Adam, "adamw": optim.AdamW, "sgd": optim.SGD}
    of_encoder, of_words = (
        1.0 if rate is None else rate / settings.learning_rate
        for rate in (settings.encoder_learning_rate, settings.lr_word_decoder)
    )
    shares = [(groups.decoder, 1.0)]
    decay = settings.encoder_lr_decay
    if decay == 1:
        shares.append((groups.encoder, of_encoder))
    for depth in sorted(set(groups.depth)) if decay != 1 else ():
        at_depth = [p for p, own in zip(groups.encoder, groups.depth) if own == depth]
        shares.append((at_depth, of_encoder * decay**depth))
    shares.append((groups.words, of_words))
    parts = [{"params": parameters, "share": share} for parameters, share in shares if parameters]
    decay = WEIGHT_DECAY if settings.weight_decay is None else settings.weight_decay
    return kinds[settings.optimizer](parts, lr=settings.learning_rate, weight_decay=decay)


def make_plateau() -> optim.lr_scheduler.ReduceLROnPlateau:
    """A tenth of the rate when the third epoch running is no better, as in DeepCaption."""
    # a stand-in optimizer: only the factor it reaches is used
    stand_in = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = optim.lr_scheduler.ReduceLROnPlateau
    return schedule(stand_in, factor=0.1, patience=2, threshold_mode="abs")


ADAM = {"step", "exp_avg", "exp_avg_sq"}
STATE_OF = {"rmsprop": {"step", "square_avg"}, "adam": ADAM, "adamw": ADAM, "sgd": set()}  # kept of each parameter
ANEW = "start from it with --load_model and --optimizer_reset"


def shape_of(value) -> tuple[int, ...] | None:
    """The shape of a tensor; None for anything else."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def load_optimizer(optimizer: optim.Optimizer, names: set[str], state) -> None:
    """Go on where `state`, its state_dict(), was taken, with options that are those of `optimizer`, but for the rate.

    names: what there must be of each parameter that has some. Raises ValueError where the state is another one's.
    """
    own = optimizer.state_dict()
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        raise ValueError("it is no state of an optimizer")
    groups = state.get("param_groups")
    sizes = [len(group["params"]) for group in own["param_groups"]]
    if not isinstance(groups, list) or [_size(group) for group in groups] != sizes:
        raise ValueError(f"it has not {' + '.join(map(str, sizes))} parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(values, dict):
            raise ValueError("it is no state of an optimizer")
        shape = shape_of(parameters[number])
        if not names <= values.keys() or not all(_is_kept(name, value, shape) for name, value in values.items()):
            raise ValueError(f"it has other numbers for parameter {number}, of shape {shape}")
    for group, given in zip(own["param_groups"], groups):
        group["lr"] = float(given["lr"])
    optimizer.load_state_dict({"state": state["state"], "param_groups": own["param_groups"]})


def _is_kept(name: str, value, shape: tuple[int, ...]) -> bool:
    """Whether `value` is what an optimizer keeps of a parameter of `shape`: a count of steps, or numbers like it."""
    if name == "step":
        return (type(value) in (int, float) or shape_of(value) == ()) and value >= 0
    return shape_of(value) == shape or (value is None and name == "momentum_buffer")


def _size(group) -> int | None:
    """The number of parameters of a group of a state; None where it is no such group."""
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return None
    return len(group["params"]) if type(group.get("lr")) in (int, float) else None


def load_plateau(plateau: optim.lr_scheduler.ReduceLROnPlateau, state: dict, factor: float) -> None:
    """Go on where `state`, its state_dict(), was taken, when the rate was `factor` of the first."""
    counts = {name: state.get(name) for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")}
    if not all(type(value) in (int, float) for value in counts.values()):
        raise UserError(f"the checkpoint does not say where ReduceLROnPlateau stands: {ANEW}")
    plateau.load_state_dict(counts)
    plateau.optimizer.param_groups[0]["lr"] = factor
