"""The settings that train.py's flags fill, and which of them may change when a run goes on.

Every default of a flag stands here or in captioning/config.py.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from captioning.command_line import several_times, text_or_nothing
from captioning.config import FeatureSpec, ModelConfig, ParagraphConfig, Settings, setting
from captioning.datasets.config import CONFIG_HELP
from captioning.files import sha256_of

Tokenizer = Literal["treebank", "words", "char", "regex", "whitespace"]
Optimizer = Literal["rmsprop", "adam", "adamw", "sgd"]
Schedule = Literal["ReduceLROnPlateau", "StepLR", "CyclicalLR", "cosine", "inverse_sqrt", "constant"]
Logger = Literal["none", "tensorboard", "csv", "wandb", "mlflow"]
TeacherForcing = Literal["always", "sampled", "additive", "additive_sampled"]
# what each of them adds to the reward stands in training/self_critical_terms.py
SelfCriticalLoss = Literal["sc", "sc_with_diversity", "sc_with_relative_diversity", "sc_with_bleu_diversity",
    "sc_with_repetition", "mixed", "mixed_with_face"]  # fmt: skip


# of train.py's settings, what trains a Transformer well
OF_TRANSFORMER = {"optimizer": "adamw", "learning_rate": 5e-4, "lr_scheduler": "inverse_sqrt", "warmup_steps": 1000}


@dataclass
class DataSettings(Settings):
    """What to train on; meanings and units are those of train.py's flags."""

    dataset: str | None = setting(
        None, "training data: sections of datasets.conf, or PATH[:SPLIT] of captions; several joined by +", "NAME"
    )
    captions: str | None = setting(None, "training data: a file or folder of captions, as --dataset PATH", "PATH")
    images: str | None = setting(
        None, "folder or zip file of the images of --captions (default: looked for beside them)", "DIR"
    )
    dataset_config_file: str | None = setting(None, CONFIG_HELP, "FILE")
    validate: str | None = setting(None, "validation data, like --dataset (default: no validation)", "NAME")
    val_fraction: float | None = setting(
        None, "validate on this share of the images, which is left out of training (default: none)", "SHARE"
    )
    num_workers: int | None = setting(None, "processes that load images (default: all cores)")
    batch_size: int = setting(128, "captions in a batch")
    captions_per_image: int = setting(5, "captions that share an image in a batch", "C")
    mix: str | None = setting(
        None,
        "how often each part of --dataset comes in an epoch, as 1,3 of two joined by + (default: once)",
        "TIMES",
        type=several_times,
    )
    shuffle_buffer: int = setting(
        5000, "WebDataset: images of the shards being read, out of which the next one is drawn", "N"
    )
    num_batches: int = setting(0, "end each epoch, and each validation, after N batches (default: never)")
    no_augment: bool = setting(False, "train on whole images, without random crops and mirror images")
    cache_features: str | None = setting(None, "folder that keeps the frozen encoder's output (default: none)", "DIR")
    vocab: str = setting("AUTO", "vocabulary file, AUTO (make it once, keep it) or REGEN (make it anew)", "FILE")
    vocab_root: str = setting("vocab_cache", "where AUTO and REGEN keep vocabularies", "DIR")
    vocab_threshold: int | None = setting(
        None, "AUTO, REGEN: times a word must occur (default: 4; of a small --captions 1 or 2)", "N"
    )
    tokenizer: Tokenizer | None = setting(
        None, "AUTO, REGEN: how captions are split; words: for any language (default: treebank)"
    )
    no_tokenize: bool = setting(False, "AUTO, REGEN: captions are tokens already, split at spaces")

    @property
    def times(self) -> tuple[float, ...]:
        """How often each part of the dataset comes in an epoch; (): once."""
        return tuple(map(float, self.mix.split(","))) if self.mix else ()

    @property
    def vocabulary_file(self) -> str | None:
        """The file that --vocab names; None where the words come from the training captions."""
        return None if self.vocab in ("AUTO", "REGEN") else self.vocab

    @property
    def ids_folder(self) -> str:
        """Where the word ids of many captions are kept: beside the vocabulary."""
        return os.path.dirname(self.vocabulary_file) or "." if self.vocabulary_file else self.vocab_root

    @property
    def validates(self) -> bool:
        """Whether there is validation data."""
        return bool(self.validate or self.val_fraction)


