"""The settings that train.py's flags fill. Every default of a flag stands here or in captioning/config.py."""

from dataclasses import dataclass
from typing import Literal

from captioning.config import Settings

Optimizer = Literal["rmsprop", "adam", "adamw", "sgd"]
Schedule = Literal["ReduceLROnPlateau", "StepLR", "CyclicalLR", "cosine"]
TeacherForcing = Literal["always", "sampled", "additive", "additive_sampled"]
# what each of them adds to the reward stands in training/self_critical_terms.py
SelfCriticalLoss = Literal["sc", "sc_with_diversity", "sc_with_relative_diversity", "sc_with_bleu_diversity",
    "sc_with_repetition", "mixed", "mixed_with_face"]  # fmt: skip


@dataclass
class DataSettings(Settings):
    """What to train on; meanings and units are those of train.py's flags."""

    dataset: str | None = None
    dataset_config_file: str | None = None
    validate: str | None = None
    num_workers: int | None = None
    batch_size: int = 128
    captions_per_image: int = 5
    num_batches: int = 0  # 0: all
    no_augment: bool = False
    cache_features: str | None = None
    vocab: str = "AUTO"
    vocab_root: str = "vocab_cache"
    vocab_threshold: int = 4
    no_tokenize: bool = False

    @property
    def vocabulary_file(self) -> str | None:
        """The file that --vocab names; None where the words come from the training captions."""
        return None if self.vocab in ("AUTO", "REGEN") else self.vocab


@dataclass
class ModelSettings(Settings):
    """Which model to train, besides the sizes of `ModelConfig`; meanings are those of train.py's flags."""

    features: str = "resnet152"
    persist_features: str = ""
    weights: str | None = None
    load_model: list[str] | None = None
    hierarchical_model: bool = False


@dataclass
class TrainSettings(Settings):
    """How to train; meanings and units are those of train.py's flags."""

    optimizer: Optimizer = "rmsprop"
    learning_rate: float = 1e-3
    encoder_learning_rate: float | None = None
    lr_word_decoder: float | None = None
    weight_decay: float = 1e-6
    grad_clip: float | None = None
    lr_scheduler: Schedule | None = None
    lr_step_size: int = 5
    lr_cyclical_min: float = 1e-5
    lr_cyclical_max: float = 1e-3
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    regularize_attn: float = 0.0
    regularize_projection: float = 0.15
    teacher_forcing: TeacherForcing = "always"
    teacher_forcing_k: float = 6500.0
    teacher_forcing_beta: float = 0.3
    ema: float = 0.0
    self_critical_loss: SelfCriticalLoss = "sc"
    self_critical_samples: int = 5
    self_critical_temperature: float = 0.5
    self_critical_learning_rate: float = 5e-5  # of a run that turns self-critical midway
    gamma_ml_rl: float = 0.9995
    trigram_penalty_alpha: float = 0.0
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    amp: Literal["off", "bf16"] = "off"
    seed: int = 42


@dataclass
class RunSettings(Settings):
    """How a run goes, and where it is kept; meanings and units are those of train.py's flags."""

    num_epochs: int = 5
    validation_step: int = 1
    validation_scoring: str = "cider,bleu"
    validation_beam_size: int = 1
    validate_only: bool = False
    skip_existing_validations: bool = False
    self_critical_from_epoch: int = -1  # -1: never
    cached_words: str | None = None
    distill: list[str] | None = None
    model_name: str | None = None
    model_basename: str = "model"
    output_root: str = ""
    model_path: str = "models/"
    optimizer_reset: bool = False
    force_epoch: int | None = None
    replace: bool = False
    resume: bool = False
    save_every: int = 0  # 0: after epochs alone
    early_stopping: int = 0  # 0: never
    log_step: int = 10
    verbose: bool = False
    show_tokens: bool = False
    deterministic: bool = False
    compile: bool = False
    tensorboard: bool = False
    profiler: bool = False
    device: str | None = None
    cpu: bool = False
