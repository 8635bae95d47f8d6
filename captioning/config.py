"""What a captioner is made of, in plain types: its features and its sizes, as they travel in a model file."""

from dataclasses import asdict, dataclass, field

from captioning.errors import UserError


@dataclass
class FeatureSpec:
    """One name of `--features` or `--persist_features`.

    shape: (D,) or (D, h, w). from_file: read from a feature file. provenance: what makes it from a photo, as the
    feature file says (`extractor`, `weights_sha256`, `transform`, `feature_type`); None where the file does not say.
    DeepCaption keeps the joint size of its feature files only: of several the first has it, the others (0,), until
    `settle_joint_sizes`.
    """

    name: str
    shape: tuple[int, ...]
    from_file: bool
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


@dataclass
class ParagraphConfig:
    """What a hierarchical model has besides its word decoder. Meanings and defaults are those of train.py's flags."""

    pooling_size: int = 1024
    fc_size: int | None = None  # None: pooling_size
    max_sentences: int = 6
    dropout_stopping: float = 0.0
    dropout_fc: float = 0.0
    weight_sentence_loss: float = 5.0
    weight_word_loss: float = 1.0
    coherent_sentences: bool = False
    coupling_alpha: float = 1.0
    coupling_beta: float = 1.5

    @classmethod
    def of(cls, flags: dict) -> "ParagraphConfig":
        """From the flags of train.py, among others."""
        return cls(**{name: flags[name] for name in cls.__dataclass_fields__})


@dataclass
class ModelConfig:
    """Everything needed to build the model again, in plain types. Meanings are those of train.py's flags."""

    features: list[FeatureSpec] = field(default_factory=list)
    persist_features: list[FeatureSpec] = field(default_factory=list)
    embed_size: int = 256
    hidden_size: int = 512
    num_layers: int = 1
    rnn_arch: str = "LSTM"
    rnn_hidden_init: str | None = None
    dropout: float = 0.0
    encoder_dropout: float = 0.0
    encoder_non_lin: bool = False
    attention: str | None = None
    attention_size: int = 256
    value_size: int = 512
    share_embedding_weights: bool = False
    projection: bool = False  # the regularised one of shared embeddings
    skip_start_token: bool = False
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
    def encoders_travel(self) -> bool:
        """Whether the model file holds the weights of the encoders that run within the model."""
        return self.finetune_encoder != 0 or self.encoder_in_file

    def attended(self) -> int | None:
        """Index in `specs` of the map attended to: the first of the persistent features, else of the initial ones."""
        if not self.attention:
            return None
        order = list(range(len(self.features), len(self.specs))) + list(range(len(self.features)))
        for index in order:
            if self.specs[index].spatial:
                return index
        names = ", ".join(spec.name for spec in self.specs)
        raise UserError(
            f"--attention {self.attention} needs a spatial map among the features; none of {names} is one. "
            "Name an encoder with -conv (resnet152-conv), or a feature file made with one"
        )
