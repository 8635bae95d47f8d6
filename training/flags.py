"""The flags of train.py under their headings, and which of them contradict each other. Light imports only.

Name, type, default and help of each stand in the dataclasses of `SETTINGS`; docs/training.md says more.
"""

from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from captioning.command_line import Parser
from captioning.config import ModelConfig, ParagraphConfig
from captioning.datasets.config import DatasetParams, get_datasets
from captioning.errors import UserError
from captioning.files import check_writable, require_file, require_model_file
from training.settings import ACTIONS, DataSettings, ModelSettings, RunSettings, TrainSettings
from vocabulary import Vocabulary

SETTINGS = (DataSettings, ModelSettings, ModelConfig, ParagraphConfig, TrainSettings, RunSettings)
FIRST_USE = ("dataset", "captions", "images", "val_fraction", "dataset_config_file", "validate", "validation_scoring")
FIRST_USE += ("batch_size", "num_workers", "vocab", "vocab_threshold", "tokenizer", "features", "persist_features")
FIRST_USE += ("decoder", "attention", "embed_size", "hidden_size", "dropout", "finetune_encoder", "optimizer")
FIRST_USE += (
    "learning_rate",
    "config",
    "model_name",
    "load_model",
    "resume",
    "replace",
    "num_epochs",
    "seed",
    "device",
)


GROUPS = {  # the flags of train.py under their headings in the help; flags with two names are joined by /
    "data": "dataset captions images val_fraction dataset_config_file validate validation_step validation_scoring "
    "validation_beam_size validate_only skip_existing_validations num_workers batch_size captions_per_image "
    "mix shuffle_buffer num_batches crop_size no_augment cache_features",
    "vocabulary": "vocab vocab_root vocab_threshold tokenizer no_tokenize show_tokens skip_start_token",
    "model": "features persist_features weights decoder attention attention_size value_size regularize_attn embed_size "
    "hidden_size num_layers rnn_arch rnn_hidden_init dropout encoder_dropout encoder_non_lin share_embedding_weights "
    "regularize_projection finetune_encoder",
    "Transformer (--decoder transformer)": "heads feed_forward_size region_layers attention_dropout positions "
    "max_positions",
    "paragraphs": "hierarchical_model pooling_size fc_size max_sentences weight_sentence_loss weight_word_loss "
    "dropout_stopping dropout_fc lr_word_decoder coherent_sentences coupling_alpha coupling_beta",
    "optimiser": "optimizer learning_rate encoder_learning_rate encoder_lr_decay weight_decay grad_clip "
    "grad_clip_norm lr_scheduler lr_step_size lr_cyclical_min lr_cyclical_max warmup_steps label_smoothing ema "
    "accumulate",
    "teacher forcing": "teacher_forcing teacher_forcing_k teacher_forcing_beta",
    "self-critical training": "self_critical_from_epoch self_critical_loss gamma_ml_rl self_critical_learning_rate "
    "cached_words trigram_penalty_alpha self_critical_samples self_critical_temperature self_critical_mean",
    "distillation": "distill distill_weight distill_temperature",
    "run": "config model_name model_basename output_root model_path load_model init_model optimizer_reset force_epoch "
    "replace/force resume resume_changed num_epochs save_every keep early_stopping best_by log_step verbose seed "
    "deterministic amp compile activation_checkpointing tensorboard logger profiler cpu device",
}

# what a value must be -> whether it is, and the flags that must be so where they have a value
COUNTS = "batch_size captions_per_image num_epochs hidden_size embed_size num_layers log_step validation_step fc_size "
COUNTS += "validation_beam_size lr_step_size attention_size value_size self_critical_samples pooling_size "
COUNTS += "max_sentences heads feed_forward_size max_positions accumulate shuffle_buffer"
PROBABILITIES = "dropout encoder_dropout attention_dropout label_smoothing ema dropout_stopping dropout_fc"
SHARES = "val_fraction"
POSITIVE = "learning_rate encoder_learning_rate grad_clip grad_clip_norm self_critical_learning_rate"
WEIGHTS = "regularize_projection weight_sentence_loss weight_word_loss coupling_alpha coupling_beta lr_word_decoder "
WEIGHTS += "teacher_forcing_k"
RANGES = {
    "at least 1": (lambda value: value >= 1, COUNTS),
    "from 0 to below 1": (lambda value: 0 <= value < 1, PROBABILITIES),
    "from 0 to 1": (lambda value: 0 <= value <= 1, "gamma_ml_rl distill_weight"),
    "from 0.001 to 1,000": (lambda value: 0.001 <= value <= 1000, "self_critical_temperature distill_temperature"),
    "above 0 and below 1": (lambda value: 0 < value < 1, SHARES),
    "above 0 and at most 1": (lambda value: 0 < value <= 1, "encoder_lr_decay"),
    "above 0": (lambda value: value > 0, POSITIVE),
    "from 0 to 1,000": (lambda value: 0 <= value <= 1000, "num_workers"),
    "0 or more": (lambda value: value >= 0, WEIGHTS + " keep region_layers warmup_steps"),
}


