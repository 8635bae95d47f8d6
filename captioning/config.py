"""What a captioner is made of, in plain types: its features and its sizes, as they travel in a model file."""

import math
from dataclasses import asdict, dataclass, field, fields
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from captioning.errors import UserError


@dataclass
class FeatureSpec:
    """One name of `--features` or `--persist_features`."""

    name: str
    # (D,) or (D, h, w); (D, R, 1) of R regions without a grid, (D, 0, 1) where images have different numbers of them.
    # Of DeepCaption's files the first has the size of all, the others (0,).
    shape: tuple[int, ...]
    from_file: bool
    # what makes it from a photo: `extractor`, `weights_sha256`, `transform`, `feature_type`; None: no file says
    provenance: dict | None = None

    @property
    def spatial(self) -> bool:
        return len(self.shape) == 3

    @property
    def varying(self) -> bool:
        """Whether images have different numbers of regions."""
        return self.spatial and self.shape[1] == 0

    def to_dict(self) -> dict:
        """The spec in plain types. Its keys are those of model files, which are older than the names of the fields."""
        return {"name": self.name, "shape": self.shape, "external": self.from_file, "maker": self.provenance}

    @classmethod
    def from_dict(cls, state: dict) -> "FeatureSpec":
        """Raises UserError where `state` is not a dict as to_dict() gives it, or asks for what no feature is."""
        if not isinstance(state, dict):
            raise UserError("its config describes a feature by something that is no table")
        name, shape, external, maker = (state.get(key) for key in ("name", "shape", "external", "maker"))
        if not isinstance(name, str) or not name or "\0" in name or type(external) is not bool:
            raise UserError(f"its config has a feature without a proper name: {str(name)[:60]!r}")
        if not isinstance(shape, list | tuple) or not is_shape(shape):
            raise UserError(f"its config gives {name} the shape {str(shape)[:60]}, which is that of no feature")
        if not isinstance(maker, dict | None):
            raise UserError(f"its config does not say what made {name} in a table")
        check_provenance(maker or {}, f"its config, {name}")
        return cls(name, tuple(shape), external, maker)


def is_shape(shape) -> bool:
    """Whether numbers are the shape of a feature: (D,) or (D, h, w), or (D, 0, 1) of any number of regions.

    D is 0 where only the size of several is known.
    """
    whole = all(type(n) is int and n >= 0 for n in shape)
    varying = whole and len(shape) == 3 and tuple(shape[1:]) == (0, 1) and 0 < shape[0] <= MOST_NUMBERS
    return varying or (whole and len(shape) in (1, 3) and math.prod(shape) <= MOST_NUMBERS and all(shape[1:]))


def shape_text(shape) -> str:
    """The shape of a feature as errors show it: (D,), (D, h, w), or (R, D) where the number R of regions differs."""
    varying = len(shape) == 3 and tuple(shape[1:]) == (0, 1)
    return f"(R, {shape[0]}) with R regions of an image" if varying else str(tuple(shape))


def check_fields(cls, values, place: str) -> None:
    """Raises UserError where `values` is no dict of fields of the dataclass `cls`, of their types, and within reason.

    Sizes are bounded, so that no network of a size that no machine holds is begun.
    """
    if not isinstance(values, dict):
        raise UserError(f"{place} is no table")
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{place} has {str(name)[:60]!r}, which this version does not know")
        sized = name.endswith("_size") or name in ("num_layers", "max_sentences", "heads", "max_positions")
        sound = not sized or value is None or (type(value) is int and value >= 1)
        if name == "region_layers":
            sound = type(value) is int and value >= 0
        if "dropout" in name:
            sound = is_number(value, 0, 1)
        if not sound or not has_type(value, hints[name]):
            raise UserError(f"{place} has the {name} {str(value)[:60]!r}, which none can have")


