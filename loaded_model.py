"""What train.py's flags mean for a model that --load_model gives: which may change it, which only contradict it."""

import shlex

from common import UserError
from features import is_feature_file
from model_config import FeatureSpec, ModelConfig, settle_joint_sizes

# Flags that decide the shape or the meaning of weights: a loaded model has them once and for all.
FIXED = ("embed_size", "hidden_size", "num_layers", "rnn_arch", "rnn_hidden_init", "encoder_non_lin", "attention")
FIXED += ("share_embedding_weights", "skip_start_token")
FIXED_WITH_ATTENTION = ("attention_size", "value_size")
FIXED_PARAGRAPHS = ("pooling_size", "fc_size", "coherent_sentences", "coupling_alpha", "coupling_beta")
FREE_PARAGRAPHS = ("max_sentences", "weight_sentence_loss", "weight_word_loss", "dropout_stopping", "dropout_fc")


def adapt(captioner, given: dict) -> None:
    """Apply the flags typed with --load_model to the loaded captioner. given: their values, by name.

    `dropout` and `encoder_dropout` act, other feature files of the same sizes are taken. Raises UserError for a flag
    that contradicts the file; flags that were not typed never do.
    """
    config: ModelConfig = captioner.config
    for name in FIXED + (FIXED_WITH_ATTENTION if config.attention else ()):
        if name in given and given[name] != getattr(config, name):
            contradicts(name, given[name], getattr(config, name))
    adapt_paragraphs(captioner, given)
    if given.get("regularize_projection") and not config.projection:
        contradicts("regularize_projection", given["regularize_projection"], "no projection")
    if given.get("crop_size") not in (None, captioner.size):
        contradicts("crop_size", given["crop_size"], captioner.size)
    for name, specs in (("features", config.features), ("persist_features", config.persist_features)):
        if name in given:
            take_features(name, given[name], specs)
    if "dropout" in given:
        config.dropout = given["dropout"]
        decoder = captioner.model.sentence_decoder
        decoder.dropout.p = config.dropout
        decoder.rnn.dropout = config.dropout if config.num_layers > 1 else 0.0
    if "encoder_dropout" in given:
        config.encoder_dropout = given["encoder_dropout"]
        decoder = captioner.model.sentence_decoder
        image = decoder.image if config.paragraphs is None else captioner.model.decoder.pooling
        for part in (getattr(image, "dropout", None), getattr(decoder, "region_dropout", None)):
            if part is not None:
                part.p = config.encoder_dropout


def adapt_paragraphs(captioner, given: dict) -> None:
    """The part of `adapt` that is about paragraphs: most sentences, loss weights and dropout act."""
    config, decoder = captioner.config.paragraphs, captioner.model.decoder
    for name in FIXED_PARAGRAPHS + FREE_PARAGRAPHS:
        if name not in given:
            continue
        if config is None:
            raise UserError(f"--{name}: the loaded model writes sentences; add --hierarchical_model to build on it")
        if name in FIXED_PARAGRAPHS and given[name] != getattr(config, name):
            contradicts(name, given[name], getattr(config, name))
        setattr(config, name, given[name])
    if config is not None:
        for name in ("self_critical_from_epoch", "distill"):
            if given.get(name) not in (None, -1):
                raise UserError(f"--{name}: a hierarchical model is trained by cross-entropy alone")
        decoder.max_sentences = config.max_sentences
        decoder.dropout_stopping.p, decoder.dropout_fc.p = config.dropout_stopping, config.dropout_fc


def check_word_decoder(config: ModelConfig, given: dict) -> None:
    """Raises UserError where a flag contradicts the model of sentences that becomes a word decoder."""
    fixed = ("embed_size", "hidden_size", "num_layers", "rnn_arch", "attention", "share_embedding_weights")
    for name in fixed + ("skip_start_token",) + (FIXED_WITH_ATTENTION if config.attention else ()):
        if name in given and given[name] != getattr(config, name):
            contradicts(name, given[name], getattr(config, name))


def contradicts(name: str, value, own) -> None:
    flag = f"--{name}" if value is True else f"--{name} {value}"
    raise UserError(f"{flag} contradicts --load_model, whose file has {own}: leave the flag out, or train a new model")


def take_features(name: str, text: str, specs: list[FeatureSpec]) -> None:
    """Feature files that moved or were renamed are read from where `text` says; encoders must be the same."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    files = [part for part in names if is_feature_file(part)]
    external = [spec for spec in specs if spec.external]
    encoders = sorted(spec.name for spec in specs if not spec.external)
    if len(files) != len(external) or sorted(set(names) - set(files)) != sorted(set(encoders)):
        contradicts(name, text, ",".join(spec.name for spec in specs) or "none")
    for spec, file in zip(external, files):
        if spec.name != file:
            print(f"--{name}: {file} in place of {spec.name}, which the loaded model was trained on")
            spec.name = file


def check_feature_files(config: ModelConfig, loader) -> None:
    """Raise UserError unless the files that `loader` (data_loader.Loader) opened have what the model reads."""
    groups = ((config.features, loader.features), (config.persist_features, loader.persist_features))
    for specs, sources in groups:
        files = (source for source in sources if is_feature_file(source.name))  # the others are caches of encoders
        pairs = list(zip((spec for spec in specs if spec.external), files))
        settle_joint_sizes([spec for spec, _ in pairs], [tuple(source.shape) for _, source in pairs])
        for spec, source in pairs:
            if tuple(source.shape) != tuple(spec.shape):
                shapes = f"of shape {tuple(source.shape)}, but the model reads {tuple(spec.shape)}"
                raise UserError(f"{source.readers[0].path} has features {shapes}")


def command_history(info: dict) -> list[str]:
    """The command lines that a loaded model came from, oldest first."""
    command = info.get("command")
    return [*info.get("history", []), *([shlex.join(command)] if command else [])]
