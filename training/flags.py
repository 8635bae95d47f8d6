"""The flags of train.py, a group a function, and which of them contradict each other. Light imports only.

Defaults and types stand in the dataclasses of `SETTINGS`; docs/ says more of each flag than its help.
"""

from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from captioning.command_line import Parser
from captioning.config import ModelConfig, ParagraphConfig
from captioning.datasets.config import CONFIG_HELP, get_datasets
from captioning.files import check_writable, require_model_file
from training.settings import DataSettings, ModelSettings, RunSettings, TrainSettings
from vocabulary import Vocabulary

SETTINGS = (DataSettings, ModelSettings, ModelConfig, ParagraphConfig, TrainSettings, RunSettings)
FIRST_USE = ("dataset", "dataset_config_file", "validate", "validation_scoring", "batch_size", "num_workers", "vocab")
FIRST_USE += ("vocab_threshold", "features", "persist_features", "attention", "embed_size", "hidden_size", "dropout")
FIRST_USE += ("finetune_encoder", "optimizer", "learning_rate", "model_name", "load_model", "resume", "replace")
FIRST_USE += ("num_epochs", "seed", "device")


def add_data(add) -> None:
    add("--dataset", metavar="NAME", help="training data: sections of datasets.conf, several joined by +")
    add("--dataset_config_file", metavar="FILE", help=CONFIG_HELP)
    add("--validate", metavar="NAME", help="validation data, like --dataset (default: no validation)")
    add("--validation_step", metavar="EPOCHS", help="epochs from one validation to the next")
    add("--validation_scoring", metavar="METRICS", help="metrics at validation: cider,bleu,rouge,meteor,spice, or none")
    add("--validation_beam_size", metavar="K", help="beams at validation; 1 is greedy search")
    add("--validate_only", help="only validate --load_model; writes train_stats-DATASET.json")
    add("--skip_existing_validations", help="--validate_only: skip models that have their figures")
    add("--num_workers", help="processes that load images (default: all cores)")
    add("--batch_size", help="captions in a batch")
    add("--captions_per_image", metavar="C", help="captions that share an image in a batch")
    add("--num_batches", help="end each epoch after N batches (default: never)")
    add("--crop_size", metavar="PIXELS", help="width and height of an image (default: the encoder's own)")
    add("--no_augment", help="train on whole images, without random crops and mirror images")
    add("--cache_features", metavar="DIR", help="keep the frozen encoder's output here, train from it (default: off)")


def add_vocabulary(add) -> None:
    add("--vocab", metavar="FILE", help="vocabulary file, AUTO (make it once, keep it) or REGEN (make it anew)")
    add("--vocab_root", metavar="DIR", help="where AUTO and REGEN keep vocabularies")
    add("--vocab_threshold", help="AUTO, REGEN: times a word must occur")
    add("--no_tokenize", help="AUTO, REGEN: captions are tokens already, split at spaces")
    add("--show_tokens", help="print the tokens of the first captions")
    add("--skip_start_token", help="read the image in place of <start>, not before it")


def add_model(add) -> None:
    add("--features", metavar="NAMES", help="encoders or feature files, comma separated, read before the first word")
    add("--persist_features", metavar="NAMES", help="encoders or feature files read at every word (default: none)")
    add("--weights", metavar="FILE", help="local file with the encoder's weights, instead of a download")
    add("--attention", choices=["soft", "spatial"], help="attend to the -conv map (default: none)")
    add("--attention_size", help="size of the attention's hidden layer")
    add("--value_size", help="size that the map's regions are projected to")
    add("--regularize_attn", nargs="?", const=1.0, help="doubly stochastic attention, weight X (default: 0; bare: 1)")
    add("--embed_size", help="size of word embeddings")
    add("--hidden_size", help="size of the RNN's state")
    add("--num_layers", help="layers of the RNN")
    add("--rnn_arch", choices=["LSTM", "GRU"], help="kind of RNN")
    add("--rnn_hidden_init", choices=["from_features"], help="compute the initial state from the features (default: 0)")
    add("--dropout", metavar="P", help="on embeddings, between layers and before the output (default: 0)")
    add("--encoder_dropout", metavar="P", help="on the projected image or the map (default: 0)")
    add("--encoder_non_lin", help="SELU after projecting the image")
    add("--share_embedding_weights", help="one matrix for input and output embeddings")
    add("--regularize_projection", help="penalty on the norm of the shared matrix's projection; 0: no projection")
    add("--finetune_encoder", nargs="?", const=-1, help="train its last N blocks too (default: 0; bare: all)")


