"""What train.py's flags mean for a model that --load_model gives: which may change it, which only contradict it."""

import torch
from torch import nn

from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.paragraph import HierarchicalDecoder
from captioning.errors import UserError
from captioning.features.factory import is_feature_file
from captioning.text.tokens import END, START
from model import Captioner

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
        captioner.model.decoder.set_dropout(config.dropout)
    if "encoder_dropout" in given:
        config.encoder_dropout = given["encoder_dropout"]
        captioner.model.decoder.set_encoder_dropout(config.encoder_dropout)


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
    external = [spec for spec in specs if spec.from_file]
    encoders = sorted(spec.name for spec in specs if not spec.from_file)
    if len(files) != len(external) or sorted(set(names) - set(files)) != sorted(set(encoders)):
        contradicts(name, text, ",".join(spec.name for spec in specs) or "none")
    for spec, file in zip(external, files):
        if spec.name != file:
            print(f"--{name}: {file} in place of {spec.name}, which the loaded model was trained on")
            spec.name = file


def start_word_decoder(decoder: HierarchicalDecoder, flat: nn.Module, source) -> None:
    """Give the word decoder the weights of a model without topics (Krause et al. 2017, section 4.4).

    What reads the image stays behind: a topic takes its place. Raises UserError, naming `source`, where weights do not
    fit.
    """
    own = decoder.word_decoder.state_dict()
    state = {name: value for name, value in flat.state_dict().items() if not name.startswith("image.")}
    if not flat.attention_kind:  # an initial state from pooled features
        state = {name: value for name, value in state.items() if not name.startswith(("init_h.", "init_c."))}
    for name in sorted(own.keys() | state.keys()):
        shapes = [tuple(weights[name].shape) if name in weights else "nothing" for weights in (state, own)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"--load_model {source} does not fit as word decoder: {name} is {shapes[0]} in the file, {shapes[1]} "
                "in the model; check --persist_features"
            )
    decoder.word_decoder.load_state_dict(state)


# ---- compiling ----


def compile_captioner(captioner: Captioner, backend: str = "inductor") -> str | None:
    """Compile what can be compiled, and try it once. Returns why nothing was compiled, or None where it was.

    A machine without a C++ compiler, or an encoder with operations that cannot be traced, are found out by the trial;
    the captioner is then as before.
    """
    model = captioner.model
    if captioner.config.paragraphs is not None:
        return "it writes paragraphs"
    if not pays(captioner.device, backend):
        return "on a CPU its convolutions are fused without it, and a minute of compiling is never saved again"
    encoders = [extractor for extractor in model.extractors if not isinstance(extractor, nn.Identity)]
    try:
        for extractor in encoders:
            extractor.compile(backend=backend)
        # the number of tokens differs from batch to batch
        model.decoder._logits = torch.compile(model.decoder._logits, dynamic=True, backend=backend)
        try_step(captioner)
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways
        for extractor in encoders:
            extractor._compiled_call_impl = None
        vars(model.decoder).pop("_logits", None)
        model.zero_grad(set_to_none=True)
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:150]}"
    return None


def pays(device: torch.device, backend: str) -> bool:
    """Whether compiling can be worth its time.

    Not on a CPU: encoders ran 0.95 to 1.1 times as fast there after 66 to 97 seconds of compiling (ResNet-152 and
    EfficientNet-Lite0), beside fusing.py, which does the same by hand; plain training makes no logits as a whole.
    """
    return device.type != "cpu" or backend != "inductor"


def try_step(captioner: Captioner) -> None:
    """One forward and backward pass over two made-up images."""
    model, device = captioner.model, captioner.device
    inputs = []
    for spec in captioner.config.specs:
        shape = (spec.shape[1] * spec.shape[2], spec.shape[0]) if spec.spatial else spec.shape
        inputs.append(torch.zeros(2, *shape, device=device) if spec.from_file else None)
    pixels = None
    if any(one is None for one in inputs):
        pixels = torch.zeros(2, 3, captioner.size, captioner.size, dtype=torch.uint8, device=device)
    captions = torch.tensor([[START, END], [START, END]], device=device)
    statistics = [buffer.clone() for buffer in model.buffers()]  # batch norms would remember the made-up images
    was_training = model.training
    model.train()
    logits, _, _, _ = model(pixels, inputs, captions, torch.tensor([2, 2]), torch.arange(2, device=device))
    logits.sum().backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), statistics):
            buffer.copy_(before)
