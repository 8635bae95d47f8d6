"""The flags of train.py, a group a function, and which of them contradict each other. Light imports only.

Defaults, and what is done with a value, stand in the dataclasses of `SETTINGS`.
"""

from argparse import Namespace
from dataclasses import fields

from captioning.command_line import Parser
from captioning.config import ModelConfig, ParagraphConfig
from training.settings import (
    OPTIMIZERS,
    SCHEDULES,
    SELF_CRITICAL_LOSSES,
    TEACHER_FORCING,
    DataSettings,
    ModelSettings,
    RunSettings,
    TrainSettings,
)

SETTINGS = (DataSettings, ModelSettings, ModelConfig, ParagraphConfig, TrainSettings, RunSettings)
FIRST_USE = ("dataset", "dataset_config_file", "validate", "validation_scoring", "batch_size", "num_workers", "vocab")
FIRST_USE += ("vocab_threshold", "features", "persist_features", "attention", "embed_size", "hidden_size", "dropout")
FIRST_USE += ("finetune_encoder", "optimizer", "learning_rate", "model_name", "load_model", "resume", "replace")
FIRST_USE += ("num_epochs", "seed", "device")


def add_data(add) -> None:
    add("--dataset", metavar="NAME", help="training data: sections of datasets.conf, several joined by +")
    add("--dataset_config_file", metavar="FILE", help="the datasets.conf to use (default: see README)")
    add("--validate", metavar="NAME", help="validation data, like --dataset (default: no validation)")
    add("--validation_step", type=int, metavar="EPOCHS", help="epochs from one validation to the next")
    add("--validation_scoring", metavar="METRICS", help="metrics at validation: cider,bleu,rouge,meteor,spice, or none")
    add("--validation_beam_size", type=int, metavar="K", help="beams at validation; 1 is greedy search")
    add("--validate_only", action="store_true", help="only validate --load_model; writes train_stats-DATASET.json")
    add("--skip_existing_validations", action="store_true", help="--validate_only: skip models that have their figures")
    add("--num_workers", type=int, metavar="N", help="processes that load images (default: all cores)")
    add("--batch_size", type=int, metavar="N", help="captions in a batch")
    add("--captions_per_image", type=int, metavar="C", help="captions that share an image in a batch")
    add("--num_batches", type=int, metavar="N", help="end each epoch after N batches (default: never)")
    add("--crop_size", type=int, metavar="PIXELS", help="width and height of an image (default: the encoder's own)")
    add("--no_augment", action="store_true", help="train on whole images, without random crops and mirror images")
    add(
        "--cache_features",
        metavar="DIR",
        help="keep the frozen encoder's output of every image in this (local) folder and train from it: later epochs "
        "are as fast as from feature files; whole images, no random crops (default: off)",
    )


def add_vocabulary(add) -> None:
    add("--vocab", metavar="FILE", help="vocabulary file, AUTO (make it once, keep it) or REGEN (make it anew)")
    add("--vocab_root", metavar="DIR", help="where AUTO and REGEN keep vocabularies")
    add("--vocab_threshold", type=int, metavar="N", help="AUTO, REGEN: times a word must occur")
    add("--no_tokenize", action="store_true", help="AUTO, REGEN: captions are tokens already, split at spaces")
    add("--show_tokens", action="store_true", help="print the tokens of the first captions")
    add("--skip_start_token", action="store_true", help="read the image in place of <start>, not before it")