def parse_args(doc: str, argv=None) -> Namespace:
    """The flags of `argv` (default: the command line's), checked; `doc` is what --help begins with."""
    parser = Parser(doc, SETTINGS, FIRST_USE, True, usage="%(prog)s --dataset NAME [--flag VALUE ...]")
    for title, names in GROUPS.items():
        add = parser.group(title)
        for name in names.split():
            add(*(f"--{part}" for part in name.split("/")))
    parser.file_flag, parser.typed_only = "config", ACTIONS
    args = parser.parse_args(argv)
    both = args.dataset and args.captions
    args.dataset = args.dataset or args.captions  # the same, but for who reads it
    for wanted, (fits, names) in RANGES.items():
        for name in names.split():
            value = getattr(args, name)
            if value is not None and not fits(value):
                parser.error(f"--{name} {value}: {wanted}")
    if both:
        parser.error("--dataset and --captions exclude each other; several are joined by +")
    for message, wrong in contradictions(args).items():
        if wrong:
            parser.error(message)
    return args


def check_paths(args) -> None:
    """Raises UserError where a dataset, a file or an output folder of the flags cannot be used. Needs no torch."""
    trained = "--captions" if args.captions else "--dataset"
    for option in ("--validate",) if args.validate_only else (trained, "--validate"):
        if name := getattr(args, option[2:]):
            parts = get_datasets(name, args.dataset_config_file, option, args.images)
            if not args.validate_only:
                check_feature_files(args.typed_flags, parts)
    for option in ("--weights", "--cached_words"):
        if path := getattr(args, option[2:]):
            require_file(option, path)
    models = args.load_model or []
    if args.validate_only and (len(models) > 1 or args.skip_existing_validations):
        models = []  # a model that fails is passed over, or not even read
    for path in models + (args.distill or []) + ([args.init_model] if args.init_model else []):
        require_model_file(path)
    vocabulary = DataSettings.of(vars(args)).vocabulary_file
    if vocabulary:
        Vocabulary.load(vocabulary)
    if not args.validate_only:
        for one in runs(args):
            folder = Path(args.output_root) / args.model_path / (one.model_name or "")
            if len(models) > 1 and any(folder.glob("*.model")) and not (args.resume or args.replace):
                raise UserError(
                    f"{folder} holds a run already: give --model_name NAME, which trains {one.load_model[0]} in "
                    f"NAME-{one.model_name}, --resume to go on, or --replace"
                )
            check_writable("--model_path", folder / "last.model")


def runs(args) -> list[Namespace]:
    """The flags of each run that `args` ask for: one, or one for each of several models of --load_model.

    Each of several has a folder of its own, named as the one of its model, after --model_name where that is given.
    Raises UserError where two would have the same.
    """
    models = args.load_model or []
    if len(models) < 2:
        return [args]
    paths = [Path(model).resolve() for model in models]
    names = [path.parent.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}-{path.stem}" for path in paths]
    for number, name in enumerate(names):
        if name in names[:number]:
            other = models[names.index(name)]
            raise UserError(f"--load_model {other} and {models[number]} would both be trained in {name}: rename one")
    names = [f"{args.model_name}-{name}" if args.model_name else name for name in names]
    return [Namespace(**{**vars(args), "load_model": [m], "model_name": name}) for m, name in zip(models, names)]


