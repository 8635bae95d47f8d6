"""How to train: typed settings, filled from the flags of train.py."""

from dataclasses import dataclass


@dataclass
class Settings:
    """How to train; meanings, units and defaults are those of train.py's flags."""

    optimizer: str = "rmsprop"
    learning_rate: float = 1e-3
    encoder_learning_rate: float | None = None
    lr_word_decoder: float | None = None
    weight_decay: float = 1e-6
    grad_clip: float | None = None
    lr_scheduler: str | None = None
    lr_step_size: int = 5
    lr_cyclical_min: float = 1e-5
    lr_cyclical_max: float = 1e-3
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    regularize_attn: float = 0.0
    regularize_projection: float = 0.15
    teacher_forcing: str = "always"
    teacher_forcing_k: float = 6500.0
    teacher_forcing_beta: float = 0.3
    ema: float = 0.0
    self_critical_loss: str = "sc"
    self_critical_samples: int = 5
    self_critical_temperature: float = 0.5
    self_critical_learning_rate: float | None = None
    gamma_ml_rl: float = 0.9995
    trigram_penalty_alpha: float = 0.0
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    amp: str = "off"
    seed: int = 42