@dataclass
class ModelSettings(Settings):
    """Which model to train, besides the sizes of `ModelConfig`; meanings are those of train.py's flags."""

    features: str = setting(
        "resnet152",
        "encoders or feature files read before the first word",
        "NAMES",
        type=text_or_nothing,  # nothing: a model of persistent features alone
    )
    persist_features: str = setting("", "encoders or feature files read at every word (default: none)", "NAMES")
    weights: str | None = setting(None, "local file with the encoder's weights, instead of a download", "FILE")
    load_model: list[str] | None = setting(
        None, "start from this model; several are trained one after the other", "FILE"
    )
    init_model: str | None = setting(
        None, "begin with the weights of this model, with other words or more persistent features", "FILE"
    )
    hierarchical_model: bool = setting(
        False, "write paragraphs; a model of sentences given with --load_model becomes the word RNN"
    )


@dataclass
class TrainSettings(Settings):
    """How to train; meanings and units are those of train.py's flags."""

    optimizer: Optimizer = setting("rmsprop", "optimizer of torch (default: rmsprop; of a Transformer adamw)")
    learning_rate: float = setting(
        1e-3, "learning rate after the warm-up (default: 0.001; of a Transformer 0.0005)", "RATE"
    )
    encoder_learning_rate: float | None = setting(
        None, "learning rate of the encoder's weights (default: --learning_rate)", "RATE"
    )
    encoder_lr_decay: float = setting(
        1.0, "the rate of each block of the encoder is D times that of the block behind it (default: 1)", "D"
    )
    lr_word_decoder: float | None = setting(
        None, "learning rate of the word RNN; 0 leaves it as it is (default: --learning_rate)", "RATE"
    )
    weight_decay: float | None = setting(
        None, "factor of the penalty on large weights (default: 1e-06; 0 in self-critical training)"
    )
    grad_clip: float | None = setting(None, "clip every gradient value to +-X (default: no clipping)")
    grad_clip_norm: float | None = setting(
        None, "shrink the gradient of all weights to the norm X where it is larger (default: no clipping)"
    )
    lr_scheduler: Schedule | None = setting(
        None,
        "default: constant, of a Transformer inverse_sqrt; without a name: ReduceLROnPlateau",
        nargs="?",
        const="ReduceLROnPlateau",
    )
    lr_step_size: int = setting(5, "StepLR: epochs to half the rate", "EPOCHS")
    lr_cyclical_min: float = setting(
        1e-5, "CyclicalLR: lowest rate; the rate rises for an epoch, then falls for one", "RATE"
    )
    lr_cyclical_max: float = setting(1e-3, "CyclicalLR: highest rate", "RATE")
    warmup_steps: int = setting(0, "steps of linear warm-up (default: 0; of a Transformer 1000)")
    label_smoothing: float = setting(0.0, "probability spread over all words (default: 0)", "P")
    regularize_attn: float = setting(
        0.0, "doubly stochastic attention (default: 0; 1 without a number)", nargs="?", const=1.0
    )
    regularize_projection: float = setting(
        0.15, "--share_embedding_weights: penalty on the norm of the projection; 0 leaves the projection out"
    )
    teacher_forcing: TeacherForcing = setting("always", "when the decoder reads the true previous word")
    teacher_forcing_k: float = setting(
        6500.0, "the true word is read at step i with probability k / (k + exp(i * beta / k)); 0: always", "K"
    )
    teacher_forcing_beta: float = setting(0.3, "beta of that probability", "BETA")
    accumulate: int = setting(1, "compute each batch in N parts, one after another: less memory, the same step")
    ema: float = setting(0.0, "validate and save averaged weights, such as 0.999 (default: off)", "DECAY")
    self_critical_loss: SelfCriticalLoss = setting(
        "sc", "sc, sc with a term for diversity or against repetition, or mixed with cross-entropy"
    )
    self_critical_mean: Literal["sentences", "tokens"] = setting(
        "sentences", "mean of the loss over drawn sentences, which gives the exact gradient, or over drawn tokens"
    )
    self_critical_samples: int = setting(5, "captions drawn per image (1: a greedy baseline)")
    self_critical_temperature: float = setting(0.5, "captions are drawn from softmax(logits / T)", "T")
    self_critical_learning_rate: float = setting(5e-5, "learning rate of self-critical training, by Adam", "RATE")
    gamma_ml_rl: float = setting(0.9995, "mixed losses: G * self-critical + (1 - G) * cross-entropy", "G")
    trigram_penalty_alpha: float = setting(0.0, "a repeated trigram loses A ln 2 of its score (default: 0)", "A")
    distill_weight: float = setting(0.5, "the teachers' share of the loss", "W")
    distill_temperature: float = setting(1.0, "divide logits by T; above 1 unlikely words count more", "T")
    amp: Literal["off", "bf16"] = setting("off", "mixed precision")
    seed: int = setting(42, "seed of the random numbers")
    of_decoder: tuple[str, ...] = ()  # names of settings that nobody typed, whose values are right for the decoder

    def for_decoder(self, decoder: str, typed_flags: dict) -> "TrainSettings":
        """The settings with what suits a Transformer's cross-entropy training in place of what nobody typed."""
        wanted = OF_TRANSFORMER if decoder == "transformer" else {}
        changes = {name: value for name, value in wanted.items() if name not in typed_flags}
        return replace(self, **changes, of_decoder=tuple(changes))

    def for_any_decoder(self) -> "TrainSettings":
        """The settings before `for_decoder`."""
        defaults = {field.name: field.default for field in fields(self)}
        return replace(self, **{name: defaults[name] for name in (*self.of_decoder, "of_decoder")})