def check_feature_files(typed_flags: dict, parts: list[DatasetParams]) -> None:
    """Raises UserError where a feature file that the flags name is not there for one of `parts`."""
    from captioning.features.factory import is_feature_file
    from captioning.features.places import require_feature_file

    for flag in ("features", "persist_features"):
        for name in filter(None, map(str.strip, typed_flags.get(flag, "").split(","))):
            if is_feature_file(name):
                for part in parts:
                    require_feature_file(part, name)


def contradictions(args) -> dict[str, object]:
    """The mistakes that flags can make together; a mistake that was made has a value that is true."""
    trained, self_critical, cached = not args.validate_only, args.self_critical_from_epoch >= 0, args.cache_features
    ciderd = "ciderd" in args.validation_scoring.lower().replace("-", "").replace("_", "")
    idle_words = args.cached_words and not self_critical and not ciderd
    paragraphs, models = args.hierarchical_model, args.load_model or []
    of_paragraphs = [field.name for field in fields(ParagraphConfig) if field.name in args.typed_flags] or [""]
    others = [f for f in fields(ModelConfig) if f.metadata.get("of") not in (None, args.decoder)]
    of_others = [] if models else [f for f in others if f.name in args.typed_flags]
    by_cross_entropy = "a --hierarchical_model is trained by cross-entropy alone"
    return {
        "--init_model and --load_model exclude each other": args.init_model and models,
        "--validate_only needs --load_model and --validate": not trained and not (models and args.validate),
        "--dataset is required: sections of datasets.conf, such as coco:train2014, or a file or folder of captions": (
            trained and not args.dataset
        ),
        "--val_fraction and --validate exclude each other": args.val_fraction and args.validate,
        "--best_by is for training with validation: --validate or --val_fraction": args.best_by
        and not (trained and (args.validate or args.val_fraction)),
        "--val_fraction is for training: --validate_only takes --validate PATH:SPLIT": args.val_fraction
        and not trained,
        "--no_tokenize and --tokenizer exclude each other": args.no_tokenize and args.tokenizer,
        "--grad_clip and --grad_clip_norm exclude each other": args.grad_clip and args.grad_clip_norm,
        "--encoder_lr_decay needs an encoder that is trained: --finetune_encoder": (
            args.encoder_lr_decay != 1 and not args.finetune_encoder
        ),
        "--activation_checkpointing needs an encoder that is trained: --finetune_encoder": (
            args.activation_checkpointing and not args.finetune_encoder
        ),
        "--compile and --activation_checkpointing exclude each other: what is compiled chooses what it keeps": (
            args.compile and args.activation_checkpointing
        ),
        "--cache_features needs a frozen encoder: leave out --finetune_encoder": cached and args.finetune_encoder,
        "--cache_features is for training: --validate_only encodes every image once anyway": cached and not trained,
        "--skip_existing_validations is for --validate_only": args.skip_existing_validations and trained,
        "--cached_words is for --self_critical_from_epoch and for --validation_scoring ciderd": idle_words,
        "--coupling_alpha and --coupling_beta: one of them above 0": args.coupling_alpha + args.coupling_beta == 0,
        f"--{of_paragraphs[0]} is for --hierarchical_model": of_paragraphs[0] and not paragraphs and not models,
        **{f"--{f.name} is of --decoder {f.metadata['of']}": True for f in of_others[:1]},
        "--hierarchical_model is an RNN: leave out --decoder transformer": paragraphs and args.decoder != "lstm",
        f"--heads {args.heads}: it must divide --hidden_size {args.hidden_size}": (
            args.decoder == "transformer" and args.hidden_size % args.heads and not models
        ),
        "--rnn_hidden_init: with --hierarchical_model the word RNN starts from the topic, read first": (
            paragraphs and args.rnn_hidden_init
        ),
        f"--self_critical_from_epoch: {by_cross_entropy}": paragraphs and self_critical,
        "--accumulate is for captions of one sentence, not for --hierarchical_model": paragraphs
        and args.accumulate > 1,
        "--accumulate: drawn tokens are counted after the gradients; leave out --self_critical_mean tokens": (
            args.accumulate > 1 and self_critical and args.self_critical_mean == "tokens"
        ),
        f"--distill: {by_cross_entropy}": paragraphs and args.distill,
    }