def add_paragraphs(add) -> None:
    add("--hierarchical_model", help="write paragraphs; --load_model may then be a model of sentences")
    add("--pooling_size", help="size that regions are pooled to")
    add("--fc_size", help="hidden layer before the topics (default: --pooling_size)")
    add("--max_sentences", help="most sentences of a paragraph")
    add("--weight_sentence_loss", help="weight of the loss of the decision to stop")
    add("--weight_word_loss", help="weight of the loss of the words")
    add("--dropout_stopping", metavar="P", help="before the stop classifier (default: 0)")
    add("--dropout_fc", metavar="P", help="on the topics (default: 0)")
    add("--lr_word_decoder", metavar="RATE", help="of the word RNN; 0 keeps it (default: --learning_rate)")
    add("--coherent_sentences", help="couple each topic to the sentence before and to a global topic")
    add("--coupling_alpha", help="--coherent_sentences: weight of the topic")
    add("--coupling_beta", help="--coherent_sentences: weight of the sentence before")


def add_optimiser(add) -> None:
    add("--optimizer", help="which optimizer")
    add("--learning_rate", metavar="RATE", help="learning rate after the warm-up")
    add("--encoder_learning_rate", metavar="RATE", help="of the encoder's weights (default: --learning_rate)")
    add("--weight_decay", help="decay of the weights")
    add("--grad_clip", help="clip every gradient value to +-X (default: no clipping)")
    add("--lr_scheduler", nargs="?", const="ReduceLROnPlateau", help="default: constant; bare: ReduceLROnPlateau")
    add("--lr_step_size", metavar="EPOCHS", help="StepLR: epochs to half the rate")
    add("--lr_cyclical_min", metavar="RATE", help="CyclicalLR: lowest rate, an epoch after the highest")
    add("--lr_cyclical_max", metavar="RATE", help="CyclicalLR: highest rate")
    add("--warmup_steps", help="steps of linear warm-up (default: 0)")
    add("--label_smoothing", metavar="P", help="probability spread over all words (default: 0)")
    add("--ema", metavar="DECAY", help="validate and save averaged weights, such as 0.999 (default: off)")


def add_teacher_forcing(add) -> None:
    add("--teacher_forcing", help="when the decoder reads the true previous word")
    add("--teacher_forcing_k", metavar="K", help="at step i with probability k / (k + exp(i * beta / k))")
    add("--teacher_forcing_beta", metavar="BETA", help="the beta in it")


def add_self_critical_training(add) -> None:
    add("--self_critical_from_epoch", help="from epoch N on reward sampled captions by their CIDEr-D; -1: never")
    add("--self_critical_loss", help="sc: CIDEr-D alone; sc_with_...: and a term; mixed...: and cross-entropy")
    add("--gamma_ml_rl", metavar="G", help="mixed losses: G * self-critical + (1 - G) * cross-entropy")
    add("--self_critical_learning_rate", metavar="RATE", help="learning rate of a run that turns midway")
    add("--cached_words", metavar="FILE", help="document frequencies (default: counted over the training captions)")
    add("--trigram_penalty_alpha", metavar="A", help="a repeated trigram costs A ln 2 of log-probability (default: 0)")
    add("--self_critical_samples", help="captions drawn per image (1: a greedy baseline)")
    add("--self_critical_temperature", metavar="T", help="captions are drawn from softmax(logits / T)")


def add_distillation(add) -> None:
    add("--distill", metavar="FILE", help="learn the mean word probabilities of these models too (default: none)")
    add("--distill_weight", metavar="W", help="the teachers' share of the loss")
    add("--distill_temperature", metavar="T", help="divide logits by T; above 1 unlikely words count more")


def add_run(add) -> None:
    add("--model_name", metavar="NAME", help="folder of the run under --model_path (default: made of the settings)")
    add("--model_basename", metavar="NAME", help="first part of the folder's name that is made of the settings")
    add("--output_root", metavar="DIR", help="put before --model_path (default: none)")
    add("--model_path", metavar="DIR", help="folder of all runs")
    add("--load_model", metavar="FILE", help="start from this model; several with --validate_only")
    add("--optimizer_reset", help="--load_model: begin with the optimizer's state anew")
    add("--force_epoch", help="--load_model: count on from epoch N")
    add("--replace", "--force", help="write over a run of the same name")
    add("--resume", help="go on from the run's last.model, exactly, if there is one")
    add("--num_epochs", help="epochs to train, those of --load_model and --resume included")
    add("--save_every", metavar="STEPS", help="write last.model every STEPS too (default: after each epoch)")
    add("--early_stopping", metavar="EPOCHS", help="epochs without improvement that end the run (default: never)")
    add("--log_step", metavar="STEPS", help="steps between updates of the loss shown")
    add("--verbose", help="also print the model and its parameters")
    add("--seed", help="seed of the random numbers")
    add("--deterministic", help="only deterministic algorithms (slower on a GPU)")
    add("--amp", help="mixed precision")
    add("--compile", help="compile the encoder with torch.compile, on a GPU (default: no)")
    add("--tensorboard", help="write scalars and histograms into the run's folder tensorboard/")
    add("--profiler", help="profile ten steps: profile.txt and trace.json in the run's folder")
    add("--cpu", help="do not use a GPU")
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