@dataclass
class RunSettings(Settings):
    """How a run goes, and where it is kept; meanings and units are those of train.py's flags."""

    num_epochs: int = setting(5, "epochs to train, those of --load_model and --resume included")
    validation_step: int = setting(1, "epochs from one validation to the next", "EPOCHS")
    validation_scoring: str = setting("cider,bleu", "metrics: cider,ciderd,bleu,rouge,meteor,spice, or none", "METRICS")
    validation_beam_size: int = setting(1, "beams at validation; 1 is greedy search", "K")
    validate_only: bool = setting(False, "only validate --load_model; writes train_stats-DATASET.json")
    skip_existing_validations: bool = setting(False, "--validate_only: skip models that have their figures")
    self_critical_from_epoch: int = setting(-1, "reward sampled captions by their CIDEr-D from epoch N on; -1: never")
    cached_words: str | None = setting(
        None,
        "document frequencies for CIDEr-D, of build_cached_words.py (default: those of the training captions)",
        "FILE",
    )
    distill: list[str] | None = setting(None, "learn these models' word probabilities too (default: none)", "FILE")
    model_name: str | None = setting(None, "folder under --model_path (default: made of the settings)", "NAME")
    model_basename: str = setting("model", "first part of the folder's name that is made of the settings", "NAME")
    output_root: str = setting("", "folder that --model_path lies in (default: none)", "DIR")
    model_path: str = setting("models/", "folder of all runs", "DIR")
    optimizer_reset: bool = setting(False, "--load_model: begin with the optimizer's state anew")
    force_epoch: int | None = setting(None, "--load_model: count on from epoch N")
    replace: bool = setting(False, "write over a run of the same name")
    resume: bool | int = setting(
        False,
        "go on from the run's last.model, exactly, if there is one; given twice, also from the newest sound epN.model "
        "where last.model is damaged or missing",
        action="count",
    )
    resume_changed: bool = setting(False, "go on like --resume although settings differ: with the new ones")
    save_every: int = setting(0, "write last.model every STEPS too (default: after each epoch)", "STEPS")
    keep: int = setting(0, "keep the newest N epN.model and that of the best epoch (default: all)")
    early_stopping: int = setting(0, "epochs without improvement that end the run (default: never)", "EPOCHS")
    best_by: str | None = setting(
        None,
        "figure of validation that says which epoch is best: loss, cider, bleu4, ... (default: the first of "
        "--validation_scoring's cider, ciderd, spice, meteor, bleu4, rouge, else the loss)",
        "NAME",
    )
    config: str | None = setting(
        None, "settings from this file: JSON or YAML, such as the config.json of a run; flags go before it", "FILE"
    )
    log_step: int = setting(10, "steps between updates of the loss shown", "STEPS")
    verbose: bool = setting(False, "also print the model, and what takes the time of the start")
    show_tokens: bool = setting(False, "print the tokens of the first captions")
    deterministic: bool = setting(False, "only deterministic algorithms (slower on a GPU)")
    activation_checkpointing: bool = setting(
        False, "the encoder's trained blocks compute twice what they would keep: less memory, more time (default: no)"
    )
    compile: bool = setting(False, "compile the encoder with torch.compile, on a GPU (default: no)")
    tensorboard: bool = setting(False, "the same as --logger tensorboard; both may be given")
    logger: Logger = setting(
        "none",
        "write the figures of steps and epochs into the run's folder (tensorboard/ with histograms of weights; "
        "log_step.csv and log_epoch.csv), or to wandb or mlflow",
    )
    profiler: bool = setting(False, "profile ten steps: profile.txt and trace.json in the run's folder")
    device: str | None = setting(None, "cpu, cuda, cuda:1, mps (default: the best there is)", "NAME")
    cpu: bool = setting(False, "do not use a GPU")

    @property
    def loggers(self) -> list[str]:
        """The loggers that --logger and --tensorboard name."""
        return sorted({self.logger, *(["tensorboard"] if self.tensorboard else [])} - {"none"})