def add_model(add) -> None:
    add("--features", metavar="NAMES", help="encoders or feature files, comma separated, read before the first word")
    add("--persist_features", metavar="NAMES", help="encoders or feature files read at every word (default: none)")
    add("--weights", metavar="FILE", help="local file with the encoder's weights, instead of a download")
    add(
        "--attention",
        choices=["soft", "spatial"],
        help="attend to the -conv map: soft (Xu et al. 2015) or spatial (Lu et al. 2017); default none",
    )
    add("--attention_size", type=int, metavar="N", help="size of the attention's hidden layer")
    add("--value_size", type=int, metavar="N", help="size that the map's regions are projected to")
    add(
        "--regularize_attn",
        type=float,
        nargs="?",
        const=1.0,
        metavar="FACTOR",
        help="doubly stochastic attention (default: off; 1 when no factor is given)",
    )
    add("--embed_size", type=int, metavar="N", help="size of word embeddings")
    add("--hidden_size", type=int, metavar="N", help="size of the RNN's state")
    add("--num_layers", type=int, metavar="N", help="layers of the RNN")
    add("--rnn_arch", choices=["LSTM", "GRU"], help="kind of RNN")
    add(
        "--rnn_hidden_init",
        choices=["from_features"],
        help="compute the initial state from the features (default: zero, and the image is read first)",
    )
    add("--dropout", type=float, metavar="P", help="on embeddings, between layers and before the output (default 0)")
    add("--encoder_dropout", type=float, metavar="P", help="on the projected image or the map (default 0)")
    add("--encoder_non_lin", action="store_true", help="SELU after projecting the image")
    add("--share_embedding_weights", action="store_true", help="one matrix for input and output embeddings")
    add(
        "--regularize_projection",
        type=float,
        metavar="FACTOR",
        help="--share_embedding_weights: penalty on the norm of the projection before the shared matrix (Press and "
        "Wolf 2017); 0 leaves the projection out",
    )
    add(
        "--finetune_encoder",
        type=int,
        nargs="?",
        const=-1,
        metavar="BLOCKS",
        help="train the encoder's last BLOCKS blocks too (all when no number is given; default: frozen)",
    )


def add_paragraphs(add) -> None:
    add(
        "--hierarchical_model",
        action="store_true",
        help="write paragraphs: a sentence RNN over a word RNN (Krause et al. 2017); a model of sentences given with "
        "--load_model becomes the word RNN",
    )
    add("--pooling_size", type=int, metavar="P", help="size that regions are pooled to")
    add("--fc_size", type=int, metavar="N", help="hidden layer before the topics (default: --pooling_size)")
    add("--max_sentences", type=int, metavar="S", help="most sentences of a paragraph")
    add("--weight_sentence_loss", type=float, metavar="W", help="weight of the loss of the decision to stop")
    add("--weight_word_loss", type=float, metavar="W", help="weight of the loss of the words")
    add("--dropout_stopping", type=float, metavar="P", help="before the stop classifier (default 0)")
    add("--dropout_fc", type=float, metavar="P", help="on the topics (default 0)")
    add("--lr_word_decoder", type=float, metavar="RATE", help="of the word RNN; 0 keeps it (default: --learning_rate)")
    add(
        "--coherent_sentences",
        action="store_true",
        help="couple each topic to the sentence before and a global topic (Chatterjee and Schwing 2018)",
    )
    add("--coupling_alpha", type=float, metavar="A", help="--coherent_sentences: weight of the topic")
    add("--coupling_beta", type=float, metavar="B", help="--coherent_sentences: weight of the sentence before")


def add_optimiser(add) -> None:
    add("--optimizer", choices=OPTIMIZERS, help="which optimizer")
    add("--learning_rate", type=float, metavar="RATE", help="learning rate after the warm-up")
    add(
        "--encoder_learning_rate",
        type=float,
        metavar="RATE",
        help="--finetune_encoder: learning rate of the encoder's weights (default: --learning_rate)",
    )
    add("--weight_decay", type=float, metavar="FACTOR", help="decay of the weights")
    add("--grad_clip", type=float, metavar="VALUE", help="clip every gradient value to +-VALUE (default: no clipping)")
    add(
        "--lr_scheduler",
        nargs="?",
        const="ReduceLROnPlateau",
        choices=SCHEDULES,
        help="default: constant; ReduceLROnPlateau (a tenth after 3 epochs that are no better) where no name is given",
    )
    add("--lr_step_size", type=int, metavar="EPOCHS", help="StepLR: epochs to half the rate")
    add("--lr_cyclical_min", type=float, metavar="RATE", help="CyclicalLR: lowest rate, an epoch after the highest")
    add("--lr_cyclical_max", type=float, metavar="RATE", help="CyclicalLR: highest rate")
    add("--warmup_steps", type=int, metavar="STEPS", help="steps of linear warm-up (default 0)")
    add("--label_smoothing", type=float, metavar="P", help="probability spread over all words (default 0)")
    add("--ema", type=float, metavar="DECAY", help="validate and save averaged weights, such as 0.999 (default: off)")


