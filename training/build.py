"""The captioner to be trained: a new one, a loaded one with what the flags may change of it, or paragraphs over one."""

import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import nn

from captioning.batches.inputs import file_spec
from captioning.config import FeatureSpec, ModelConfig, ParagraphConfig
from captioning.cores import own_cores
from captioning.datasets.base import CaptionDataset
from captioning.datasets.caption_file import suitable_threshold
from captioning.decoder.paragraph import HierarchicalDecoder
from captioning.decoder.transfer import Source, begin_with
from captioning.devices import is_main
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.factory import build_encoder
from captioning.encoder.provenance import internal_spec
from captioning.errors import UserError, one_line, warn
from captioning.features.factory import is_feature_file
from captioning.files import remove_leftovers
from captioning.text.tokenizers import one_token_advice
from model import Captioner, build_model, load_captioner
from training.settings import DataSettings, ModelSettings
from vocabulary import Vocabulary, auto_name, count_words, require_known_words, vocabulary_from_counts


class CaptionerBuilder:
    """Makes the captioner that a run trains.

    config: the architecture that the flags describe, without features; model: the features, and the model to load;
    data: the vocabulary; typed_flags: what the flags say that were typed, which a loaded model must not contradict.
    """

    def __init__(self, config: ModelConfig, wanted: ModelSettings, data: DataSettings, typed_flags: dict):
        self.config, self.wanted, self.data, self.typed_flags = config, wanted, data, typed_flags
        self.encoders: dict[str, ImageEncoder] = {}

    def build(self, dataset: CaptionDataset) -> Captioner:
        """A new captioner, the one of --load_model, or one of paragraphs over that. Raises UserError."""
        if not self.wanted.load_model:
            return self.new(dataset)
        file, known = (
            self.wanted.load_model[0],
            self.data.vocabulary_file and Vocabulary.load(self.data.vocabulary_file),
        )
        captioner = load_captioner(file, weights=self.wanted.weights, photos=False, vocabulary=known)
        refuse_idle(captioner.config, self.typed_flags)
        if self.wanted.hierarchical_model and captioner.config.decoder == "transformer":
            raise UserError(f"--hierarchical_model: its word RNN cannot begin with {file}, a Transformer")
        if self.wanted.hierarchical_model and captioner.config.paragraphs is None:
            return self.paragraphs_over(captioner, dataset)
        captioner.model.finetune(self.config.finetune_encoder)
        print(f"architecture and vocabulary from {file}")
        if known and known.words != captioner.vocabulary.words:
            print(f"--vocab {self.data.vocab}: not used, the loaded model has a vocabulary of its own")
        if self.data.tokenizer not in (None, captioner.vocabulary.tokenizer):
            contradicts("tokenizer", self.data.tokenizer, captioner.vocabulary.tokenizer)
        adapt(captioner, self.typed_flags)
        return captioner

    def new(self, dataset: CaptionDataset) -> Captioner:
        """A captioner with fresh weights, or with those of --init_model."""
        vocabulary = get_vocabulary(self.data, dataset)
        if self.wanted.init_model:
            return self.begun_with(load_captioner(self.wanted.init_model, photos=False), vocabulary, dataset)
        features = {
            name: self.specs(name, getattr(self.wanted, name), dataset) for name in ("features", "persist_features")
        }
        config = replace(self.config, **features)
        if not config.specs:
            raise UserError("--features names nothing: the decoder would see no image")
        return self._captioner(config, vocabulary)

    def begun_with(self, other: Captioner, vocabulary: Vocabulary, dataset: CaptionDataset) -> Captioner:
        """A captioner with the sizes, the weights and the encoders of `other`, new words and new features."""
        file = self.wanted.init_model
        if other.config.paragraphs is not None or self.wanted.hierarchical_model:
            raise UserError(f"--init_model {file}: models of paragraphs begin with --load_model")
        refuse_contradictions(other.config, self.typed_flags)
        size = self.typed_flags.get("crop_size") or other.size
        for spec, extractor in zip(other.config.specs, other.model.extractors):
            if not isinstance(extractor, ImageEncoder):
                continue
            if extractor.transform["size"] == size:
                self.encoders[spec.name] = extractor
            elif other.config.encoders_travel:
                self.encoders[spec.name] = at_size(extractor, size, file)
        self.config.crop_size = size
        changes = {"finetune_encoder": self.config.finetune_encoder, "encoder_in_file": other.config.encoders_travel}
        for name in ("features", "persist_features"):
            names = self.typed_flags.get(name, ",".join(spec.name for spec in getattr(other.config, name)))
            changes[name] = self.specs(name, names, dataset)
        for name in ("dropout", "encoder_dropout", "attention_dropout"):
            changes[name] = self.typed_flags.get(name, getattr(other.config, name))
        captioner = self._captioner(replace(other.config, crop_size=size, **changes), vocabulary)
        source = Source(other.model.decoder.state_dict(), other.vocabulary.words, other.config, file)
        new = begin_with(captioner.model.decoder, vocabulary.words, captioner.config, source)
        print(f"the decoder begins with the weights of {file}; {new:,} of {len(vocabulary):,} words are new")
        return captioner

    def paragraphs_over(self, flat: Captioner, dataset: CaptionDataset) -> Captioner:
        """A captioner of paragraphs whose word decoder begins with the weights of `flat`.

        Sizes and vocabulary are those of `flat`; its features too where none are asked for.
        """
        refuse_contradictions(flat.config, self.typed_flags, free=("encoder_non_lin", "rnn_hidden_init"))
        changes = {"paragraphs": self.config.paragraphs, "rnn_hidden_init": None, "encoder_in_file": False}
        changes["finetune_encoder"] = self.config.finetune_encoder
        for name in ("features", "persist_features"):
            names = self.typed_flags.get(name, ",".join(spec.name for spec in getattr(flat.config, name)))
            changes[name] = self.specs(name, names, dataset)
        for name in ("dropout", "encoder_dropout", "encoder_non_lin", "crop_size"):
            changes[name] = self.typed_flags.get(name, getattr(flat.config, name))
        captioner = self._captioner(replace(flat.config, **changes), flat.vocabulary)
        file = self.wanted.load_model[0]
        start_word_decoder(captioner.model.decoder, flat.model.decoder, file)
        print(f"the word decoder begins with the weights of {file}, whose vocabulary it has")
        return captioner

    def specs(self, group: str, names: str, dataset: CaptionDataset) -> list[FeatureSpec]:
        """What --features or --persist_features (`group`) name; encoders are built and kept in `encoders`."""
        transform = {"size": self.config.crop_size} if self.config.crop_size else None
        specs = []
        for name in [name.strip() for name in names.split(",") if name.strip()]:
            if is_feature_file(name):
                specs.append(file_spec(dataset, name, f"--{group}"))
                continue
            if name not in self.encoders:
                self.encoders[name] = build_encoder(name, weights=self.wanted.weights, transform=transform)
            specs.append(internal_spec(name, self.encoders[name]))
        return specs

    def _captioner(self, config: ModelConfig, vocabulary: Vocabulary) -> Captioner:
        model = build_model(config, vocabulary, self.wanted.weights, extractors=self.encoders)
        return Captioner(model, vocabulary, self.wanted.weights)