# ---- what must be the same when a run goes on ----

# No number of a run depends on these, or what they name is compared in their place: model, vocabulary, data.
MAY_CHANGE = "dataset captions images val_fraction tokenizer "
MAY_CHANGE += "dataset_config_file validate num_workers cache_features vocab vocab_root vocab_threshold "
MAY_CHANGE += (
    "no_tokenize features persist_features weights load_model init_model hierarchical_model cached_words distill "
)
MAY_CHANGE += "num_epochs early_stopping model_name model_basename output_root model_path optimizer_reset force_epoch "
MAY_CHANGE += "replace resume resume_changed save_every keep log_step verbose show_tokens tensorboard logger profiler "
MAY_CHANGE += "device cpu activation_checkpointing validate_only skip_existing_validations config of_decoder"
# What a command does with a run, rather than how the run goes: neither kept with a run nor read from a file.
ACTIONS = ("config", "resume", "resume_changed", "replace", "validate_only", "skip_existing_validations")
PROJECTION = "--regularize_projection above 0"
OF_SELF_CRITICAL = ("--self_critical", "--gamma_ml_rl", "--cached_words")  # beginnings of flags that act in it alone


def default_settings() -> dict:
    """The default of every setting of a run, by the name of its flag."""
    kinds = DataSettings, ModelSettings, ModelConfig, ParagraphConfig, TrainSettings, RunSettings
    found = {field.name: field.default for kind in kinds for field in fields(kind) if "flag" in field.metadata}
    return {name: value for name, value in found.items() if name not in ACTIONS}


def all_settings(flags: dict) -> dict:
    """Every setting of a run by the name of its flag, as config.json and the model files of the run keep it."""
    kept = {name: flags[name] for name in default_settings()}
    return {**kept, "dataset": None} if kept.get("captions") else kept  # the flags have one for the other