def has_type(value, hint) -> bool:
    """Whether a plain value is what the type hint of a field says; numbers must be smaller than LARGEST."""
    if get_origin(hint) is Literal:
        return any(value is choice or (type(value) is str and value == choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return any(has_type(value, one) for one in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list)
    if hint is int:
        return type(value) is int and -1 <= value <= LARGEST
    if hint is float:
        return is_number(value, -LARGEST, LARGEST)
    return value is None if hint is NoneType else isinstance(value, hint)


MOST_NUMBERS = 2**24  # of a record of a feature file: more is no feature of an image
LARGEST = 2**20  # of a size of a network
LARGEST_IMAGE = 2048  # pixels of the side of a square that an encoder may see, by what a file says


def is_number(value, least: float, most: float) -> bool:
    """Whether `value` is a number from `least` to `most`."""
    return type(value) in (int, float) and least <= value <= most


def check_provenance(value: dict, place: str) -> None:
    """Raises UserError, naming `place`, where what made a feature is described by values of other types."""
    transform = value.get("transform")
    good = {
        "extractor": isinstance(value.get("extractor"), str | None),
        "weights_sha256": isinstance(value.get("weights_sha256"), str | None),
        "feature_type": isinstance(value.get("feature_type", "plain"), str),
        "image_size": value.get("image_size") is None or is_size(value["image_size"]),
        "transform": transform is None or is_transform(transform),
    }
    for name, fits in good.items():
        if not fits:
            raise UserError(f"{place}: its {name} is {str(value[name])[:60]!r}, which is none")


def is_size(value) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_IMAGE


def is_transform(value) -> bool:
    """Whether `value` says how pixels become an encoder's input: `size`, `interpolation`, `mean` and `std`, or some."""
    if not isinstance(value, dict) or not isinstance(value.get("interpolation", "bilinear"), str):
        return False
    colours = [(value[name], least) for name, least in (("mean", -1e6), ("std", 1e-6)) if name in value]
    threes = all(isinstance(three, list | tuple) and len(three) == 3 for three, _ in colours)
    return is_size(value.get("size", 1)) and threes and all(is_number(x, least, 1e6) for c, least in colours for x in c)


def setting(default, help: str, metavar: str | None = None, fixed: bool | str = False, of: str | None = None, **flag):
    """A field of `Settings` with the flag of the same name; help, metavar, flag: as argparse takes them.

    fixed: a loaded model has the value once and for all, since it decides the shape or the meaning of weights;
    "attention" where that holds only for a model with attention. of: the `--decoder` that alone has such a setting.
    """
    flag |= {"help": help} | ({"metavar": metavar} if metavar else {})
    return field(default=default, metadata={"flag": flag, "fixed": fixed, "of": of})


class Settings:
    """A dataclass that can be made of flags."""

    @classmethod
    def of(cls, flags: dict, **others):
        """From the flags that are named like its fields, and from `others`, which go first."""
        own = {field.name: flags[field.name] for field in fields(cls) if field.name in flags}
        return cls(**{**own, **others})


@dataclass
class ParagraphConfig(Settings):
    """What a hierarchical model has besides its word decoder. Meanings and defaults are those of train.py's flags."""

    pooling_size: int = setting(1024, "size that regions are pooled to", fixed=True)
    fc_size: int | None = setting(None, "hidden layer before the topics (default: --pooling_size)", fixed=True)
    max_sentences: int = setting(6, "most sentences of a paragraph")
    dropout_stopping: float = setting(0.0, "dropout probability before the stop classifier (default: 0)", "P")
    dropout_fc: float = setting(0.0, "dropout probability on the topics (default: 0)", "P")
    weight_sentence_loss: float = setting(5.0, "weight of the loss of the decision to stop")
    weight_word_loss: float = setting(1.0, "weight of the loss of the words")
    coherent_sentences: bool = setting(False, "couple each topic to the last sentence and a global topic", fixed=True)
    coupling_alpha: float = setting(1.0, "--coherent_sentences: weight of the topic", fixed=True)
    coupling_beta: float = setting(1.5, "--coherent_sentences: weight of the sentence before", fixed=True)


@dataclass
class ModelConfig(Settings):
    """Everything needed to build the model again, in plain types. Meanings are those of train.py's flags."""

    features: list[FeatureSpec] = field(default_factory=list)
    persist_features: list[FeatureSpec] = field(default_factory=list)
    decoder: Literal["lstm", "transformer"] = setting(
        "lstm", "an RNN (--rnn_arch LSTM or GRU), or a Transformer", fixed=True
    )
    embed_size: int = setting(256, "size of word embeddings (of a Transformer: --hidden_size)", fixed=True, of="lstm")
    hidden_size: int = setting(512, "size of the RNN's state, or the Transformer's width", fixed=True)
    num_layers: int | None = setting(
        None, "layers of the decoder (default: 1 of an RNN, 3 of a Transformer)", fixed=True
    )
    rnn_arch: Literal["LSTM", "GRU"] = setting("LSTM", "kind of RNN", fixed=True, of="lstm")
    rnn_hidden_init: Literal["from_features"] | None = setting(
        None,
        "compute the initial state from the features (default: zero; the image is read first)",
        fixed=True,
        of="lstm",
    )
    dropout: float | None = setting(
        None,
        "dropout probability on embeddings, between layers and before the output (default: 0; of a Transformer 0.1)",
        "P",
    )
    encoder_dropout: float = setting(0.0, "dropout probability on the projected image or the map (default: 0)", "P")
    encoder_non_lin: bool = setting(False, "SELU after projecting the image", fixed=True, of="lstm")
    attention: Literal["soft", "spatial", "updown"] | None = setting(
        None,
        "attend to the -conv map: soft (Xu et al. 2015), spatial (Lu et al. 2017), updown, two LSTMs (Anderson et "
        "al. 2018) (default: none; a Transformer does)",
        fixed=True,
        of="lstm",
    )
    attention_size: int = setting(256, "size of the attention's hidden layer", fixed="attention", of="lstm")
    value_size: int = setting(512, "size that the map's regions are projected to", fixed="attention", of="lstm")
    heads: int = setting(8, "heads of each attention; they divide --hidden_size", fixed=True, of="transformer")
    feed_forward_size: int | None = setting(
        None, "hidden layer after each attention (default: 4 times --hidden_size)", fixed=True, of="transformer"
    )
    region_layers: int = setting(
        0,
        "self-attention layers over the regions, before they are attended to (default: 0)",
        fixed=True,
        of="transformer",
    )
    attention_dropout: float = setting(
        0.0, "dropout probability on the weights of each attention (default: 0)", "P", of="transformer"
    )
    positions: Literal["sinusoidal", "learned"] = setting(
        "sinusoidal", "how a word knows its place in the sentence", fixed=True, of="transformer"
    )
    max_positions: int = setting(
        64, "--positions learned: places that differ; later words have that of the last", fixed=True, of="transformer"
    )
    share_embedding_weights: bool = setting(False, "one matrix for input and output embeddings", fixed=True)
    projection: bool = False  # the regularised one of shared embeddings
    skip_start_token: bool = setting(False, "read the image in place of <start>, not before it", fixed=True, of="lstm")
    finetune_encoder: int = setting(
        0, "train the encoder's last N blocks too (default: none; all without a number)", nargs="?", const=-1
    )
    crop_size: int | None = setting(None, "width and height of an image (default: the encoder's own)", "PIXELS")
    encoder_in_file: bool = False  # its weights travel in the model file, although frozen: no package has them
    paragraphs: ParagraphConfig | None = None  # None: a caption is one sentence, written by the word decoder alone

    def __post_init__(self):
        if self.num_layers is None:
            self.num_layers = 3 if self.decoder == "transformer" else 1
        if self.dropout is None:
            self.dropout = 0.1 if self.decoder == "transformer" else 0.0
        if self.feed_forward_size is None and self.decoder == "transformer":
            self.feed_forward_size = 4 * self.hidden_size

    def to_dict(self) -> dict:
        """The config in plain types, as it travels in a model file."""
        specs = {name: [spec.to_dict() for spec in getattr(self, name)] for name in ("features", "persist_features")}
        return {**asdict(self), **specs}

    @classmethod
    def from_dict(cls, state: dict) -> "ModelConfig":
        """Raises UserError where `state` is not a dict as to_dict() gives it."""
        if not isinstance(state, dict):
            raise UserError("its config is no table")
        specs: dict = {}
        for name in ("features", "persist_features"):
            if not isinstance(state.get(name), list):
                raise UserError(f"its config has no list of {name}")
            specs[name] = [FeatureSpec.from_dict(spec) for spec in state[name]]
        if state.get("paragraphs") is not None:
            check_fields(ParagraphConfig, state["paragraphs"], "its config of paragraphs")
            specs["paragraphs"] = ParagraphConfig(**state["paragraphs"])
        config = {**state, **specs}
        check_fields(cls, config, "its config")
        if not is_size(config.get("crop_size") or 1):
            raise UserError(f"its config has images of {config['crop_size']} pixels")
        return cls(**config)

    @property
    def specs(self) -> list[FeatureSpec]:
        """Initial features, then persistent ones: the order of `inputs` in `CaptionModel.encode`."""
        return self.features + self.persist_features

    @property
    def pooled_size(self) -> int:
        """The numbers of the initial features that are pooled: all but a map that is attended to."""
        return self._size(range(len(self.features)))

    @property
    def persist_size(self) -> int:
        """The numbers of the persistent features, which are read at every step: all but a map that is attended to."""
        return self._size(range(len(self.features), len(self.specs)))

    def _size(self, indices: range) -> int:
        return sum(self.specs[i].shape[0] for i in indices if i != self.attended())

    @property
    def region_size(self) -> int:
        """The numbers of one region of the map attended to; 0 without attention."""
        index = self.attended()
        return 0 if index is None else self.specs[index].shape[0]

    @property
    def state_from_features(self) -> bool:
        """Whether the pooled features make the initial state, instead of being read first."""
        return self.rnn_hidden_init == "from_features" and not self.attention

    @property
    def image_size(self) -> int:
        """The numbers of the pooled image that a sentence decoder reads first; 0 where it reads none, or a topic."""
        return 0 if self.state_from_features or self.paragraphs is not None else self.pooled_size

    @property
    def initial_size(self) -> int:
        """The numbers that the initial state is made of: of the mean region (Xu et al. 2015), or pooled; 0: none."""
        if self.attention:
            return self.value_size
        return self.pooled_size if self.state_from_features else 0

    def idle(self) -> set[str]:
        """The names of the settings that have no meaning in this model."""
        others = {f.name for f in fields(self) if f.metadata.get("of") not in (None, self.decoder)}
        if self.positions != "learned":
            others.add("max_positions")
        return others if self.attention else others | {"attention_size", "value_size"}

    def check(self) -> None:
        """Raises UserError, naming the flags, where features and settings do not go together."""
        self.attended()
        if self.decoder == "transformer":
            self._check_transformer()
        elif self.attention == "updown":
            self._check_updown()
        elif self.paragraphs is not None:
            self._check_paragraphs()
        elif self.state_from_features and not self.pooled_size:
            raise UserError("--rnn_hidden_init from_features needs initial features (--features)")
        elif self.skip_start_token and not self.image_size:
            raise UserError("--skip_start_token needs pooled initial features, which are read in place of <start>")

    def _check_updown(self) -> None:
        if self.paragraphs is not None:
            raise UserError("--attention updown writes sentences: --hierarchical_model takes soft or spatial")
        unlike = {"rnn_arch": "LSTM", "num_layers": 1, "rnn_hidden_init": None, "skip_start_token": False}
        for name, own in {**unlike, "encoder_non_lin": False}.items():
            if getattr(self, name) != own:
                raise UserError(f"--{name}: --attention updown has one attention LSTM and one language LSTM")

    def _check_transformer(self) -> None:
        if self.paragraphs is not None:
            raise UserError("--hierarchical_model is an RNN: leave out --decoder transformer")
        if self.attention:
            raise UserError("--attention is of --decoder lstm: a Transformer attends to the map anyway")
        if self.hidden_size % self.heads:
            raise UserError(f"--heads {self.heads}: it must divide --hidden_size {self.hidden_size}")

    def _check_paragraphs(self) -> None:
        if self.rnn_hidden_init:
            raise UserError(
                "--rnn_hidden_init: with --hierarchical_model the word RNN starts from the topic, read first"
            )
        if not self.features:
            raise UserError("--hierarchical_model needs initial features (--features), which the sentence RNN reads")
        if any(spec.varying for spec in self.specs):
            raise UserError("--hierarchical_model: it needs maps with the same number of regions for all images")
        grids = {spec.shape[1:] for spec in self.features if spec.spatial}
        if len(grids) > 1:
            names = ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in self.features)
            raise UserError(f"--features: maps of different sizes cannot be joined region by region: {names}")

    @property
    def encoders_travel(self) -> bool:
        """Whether the model file holds the weights of the encoders that run within the model."""
        return self.finetune_encoder != 0 or self.encoder_in_file

    def attended(self) -> int | None:
        """Index in `specs` of the map attended to: the first of the persistent features, else of the initial ones.

        None where nothing is attended to. A Transformer attends to the map if there is one.
        """
        if not self.attention and self.decoder != "transformer":
            return None
        n, total = len(self.features), len(self.specs)
        for index in (*range(n, total), *range(n)):
            if self.specs[index].spatial:
                return index
        if not self.attention:
            return None
        names = ", ".join(spec.name for spec in self.specs)
        raise UserError(
            f"--attention {self.attention} needs a spatial map among the features; none of {names} is one. "
            "Name an encoder with -conv (resnet152-conv), or a feature file made with one"
        )