def add_teacher_forcing(add) -> None:
    add("--teacher_forcing", choices=TEACHER_FORCING, help="when the decoder reads the true previous word")
    add("--teacher_forcing_k", type=float, metavar="K", help="at step i with probability k / (k + exp(i * beta / k))")
    add("--teacher_forcing_beta", type=float, metavar="BETA", help="the beta in it")


def add_self_critical_training(add) -> None:
    add(
        "--self_critical_from_epoch",
        type=int,
        metavar="N",
        help="from epoch N on reward sampled captions by their CIDEr-D; a run that turns to it midway goes back to its "
        "best epoch so far and begins the optimizer anew; -1 means never",
    )
    add(
        "--self_critical_loss",
        choices=SELF_CRITICAL_LOSSES,
        help="sc, with a term against repetition or for diversity, or mixed with cross-entropy",
    )
    add("--gamma_ml_rl", type=float, metavar="G", help="mixed losses: G * self-critical + (1 - G) * cross-entropy")
    add("--self_critical_learning_rate", type=float, metavar="RATE", help="learning rate of a run that turns midway")
    add(
        "--cached_words",
        metavar="FILE",
        help="document frequencies for CIDEr-D, of build_cached_words.py or a pickle of DeepCaption (default: counted "
        "over the training captions and kept beside the vocabulary)",
    )
    add(
        "--trigram_penalty_alpha",
        type=float,
        metavar="A",
        help="a word that would repeat a trigram loses A * ln 2 of log-probability per earlier time, in samples and in "
        "captions of the validation (default: off)",
    )
    add("--self_critical_samples", type=int, metavar="N", help="captions drawn per image (1: a greedy baseline)")
    add("--self_critical_temperature", type=float, metavar="T", help="captions are drawn from softmax(logits / T)")


def add_distillation(add) -> None:
    add(
        "--distill",
        nargs="+",
        metavar="FILE",
        help="learn the mean word probabilities of these trained models too; the same vocabulary (default: none)",
    )
    add("--distill_weight", type=float, metavar="W", help="the teachers' share of the loss")
    add("--distill_temperature", type=float, metavar="T", help="divide logits by T; above 1 unlikely words count more")


def add_run(add) -> None:
    add("--model_name", metavar="NAME", help="folder of the run under --model_path (default: made of the settings)")
    add("--model_basename", metavar="NAME", help="first part of the folder's name that is made of the settings")
    add("--output_root", metavar="DIR", help="put before --model_path (default: none)")
    add("--model_path", metavar="DIR", help="folder of all runs")
    add("--load_model", nargs="+", metavar="FILE", help="start from this model; several with --validate_only")
    add("--optimizer_reset", action="store_true", help="--load_model: begin with the optimizer's state anew")
    add("--force_epoch", type=int, metavar="N", help="--load_model: count on from epoch N")
    add("--replace", "--force", action="store_true", help="write over a run of the same name")
    add("--resume", action="store_true", help="go on from the run's last.model, exactly, if there is one")
    add("--num_epochs", type=int, metavar="N", help="the last epoch")
    add("--save_every", type=int, metavar="STEPS", help="write last.model every STEPS too (default: after each epoch)")
    add("--early_stopping", type=int, metavar="EPOCHS", help="epochs without improvement that end the run (0: never)")
    add("--log_step", type=int, metavar="STEPS", help="steps between updates of the loss shown")
    add("--verbose", action="store_true", help="also print the model and its parameters")
    add("--seed", type=int, metavar="N", help="seed of the random numbers")
    add("--deterministic", action="store_true", help="only deterministic algorithms (slower on a GPU)")
    add("--amp", choices=["off", "bf16"], help="mixed precision")
    add("--compile", action="store_true", help="compile the encoder with torch.compile, on a GPU (default: no)")
    add("--tensorboard", action="store_true", help="write scalars and histograms into the run's folder tensorboard/")
    add("--profiler", action="store_true", help="profile ten steps: profile.txt and trace.json in the run's folder")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")