def lasting_settings(data: DataSettings, training: TrainSettings, run: RunSettings) -> dict:
    """The settings that the numbers of a run depend on, by flag. last.model keeps them.

    The number of epochs is among them where the learning rate follows it.
    """
    kept = {}
    for part in (data, training, run):
        kept |= {f"--{f.name}": getattr(part, f.name) for f in fields(part) if f.name not in MAY_CHANGE.split()}
    kept["--cache_features"] = data.cache_features is not None
    plateau = (
        training.lr_scheduler == "ReduceLROnPlateau" and run.validation_step > 1
    )  # the last epoch is validated too
    if training.lr_scheduler == "cosine" or plateau:
        kept["--num_epochs"] = run.num_epochs
    return kept


def model_settings(config: ModelConfig) -> dict:
    """The settings of a model by flag; of a feature file its shape and its maker, not where it lies."""
    idle = {"encoder_in_file", "paragraphs", "projection"} | config.idle()
    kept = {f"--{f.name}": getattr(config, f.name) for f in fields(config) if f.name not in idle}
    for flag in ("--features", "--persist_features"):
        kept[flag] = ", ".join(spec_text(spec) for spec in kept[flag])
    paragraphs = config.paragraphs
    kept |= {"--hierarchical_model": paragraphs is not None, PROJECTION: config.projection}
    return kept | ({f"--{f.name}": getattr(paragraphs, f.name) for f in fields(paragraphs)} if paragraphs else {})


def spec_text(spec: FeatureSpec) -> str:
    """A feature in a few words: "resnet152 2048 (weights 1f0c2a7b)", "file 2048x7x7 (resnet152-conv)"."""
    provenance = spec.provenance or {}
    maker = provenance.get("extractor") if spec.from_file else None
    weights = str(provenance.get("weights_sha256") or "")[:8]
    notes = ", ".join(filter(None, [maker, weights and f"weights {weights}"]))
    shape = "x".join(map(str, spec.shape))
    return f"{'file' if spec.from_file else spec.name} {shape}" + (f" ({notes})" if notes else "")


# What a model is made of: weights that were trained with one value mean nothing with another.
FIXED = {f"--{f.name}" for kind in (ModelConfig, ParagraphConfig) for f in fields(kind) if f.metadata.get("fixed")}
FIXED |= {"--vocab", "--hierarchical_model", PROJECTION}


def changes(was: dict, now: dict, begun: int, self_critical: bool) -> dict[str, str]:
    """What differs between two tables of settings: {"--seed": "--seed was 42, now 5"}.

    Of a setting that one of them lacks, since its version of the toolkit had no such thing, nothing is said. begun: the
    last epoch with a step; self_critical: whether it was one of self-critical training, whose settings count then.
    """

    def turned(epoch: int) -> int:
        return max(epoch, 1) if 0 <= epoch <= begun else -1

    found = {}
    for name in was.keys() & now.keys():
        old, new = was[name], now[name]
        if name == "--self_critical_from_epoch":
            if turned(old) == turned(new):
                continue
        elif name.startswith(OF_SELF_CRITICAL) and not self_critical:
            continue
        if old != new:
            found[name] = f"{name} was {old}, now {new}"
    return dict(sorted(found.items()))


def data_checksum(items: Sequence, sources: Iterable, shards=None) -> str:
    """Eight digits that differ for other images, captions or feature records: of all `items`, and of a few records.

    items: ImageItems; sources: FeatureFiles; shards: an array of the number of each item's tar shard, which the order
    of training follows, or None.
    """
    digest = hashlib.sha256(b"" if shards is None else shards.tobytes())
    for item in items:
        digest.update(repr((item.part, item.image_id, item.captions)).encode("utf-8", "surrogatepass"))
    some = [items[round(i * (len(items) - 1) / 7)] for i in range(8)] if items else []
    for source in sources:
        digest.update(source.get(some).numpy().tobytes())
    return digest.hexdigest()[:8]


def file_checksum(path) -> str:
    """Eight digits that differ for files of other content."""
    return sha256_of(path)[:8]