def at_size(extractor: ImageEncoder, size: int, file) -> ImageEncoder:
    """An encoder with the weights of `extractor` that reads images of `size` by `size` pixels.

    Raises UserError, naming the model `file`, where weights of the network depend on the size of its images.
    """
    other = build_encoder(extractor.name, pretrained=False, transform={**extractor.transform, "size": size})
    try:
        other.network.load_state_dict(extractor.network.state_dict())
    except RuntimeError as error:
        raise UserError(f"--init_model {file}: --crop_size {size}: {extractor.name} keeps its size") from error
    return other


def get_vocabulary(data: DataSettings, dataset: CaptionDataset) -> Vocabulary:
    """The vocabulary file that --vocab names, or one made from the training captions and kept under --vocab_root.

    The name of the latter changes with the captions and the settings. Raises UserError where most words would be <unk>.
    """
    if data.vocabulary_file:
        vocabulary = Vocabulary.load(data.vocabulary_file)
        if data.tokenizer not in (None, vocabulary.tokenizer):
            raise UserError(f"--tokenizer {data.tokenizer}: {data.vocab} was made with {vocabulary.tokenizer}")
        return vocabulary
    tokenizer = "whitespace" if data.no_tokenize else data.tokenizer or "treebank"
    threshold = data.vocab_threshold
    if threshold is None:
        threshold = suitable_threshold(dataset, tell=is_main())
    path = Path(data.vocab_root) / auto_name(dataset.captions(), threshold, tokenizer)
    if data.vocab == "AUTO" and path.exists():
        print(f"vocabulary from {path}, of the same captions (--vocab REGEN makes it anew)")
        return Vocabulary.load(path)
    processes = 1 if data.num_workers == 0 else own_cores()
    counter = count_words(dataset.captions(), tokenizer, num_workers=processes)
    if line := one_token_advice(sum(counter.values()), dataset.num_captions, tokenizer):
        warn(line)
    vocabulary = vocabulary_from_counts(counter, threshold, tokenizer, dataset=data.dataset)
    require_known_words(counter, vocabulary, data.dataset)
    if is_main():
        remove_leftovers(path.parent)
        vocabulary.save(path)
        print(f"vocabulary written to {path}")
    return vocabulary


