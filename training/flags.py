"""The flags of train.py, a group a function, and which of them contradict each other. Light imports only."""

from argparse import Namespace

from captioning.command_line import Parser

# the same as self_critical_losses.NAMES, which needs torch
SELF_CRITICAL_LOSSES = ("sc", "sc_with_diversity", "sc_with_relative_diversity", "sc_with_bleu_diversity",
    "sc_with_repetition", "mixed", "mixed_with_face")  # fmt: skip


def add_data(add) -> None:
    add("--dataset", help="training data: sections of datasets.conf, several joined by +")
    add("--dataset_config_file", help="the datasets.conf to use (default: see README)")
    add("--validate", metavar="DATASET", help="validation data, like --dataset (default: no validation)")
    add("--validation_step", type=int, default=1, metavar="N", help="validate every N epochs (default 1)")
    add(
        "--validation_scoring",
        default="cider,bleu",
        metavar="METRICS",
        help="metrics at validation: cider,bleu,rouge,meteor,spice, or none (default cider,bleu)",
    )
    add("--validation_beam_size", type=int, default=1, metavar="K", help="beams at validation (default 1: greedy)")
    add(
        "--validate_only",
        action="store_true",
        help="only validate the models of --load_model; figures go to train_stats-DATASET.json beside each",
    )
    add(
        "--skip_existing_validations",
        action="store_true",
        help="--validate_only: pass over models whose figures are there already",
    )
    add("--num_workers", type=int, help="processes that load images (default: all cores; none for feature files)")
    add("--batch_size", type=int, default=128, help="captions in a batch (default 128)")
    add(
        "--captions_per_image",
        type=int,
        default=5,
        metavar="C",
        help="captions that share an image in a batch; 1 gives independent pairs (default 5)",
    )
    add("--num_batches", type=int, default=0, metavar="N", help="end each epoch after N batches (default 0: never)")
    add("--crop_size", type=int, help="pixels of an image's side (default: the encoder's own)")
    add(
        "--no_augment",
        action="store_true",
        help="train on whole images instead of random crops and mirror images (captions that say left and right)",
    )
    add(
        "--cache_features",
        metavar="DIR",
        help="keep the frozen encoder's output of every image in this (local) folder and train from it: later epochs "
        "are as fast as from feature files; whole images, no random crops (default: off)",
    )


def add_vocabulary(add) -> None:
    add("--vocab", default="AUTO", help="vocabulary file, AUTO (make it once, keep it) or REGEN (anew); default AUTO")
    add("--vocab_root", default="vocab_cache", help="where AUTO and REGEN keep vocabularies (default vocab_cache)")
    add("--vocab_threshold", type=int, default=4, help="AUTO, REGEN: times a word must occur (default 4)")
    add("--no_tokenize", action="store_true", help="AUTO, REGEN: captions are tokens already, split at spaces")
    add("--show_tokens", action="store_true", help="print the tokens of the first captions")
    add("--skip_start_token", action="store_true", help="read the image in place of <start>, not before it")


