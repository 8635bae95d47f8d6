"""What a captioner is made of, in plain types: its features and its sizes, as they travel in a model file."""

from dataclasses import asdict, dataclass, field, fields

from captioning.errors import UserError


@dataclass
class FeatureSpec:
    """One name of `--features` or `--persist_features`."""

    name: str
    shape: tuple[int, ...]  # (D,) or (D, h, w); of DeepCaption's files the first has the size of all, the others (0,)
    from_file: bool
    # what makes it from a photo: `extractor`, `weights_sha256`, `transform`, `feature_type`; None: no file says
    provenance: dict | None = None

    @property
    def spatial(self) -> bool:
        return len(self.shape) == 3

    def to_dict(self) -> dict:
        """The spec in plain types. Its keys are those of model files, which are older than the names of the fields."""
        return {"name": self.name, "shape": self.shape, "external": self.from_file, "maker": self.provenance}

    @classmethod
    def from_dict(cls, state: dict) -> "FeatureSpec":
        return cls(state["name"], tuple(state["shape"]), state["external"], state.get("maker"))


def fixed(default, when: bool | str = True):
    """A field that a loaded model cannot change: it decides the shape or the meaning of weights.

    when: "attention" where that holds only for a model with attention. It stands in the field's metadata, as "fixed".
    """
    return field(default=default, metadata={"fixed": when})


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

    pooling_size: int = fixed(1024)
    fc_size: int | None = fixed(None)  # None: pooling_size
    max_sentences: int = 6
    dropout_stopping: float = 0.0
    dropout_fc: float = 0.0
    weight_sentence_loss: float = 5.0
    weight_word_loss: float = 1.0
    coherent_sentences: bool = fixed(False)
    coupling_alpha: float = fixed(1.0)
    coupling_beta: float = fixed(1.5)


@dataclass
class ModelConfig(Settings):
    """Everything needed to build the model again, in plain types. Meanings are those of train.py's flags."""

    features: list[FeatureSpec] = field(default_factory=list)
    persist_features: list[FeatureSpec] = field(default_factory=list)
    embed_size: int = fixed(256)
    hidden_size: int = fixed(512)
    num_layers: int = fixed(1)
    rnn_arch: str = fixed("LSTM")
    rnn_hidden_init: str | None = fixed(None)
    dropout: float = 0.0
    encoder_dropout: float = 0.0
    encoder_non_lin: bool = fixed(False)
    attention: str | None = fixed(None)
    attention_size: int = fixed(256, "attention")
    value_size: int = fixed(512, "attention")
    share_embedding_weights: bool = fixed(False)
    projection: bool = False  # the regularised one of shared embeddings
    skip_start_token: bool = fixed(False)
    finetune_encoder: int = 0  # how many of the encoder's last blocks are trained; -1: all
    crop_size: int | None = None  # pixels; None: the encoder's own
    encoder_in_file: bool = False  # its weights travel in the model file, although frozen: no package has them
    paragraphs: ParagraphConfig | None = None  # None: a caption is one sentence, written by the word decoder alone

    def to_dict(self) -> dict:
        """The config in plain types, as it travels in a model file."""
        specs = {name: [spec.to_dict() for spec in getattr(self, name)] for name in ("features", "persist_features")}
        return {**asdict(self), **specs}

    @classmethod
    def from_dict(cls, state: dict) -> "ModelConfig":
        specs: dict = {
            name: [FeatureSpec.from_dict(spec) for spec in state[name]] for name in ("features", "persist_features")
        }
        if state.get("paragraphs") is not None:
            specs["paragraphs"] = ParagraphConfig(**state["paragraphs"])
        return cls(**{**state, **specs})

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

    def check(self) -> None:
        """Raises UserError, naming the flags, where features and settings do not go together."""
        self.attended()
        if self.paragraphs is not None:
            self._check_paragraphs()
        elif self.state_from_features and not self.pooled_size:
            raise UserError("--rnn_hidden_init from_features needs initial features (--features)")
        elif self.skip_start_token and not self.image_size:
            raise UserError("--skip_start_token needs pooled initial features, which are read in place of <start>")

    def _check_paragraphs(self) -> None:
        if self.rnn_hidden_init:
            raise UserError(
                "--rnn_hidden_init: with --hierarchical_model the word RNN starts from the topic, read first"
            )
        if not self.features:
            raise UserError("--hierarchical_model needs initial features (--features), which the sentence RNN reads")
        grids = {spec.shape[1:] for spec in self.features if spec.spatial}
        if len(grids) > 1:
            names = ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in self.features)
            raise UserError(f"--features: maps of different sizes cannot be joined region by region: {names}")

    @property
    def encoders_travel(self) -> bool:
        """Whether the model file holds the weights of the encoders that run within the model."""
        return self.finetune_encoder != 0 or self.encoder_in_file

    def attended(self) -> int | None:
        """Index in `specs` of the map attended to: the first of the persistent features, else of the initial ones."""
        if not self.attention:
            return None
        n, total = len(self.features), len(self.specs)
        for index in (*range(n, total), *range(n)):
            if self.specs[index].spatial:
                return index
        names = ", ".join(spec.name for spec in self.specs)
        raise UserError(
            f"--attention {self.attention} needs a spatial map among the features; none of {names} is one. "
            "Name an encoder with -conv (resnet152-conv), or a feature file made with one"
        )