# ---- a loaded model and the flags ----


def adapt(captioner: Captioner, typed_flags: dict) -> None:
    """Apply the flags typed with --load_model to the loaded captioner. typed_flags: their values, by name.

    Dropout acts, and so do a paragraph's number of sentences and the weights of its losses; other feature files of the
    same sizes are taken. Raises UserError for a flag that contradicts the file; flags that were not typed never do.
    """
    config, decoder = captioner.config, captioner.model.decoder
    refuse_contradictions(config, typed_flags)
    adapt_paragraphs(captioner, typed_flags)
    if typed_flags.get("regularize_projection") and not config.projection:
        contradicts("regularize_projection", typed_flags["regularize_projection"], "no projection")
    if typed_flags.get("crop_size") not in (None, captioner.size):
        contradicts("crop_size", typed_flags["crop_size"], captioner.size)
    for name, specs in (("features", config.features), ("persist_features", config.persist_features)):
        if name in typed_flags:
            take_features(name, typed_flags[name], specs)
    for name in ("dropout", "encoder_dropout", "attention_dropout"):
        if name in typed_flags:
            setattr(config, name, typed_flags[name])
            getattr(decoder, f"set_{name}")(typed_flags[name])


def adapt_paragraphs(captioner: Captioner, typed_flags: dict) -> None:
    """The part of `adapt` that is about paragraphs."""
    config, decoder = captioner.config.paragraphs, captioner.model.decoder
    typed = [field.name for field in fields(ParagraphConfig) if field.name in typed_flags]
    if config is None:
        if typed:
            raise UserError(f"--{typed[0]}: the loaded model writes sentences; add --hierarchical_model to build on it")
        return
    refuse_contradictions(config, typed_flags)
    for name in ("self_critical_from_epoch", "distill"):
        if typed_flags.get(name) not in (None, -1):
            raise UserError(f"--{name}: a hierarchical model is trained by cross-entropy alone")
    for name in typed:
        setattr(config, name, typed_flags[name])
    decoder.max_sentences = config.max_sentences
    decoder.dropout_stopping.p, decoder.dropout_fc.p = config.dropout_stopping, config.dropout_fc


def refuse_idle(config: ModelConfig, typed_flags: dict) -> None:
    """Raises UserError for a typed flag that only another kind of decoder has."""
    for field in fields(config):
        if field.name in typed_flags and field.metadata.get("of") not in (None, config.decoder):
            decoder = field.metadata["of"]
            raise UserError(f"--{field.name} is of --decoder {decoder}, but the loaded model has a {config.decoder}")


def refuse_contradictions(config: ModelConfig | ParagraphConfig, typed_flags: dict, free: tuple[str, ...] = ()) -> None:
    """Raises UserError where a typed flag has another value than a field of `config` that is fixed in a loaded model.

    free: names of fields that may change all the same.
    """
    for field in fields(config):
        fixed, own = field.metadata.get("fixed"), getattr(config, field.name)
        if not fixed or field.name in free or (fixed is not True and not getattr(config, fixed)):
            continue
        if typed_flags.get(field.name, own) != own:
            contradicts(field.name, typed_flags[field.name], own)


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
            found = f"{name} is {shapes[0]} in the file, {shapes[1]} in the model; check --persist_features"
            raise UserError(f"--load_model {source} does not fit as word decoder: {found}")
    decoder.word_decoder.load_state_dict(state)


def checkpoint_activations(captioner: Captioner) -> None:
    """Have the encoders that train compute their activations twice in place of keeping them."""
    for encoder in captioner.model.extractors:
        if isinstance(encoder, ImageEncoder):
            encoder.checkpoints_activations = not encoder.frozen


def compile_encoders(captioner: Captioner) -> None:
    """Compile the encoders with torch.compile and try them on blank pixels. Raises UserError where that fails.

    On a CPU nothing is compiled: encoders ran 0.95 to 1.1 times as fast there after a minute of compiling.
    """
    if captioner.device.type == "cpu":
        print("--compile is left out on a CPU, where it does not pay", file=sys.stderr)
        return
    for encoder in captioner.model.extractors:
        if isinstance(encoder, ImageEncoder):
            pixels = torch.zeros(2, 3, captioner.size, captioner.size, dtype=torch.uint8, device=captioner.device)
            try:
                encoder.compile()
                with torch.no_grad():
                    encoder(pixels)
            except Exception as error:  # noqa: BLE001 - compilers fail in many ways
                raise UserError(f"--compile: {encoder.name} cannot be compiled: {one_line(error)}") from error