def add_model(add) -> None:
    add(
        "--features",
        default="resnet152",
        metavar="NAMES",
        help="encoders or feature files, comma separated, that start the sentence (default resnet152)",
    )
    add("--persist_features", default="", metavar="NAMES", help="encoders or feature files fed at every step")
    add("--weights", metavar="FILE", help="local file with the encoder's weights, instead of a download")
    add(
        "--attention",
        choices=["soft", "spatial"],
        help="attend to the -conv map: soft (Xu et al. 2015) or spatial (Lu et al. 2017); default none",
    )
    add("--attention_size", type=int, default=256, help="size of the attention's hidden layer (default 256)")
    add("--value_size", type=int, default=512, help="size that the map's regions are projected to (default 512)")
    add(
        "--regularize_attn",
        type=float,
        nargs="?",
        const=1.0,
        default=0.0,
        metavar="FACTOR",
        help="doubly stochastic attention (default 0: off; 1 when no factor is given)",
    )
    add("--embed_size", type=int, default=256, help="size of word embeddings (default 256)")
    add("--hidden_size", type=int, default=512, help="size of the RNN's state (default 512)")
    add("--num_layers", type=int, default=1, help="layers of the RNN (default 1)")
    add("--rnn_arch", choices=["LSTM", "GRU"], default="LSTM", help="kind of RNN (default LSTM)")
    add(
        "--rnn_hidden_init",
        choices=["from_features"],
        help="compute the initial state from the features (default: zero, and the image is read first)",
    )
    add("--dropout", type=float, default=0.0, help="on embeddings, between layers and before the output (default 0)")
    add("--encoder_dropout", type=float, default=0.0, help="on the projected image or the map (default 0)")
    add("--encoder_non_lin", action="store_true", help="SELU after projecting the image")
    add("--share_embedding_weights", action="store_true", help="one matrix for input and output embeddings")
    add(
        "--regularize_projection",
        type=float,
        default=0.15,
        metavar="FACTOR",
        help="--share_embedding_weights: penalty on the norm of the projection before the shared matrix (Press and "
        "Wolf 2017; default 0.15); 0 leaves the projection out",
    )
    add(
        "--finetune_encoder",
        type=int,
        nargs="?",
        const=-1,
        default=0,
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
    add("--pooling_size", type=int, default=1024, metavar="P", help="size that regions are pooled to (default 1024)")
    add("--fc_size", type=int, metavar="N", help="hidden layer before the topics (default: --pooling_size)")
    add("--max_sentences", type=int, default=6, metavar="S", help="most sentences of a paragraph (default 6)")
    add("--weight_sentence_loss", type=float, default=5.0, metavar="W", help="of the decision to stop (default 5)")
    add("--weight_word_loss", type=float, default=1.0, metavar="W", help="of the words (default 1)")
    add("--dropout_stopping", type=float, default=0.0, metavar="P", help="before the stop classifier (default 0)")
    add("--dropout_fc", type=float, default=0.0, metavar="P", help="on the topics (default 0)")
    add("--lr_word_decoder", type=float, metavar="RATE", help="the word RNN's own (default: --learning_rate)")
    add(
        "--coherent_sentences",
        action="store_true",
        help="couple each topic to the sentence before and a global topic (Chatterjee and Schwing 2018)",
    )
    add("--coupling_alpha", type=float, default=1.0, metavar="A", help="coherent: weight of the topic (default 1)")
    add("--coupling_beta", type=float, default=1.5, metavar="B", help="of the sentence before (default 1.5)")


def add_optimiser(add) -> None:
    add("--optimizer", default="rmsprop", choices=["rmsprop", "adam", "adamw", "sgd"], help="default rmsprop")
    add("--learning_rate", type=float, default=1e-3, help="default 0.001")
    add(
        "--encoder_learning_rate",
        type=float,
        metavar="RATE",
        help="--finetune_encoder: learning rate of the encoder's weights (default: --learning_rate)",
    )
    add("--weight_decay", type=float, default=1e-6, help="default 1e-6")
    add("--grad_clip", type=float, metavar="VALUE", help="clip every gradient value to +-VALUE (default: no clipping)")
    add(
        "--lr_scheduler",
        nargs="?",
        const="ReduceLROnPlateau",
        choices=["ReduceLROnPlateau", "StepLR", "CyclicalLR", "cosine"],
        help="default: constant; ReduceLROnPlateau (a tenth after 3 epochs that are no better) where no name is given",
    )
    add("--lr_step_size", type=int, default=5, metavar="EPOCHS", help="StepLR: epochs to half the rate (default 5)")
    add("--lr_cyclical_min", type=float, default=1e-5, help="CyclicalLR: lowest rate, an epoch apart (default 0.00001)")
    add("--lr_cyclical_max", type=float, default=1e-3, help="CyclicalLR: highest rate (default 0.001)")
    add("--warmup_steps", type=int, default=0, help="steps of linear warm-up (default 0)")
    add("--label_smoothing", type=float, default=0.0, help="default 0")
    add(
        "--ema",
        type=float,
        default=0.0,
        metavar="DECAY",
        help="validate and save an exponential moving average of the weights, 0.999 say (default 0: off)",
    )


def add_teacher_forcing(add) -> None:
    add(
        "--teacher_forcing",
        default="always",
        choices=["always", "sampled", "additive", "additive_sampled"],
        help="when the decoder sees the true previous word (default always)",
    )
    add("--teacher_forcing_k", type=float, default=6500, help="p(i) = k / (k + exp(i * beta / k)); default 6500")
    add("--teacher_forcing_beta", type=float, default=0.3, help="default 0.3")


def add_self_critical_training(add) -> None:
    add(
        "--self_critical_from_epoch",
        type=int,
        default=-1,
        metavar="N",
        help="from epoch N on reward sampled captions by their CIDEr-D; a run that turns to it midway goes back to its "
        "best epoch so far and begins the optimizer anew (default -1: never)",
    )
    add(
        "--self_critical_loss",
        default="sc",
        choices=SELF_CRITICAL_LOSSES,
        help="sc, with a term against repetition or for diversity, or mixed with cross-entropy (default sc)",
    )
    add(
        "--gamma_ml_rl",
        type=float,
        default=0.9995,
        metavar="G",
        help="mixed losses: G * self-critical + (1 - G) * cross-entropy (default 0.9995)",
    )
    add(
        "--self_critical_learning_rate",
        type=float,
        metavar="RATE",
        help="of a run that turns self-critical midway, by Adam (default 0.00005)",
    )
    add(
        "--cached_words",
        metavar="FILE",
        help="document frequencies for CIDEr-D, of build_cached_words.py or a pickle of DeepCaption (default: counted "
        "over the training captions and kept beside the vocabulary)",
    )
    add(
        "--trigram_penalty_alpha",
        type=float,
        default=0.0,
        metavar="A",
        help="a word that would repeat a trigram loses A * ln 2 of log-probability per earlier time, in samples and in "
        "captions of the validation (default 0: off)",
    )
    add(
        "--self_critical_samples",
        type=int,
        default=5,
        metavar="N",
        help="captions drawn per image; the baseline is the mean of the others, with 1 the greedy one (default 5)",
    )
    add(
        "--self_critical_temperature",
        type=float,
        default=0.5,
        metavar="T",
        help="the policy is softmax(logits / T); below 1 fewer of the captions drawn are noise (default 0.5)",
    )


def add_distillation(add) -> None:
    add(
        "--distill",
        nargs="+",
        metavar="FILE",
        help="learn the mean word probabilities of these trained models too; the same vocabulary (default: none)",
    )
    add("--distill_weight", type=float, default=0.5, metavar="W", help="the teachers' share of the loss (default 0.5)")
    add(
        "--distill_temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="soften all probabilities by T; above 1 the unlikely words count more (default 1)",
    )


def add_run(add) -> None:
    add("--model_name", help="folder of the run under --model_path (default: from --model_basename and settings)")
    add("--model_basename", default="model", help="first part of the default name (default model)")
    add("--output_root", default="", help="put before --model_path (default none)")
    add("--model_path", default="models/", help="folder of all runs (default models/)")
    add("--load_model", nargs="+", metavar="FILE", help="start from this model; several with --validate_only")
    add("--optimizer_reset", action="store_true", help="--load_model: do not take over the optimizer's state")
    add("--force_epoch", type=int, metavar="N", help="--load_model: count on from epoch N")
    add("--replace", "--force", action="store_true", help="write over a run of the same name")
    add("--resume", action="store_true", help="go on from the run's last.model, exactly, if there is one")
    add("--num_epochs", type=int, default=5, help="default 5")
    add(
        "--save_every",
        type=int,
        default=0,
        metavar="STEPS",
        help="write last.model every STEPS too (default 0: each epoch)",
    )
    add("--early_stopping", type=int, default=0, metavar="EPOCHS", help="stop when validation has not improved so long")
    add("--log_step", type=int, default=10, help="steps between updates of the loss shown (default 10)")
    add("--verbose", action="store_true", help="also print the model and its parameters")
    add("--seed", type=int, default=42, help="default 42")
    add("--deterministic", action="store_true", help="only deterministic algorithms (slower on a GPU)")
    add("--amp", choices=["off", "bf16"], default="off", help="mixed precision (default off)")
    add(
        "--compile",
        action="store_true",
        help="torch.compile the encoder and the output layers, on a GPU (default: no)",
    )
    add(
        "--tensorboard",
        action="store_true",
        help="write scalars and histograms for TensorBoard into the run's folder tensorboard/ (default: no)",
    )
    add(
        "--profiler",
        action="store_true",
        help="profile ten steps into the run's profile.txt and trace.json (default: no)",
    )
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")


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


FIRST_USE = ("dataset", "dataset_config_file", "validate", "validation_scoring", "batch_size", "num_workers", "vocab")
FIRST_USE += ("vocab_threshold", "features", "persist_features", "attention", "embed_size", "hidden_size", "dropout")
FIRST_USE += ("finetune_encoder", "optimizer", "learning_rate", "model_name", "load_model", "resume", "replace")
FIRST_USE += ("num_epochs", "seed", "device")


def parse_args(doc: str, argv=None) -> Namespace:
    """The flags of `argv` (default: the command line's), checked; `doc` is what --help begins with."""
    parser = Parser(doc, FIRST_USE, usage="%(prog)s --dataset NAME [--flag VALUE ...]")
    for title, add_flags in GROUPS.items():
        add_flags(parser.group(title))
    args = parser.parse_args(argv)
    check(parser, args)
    check_paragraphs(parser, args)
    return args


def measures_ciderd(metrics: str) -> bool:
    return "ciderd" in metrics.lower().replace("-", "").replace("_", "")


def check(parser, args) -> None:
    """Settings that contradict each other are told before anything is loaded."""
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
    counts = ("batch_size", "captions_per_image", "num_epochs", "hidden_size", "embed_size", "num_layers", "log_step")
    counts += ("validation_step", "validation_beam_size", "lr_step_size", "attention_size", "value_size")
    counts += ("self_critical_samples",)
    for name in counts:
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: at least 1")
    for name in ("dropout", "encoder_dropout", "label_smoothing", "ema"):
        if not 0 <= getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: from 0 to below 1")
    if args.self_critical_temperature <= 0:
        parser.error(f"--self_critical_temperature {args.self_critical_temperature}: above 0")
    if args.regularize_projection < 0:
        parser.error(f"--regularize_projection {args.regularize_projection}: 0 or more")
    if args.skip_existing_validations and not args.validate_only:
        parser.error("--skip_existing_validations is for --validate_only")
    for name in ("gamma_ml_rl", "distill_weight"):
        if not 0 <= getattr(args, name) <= 1:
            parser.error(f"--{name} {getattr(args, name)}: from 0 to 1")
    if args.distill_temperature <= 0:
        parser.error(f"--distill_temperature {args.distill_temperature}: above 0")
    if args.self_critical_learning_rate is not None and args.self_critical_learning_rate <= 0:
        parser.error(f"--self_critical_learning_rate {args.self_critical_learning_rate}: above 0")
    if args.cached_words and args.self_critical_from_epoch < 0 and not measures_ciderd(args.validation_scoring):
        parser.error("--cached_words is for --self_critical_from_epoch and for --validation_scoring ciderd")
    if args.learning_rate <= 0 or (args.grad_clip is not None and args.grad_clip <= 0):
        parser.error("--learning_rate and --grad_clip must be above 0")


# what a hierarchical model keeps of the flags: the fields of ParagraphConfig
PARAGRAPH_FLAGS = ("pooling_size", "fc_size", "max_sentences", "weight_sentence_loss", "weight_word_loss")
PARAGRAPH_FLAGS += ("dropout_stopping", "dropout_fc", "coherent_sentences", "coupling_alpha", "coupling_beta")


def check_paragraphs(parser, args) -> None:
    for name in ("pooling_size", "fc_size", "max_sentences"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: at least 1")
    for name in ("dropout_stopping", "dropout_fc"):
        if not 0 <= getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: from 0 to below 1")
    for name in ("weight_sentence_loss", "weight_word_loss", "coupling_alpha", "coupling_beta"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} {getattr(args, name)}: 0 or more")
    if args.coupling_alpha + args.coupling_beta == 0:
        parser.error("--coupling_alpha and --coupling_beta: one of them above 0")
    if args.lr_word_decoder is not None and args.lr_word_decoder < 0:
        parser.error(f"--lr_word_decoder {args.lr_word_decoder}: 0 or more (0 keeps the word RNN as it is)")
    if not args.hierarchical_model:
        lonely = [name for name in PARAGRAPH_FLAGS if name in args.typed_flags and not args.load_model]
        if lonely:
            parser.error(f"--{lonely[0]} is for --hierarchical_model")
        return
    if args.rnn_hidden_init:
        parser.error("--rnn_hidden_init: with --hierarchical_model the word RNN starts from the topic, read first")
    for name, asked in (("self_critical_from_epoch", args.self_critical_from_epoch >= 0), ("distill", args.distill)):
        if asked:
            parser.error(f"--{name}: a --hierarchical_model is trained by cross-entropy alone")