GROUPS = {
    "data": add_data,
    "vocabulary": add_vocabulary,
    "model": add_model,
    "paragraphs": add_paragraphs,
    "optimiser": add_optimiser,
    "teacher forcing": add_teacher_forcing,
    "self-critical training": add_self_critical_training,
    "distillation": add_distillation,
    "run": add_run,
}


def parse_args(doc: str, argv=None) -> Namespace:
    """The flags of `argv` (default: the command line's), checked; `doc` is what --help begins with."""
    parser = Parser(doc, SETTINGS, FIRST_USE, usage="%(prog)s --dataset NAME [--flag VALUE ...]")
    for title, add_flags in GROUPS.items():
        add_flags(parser.group(title))
    args = parser.parse_args(argv)
    check_ranges(parser, args)
    check(parser, args)
    check_paragraphs(parser, args)
    return args


# what a value must be -> whether it is, and the flags that must be so where they have a value
RANGES = {
    "at least 1": (
        lambda value: value >= 1,
        "batch_size captions_per_image num_epochs hidden_size embed_size num_layers log_step validation_step "
        "validation_beam_size lr_step_size attention_size value_size self_critical_samples pooling_size fc_size "
        "max_sentences",
    ),
    "from 0 to below 1": (
        lambda value: 0 <= value < 1,
        "dropout encoder_dropout label_smoothing ema dropout_stopping dropout_fc",
    ),
    "from 0 to 1": (lambda value: 0 <= value <= 1, "gamma_ml_rl distill_weight"),
    "above 0": (
        lambda value: value > 0,
        "learning_rate grad_clip self_critical_temperature self_critical_learning_rate distill_temperature",
    ),
    "0 or more": (
        lambda value: value >= 0,
        "regularize_projection weight_sentence_loss weight_word_loss coupling_alpha coupling_beta lr_word_decoder",
    ),
}


def check_ranges(parser: Parser, args) -> None:
    for wanted, (fits, names) in RANGES.items():
        for name in names.split():
            value = getattr(args, name)
            if value is not None and not fits(value):
                parser.error(f"--{name} {value}: {wanted}")


def measures_ciderd(metrics: str) -> bool:
    return "ciderd" in metrics.lower().replace("-", "").replace("_", "")


def check(parser: Parser, args) -> None:
    """Refuse flags that contradict each other before anything is loaded."""
    if args.validate_only and not (args.load_model and args.validate):
        parser.error("--validate_only needs --load_model and --validate")
    if not args.dataset and not args.validate_only:
        parser.error("--dataset is required: sections of datasets.conf, such as coco:train2014")
    if args.cache_features and args.finetune_encoder:
        parser.error("--cache_features needs a frozen encoder: leave out --finetune_encoder")
    if args.cache_features and args.validate_only:
        parser.error("--cache_features is for training: with --validate_only every image is encoded once anyway")
    if args.load_model and len(args.load_model) > 1 and not args.validate_only:
        parser.error("--load_model takes several models with --validate_only alone")
    if args.skip_existing_validations and not args.validate_only:
        parser.error("--skip_existing_validations is for --validate_only")
    if args.cached_words and args.self_critical_from_epoch < 0 and not measures_ciderd(args.validation_scoring):
        parser.error("--cached_words is for --self_critical_from_epoch and for --validation_scoring ciderd")


def check_paragraphs(parser: Parser, args) -> None:
    """Refuse flags of paragraphs for a model of sentences, and the other way round."""
    if args.coupling_alpha + args.coupling_beta == 0:
        parser.error("--coupling_alpha and --coupling_beta: one of them above 0")
    if not args.hierarchical_model:
        for field in fields(ParagraphConfig):
            if field.name in args.typed_flags and not args.load_model:
                parser.error(f"--{field.name} is for --hierarchical_model")
        return
    if args.rnn_hidden_init:
        parser.error("--rnn_hidden_init: with --hierarchical_model the word RNN starts from the topic, read first")
    for name, asked in (("self_critical_from_epoch", args.self_critical_from_epoch >= 0), ("distill", args.distill)):
        if asked:
            parser.error(f"--{name}: a --hierarchical_model is trained by cross-entropy alone")
