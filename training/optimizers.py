"""Optimizers and learning rate schedules."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from captioning.errors import UserError
from training.settings import Settings

OPTIMIZERS = ("rmsprop", "adam", "adamw", "sgd")
SCHEDULERS = ("ReduceLROnPlateau", "StepLR", "CyclicalLR", "cosine")


def learning_rate(settings: Settings, step: int, steps_per_epoch: int, num_epochs: int) -> float:
    """The learning rate of `step`, counted from 0 (ReduceLROnPlateau scales it further by what validation shows).

    cosine: from the top down to 0 over all steps (Loshchilov and Hutter 2017). StepLR: halved after every lr_step_size
    epochs. CyclicalLR: a triangle between the minimum and the maximum, an epoch up and one down (Smith 2017). The first
    warmup_steps rise linearly under every schedule.
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
    else:
        rate = top
    return rate * min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else rate


SELF_CRITICAL_RATE = 5e-5  # learning rate of a run that turns self-critical midway


def make_optimizer(
    settings: Settings, decoder: list[nn.Parameter], encoder: list[nn.Parameter], words: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer that `settings` names; each group's `share` is its part of the learning rate of a step.

    words: the parameters of a hierarchical model's word decoder, which `decoder` lacks.
    Raises UserError for an unknown optimizer.
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
    if words:
        own = settings.learning_rate if settings.lr_word_decoder is None else settings.lr_word_decoder
        groups.append({"params": words, "share": own / settings.learning_rate})
    return kinds[settings.optimizer](groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def make_plateau() -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """A tenth of the rate when the third epoch running is no better, as in DeepCaption."""
    # a stand-in optimizer: only the factor it reaches is used
    stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau
    return schedule(stand_in, factor=0.1, patience=2, threshold_mode="abs")