# what a value must be -> whether it is, and the flags that must be so where they have a value
COUNTS = "batch_size captions_per_image num_epochs hidden_size embed_size num_layers log_step validation_step fc_size "
COUNTS += "validation_beam_size lr_step_size attention_size value_size self_critical_samples pooling_size max_sentences"
PROBABILITIES = "dropout encoder_dropout label_smoothing ema dropout_stopping dropout_fc"
POSITIVE = "learning_rate grad_clip self_critical_temperature self_critical_learning_rate distill_temperature"
WEIGHTS = "regularize_projection weight_sentence_loss weight_word_loss coupling_alpha coupling_beta lr_word_decoder"
RANGES = {
    "at least 1": (lambda value: value >= 1, COUNTS),
    "from 0 to below 1": (lambda value: 0 <= value < 1, PROBABILITIES),
    "from 0 to 1": (lambda value: 0 <= value <= 1, "gamma_ml_rl distill_weight"),
    "above 0": (lambda value: value > 0, POSITIVE),
    "0 or more": (lambda value: value >= 0, WEIGHTS),
}


def parse_args(doc: str, argv=None) -> Namespace:
    """The flags of `argv` (default: the command line's), checked; `doc` is what --help begins with."""
    parser = Parser(doc, SETTINGS, FIRST_USE, usage="%(prog)s --dataset NAME [--flag VALUE ...]")
    for title, add_flags in GROUPS.items():
        add_flags(parser.group(title))
    args = parser.parse_args(argv)
    for wanted, (fits, names) in RANGES.items():
        for name in names.split():
            value = getattr(args, name)
            if value is not None and not fits(value):
                parser.error(f"--{name} {value}: {wanted}")
    for message, wrong in contradictions(args).items():
        if wrong:
            parser.error(message)
    return args


def check_paths(args) -> None:
    """Raises UserError where a dataset, a file or an output folder of the flags cannot be used. Needs no torch."""
    for dataset in filter(None, (args.dataset, args.validate)):
        get_datasets(dataset, args.dataset_config_file)
    models = args.load_model or []
    if len(models) > 1 or args.skip_existing_validations:  # a model that fails is passed over, or not even read
        models = []
    for path in models + (args.distill or []):
        require_model_file(path)
    vocabulary = DataSettings.of(vars(args)).vocabulary_file
    if vocabulary:
        Vocabulary.load(vocabulary)
    if not args.validate_only:
        check_writable(
            "--model_path", Path(args.output_root) / args.model_path / (args.model_name or "") / "last.model"
        )


def contradictions(args) -> dict[str, object]:
    """The mistakes that flags can make together; a mistake that was made has a value that is true."""
    trained, self_critical = not args.validate_only, args.self_critical_from_epoch >= 0
    ciderd = "ciderd" in args.validation_scoring.lower().replace("-", "").replace("_", "")
    paragraphs, models = args.hierarchical_model, args.load_model or []
    of_paragraphs = [field.name for field in fields(ParagraphConfig) if field.name in args.typed_flags] or [""]
    by_cross_entropy = "a --hierarchical_model is trained by cross-entropy alone"
    return {
        "--validate_only needs --load_model and --validate": not trained and not (models and args.validate),
        "--dataset is required: sections of datasets.conf, such as coco:train2014": trained and not args.dataset,
        "--cache_features needs a frozen encoder: leave out --finetune_encoder": (
            args.cache_features and args.finetune_encoder
        ),
        "--cache_features is for training: with --validate_only every image is encoded once anyway": (
            args.cache_features and not trained
        ),
        "--load_model takes several models with --validate_only alone": len(models) > 1 and trained,
        "--skip_existing_validations is for --validate_only": args.skip_existing_validations and trained,
        "--cached_words is for --self_critical_from_epoch and for --validation_scoring ciderd": (
            args.cached_words and not self_critical and not ciderd
        ),
        "--coupling_alpha and --coupling_beta: one of them above 0": args.coupling_alpha + args.coupling_beta == 0,
        f"--{of_paragraphs[0]} is for --hierarchical_model": of_paragraphs[0] and not paragraphs and not models,
        "--rnn_hidden_init: with --hierarchical_model the word RNN starts from the topic, read first": (
            paragraphs and args.rnn_hidden_init
        ),
        f"--self_critical_from_epoch: {by_cross_entropy}": paragraphs and self_critical,
        f"--distill: {by_cross_entropy}": paragraphs and args.distill,
    }
