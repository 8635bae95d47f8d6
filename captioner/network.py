"""Encoders and a decoder as one network: features of images, logits of words, the weights that a file holds.

Shapes: B images, N rows (captions), T time steps, M real tokens, R regions, D feature size, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from captioning.batches.pixels import StoryPixels, encoded
from captioning.config import ModelConfig
from captioning.decoder.batch_norm import BatchNorm
from captioning.decoder.paragraph import HierarchicalDecoder
from captioning.decoder.sentence import SentenceDecoder
from captioning.decoder.teacher_forcing import Forcing, mixed_read, two_pass_read
from captioning.decoder.transformer import TransformerDecoder
from captioning.decoder.updown import UpDownDecoder
from captioning.encoder import joint
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.joint import encode_all, share_layers
from captioning.encoder.provenance import make_encoder
from captioning.errors import UserError
from captioning.rows import ImageMemory, Packing, mean_of_regions, pack_sentences, real_regions
from vocabulary import Vocabulary


class CaptionModel(nn.Module):
    """Encoders (frozen unless `finetune_encoder`) and a sentence decoder, or a paragraph decoder over one."""

    def __init__(self, config: ModelConfig, vocab_size: int, extractors: list[ImageEncoder | None]):
        """extractors: for each of `config.specs` its encoder, or None where features come from a file."""
        super().__init__()
        self.config = config
        self.attended, self.n_initial = config.attended(), len(config.features)
        self.extractors = nn.ModuleList(nn.Identity() if x is None else x for x in extractors)
        kind = UpDownDecoder if config.attention == "updown" else SentenceDecoder
        decoder = (TransformerDecoder if config.decoder == "transformer" else kind)(vocab_size, config)
        self.decoder = decoder if config.paragraphs is None else HierarchicalDecoder(decoder, config)

    @property
    def sentence_decoder(self) -> SentenceDecoder | TransformerDecoder | UpDownDecoder:
        """The decoder, or the word decoder of a hierarchical model."""
        return self.decoder if self.config.paragraphs is None else self.decoder.word_decoder

    def encode(self, pixels: Tensor | StoryPixels | None, inputs: list[Tensor | None]) -> ImageMemory:
        """What the decoder needs of B images: its own kind of memory.

        pixels (B, 3, H, W), uint8 or float in 0..255, views of PhotoViews (B, W, 3, H, W), or StoryPixels of either,
        whose features are averaged; inputs: per spec a tensor (B, D) or (B, R, D) read from a file, or None to have its
        encoder make it from the pixels.
        """
        specs = self.config.specs
        wanted = {spec.name: x for spec, x, given in zip(specs, self.extractors, inputs) if given is None}
        made = encoded(partial(encode_all, wanted), pixels) if wanted else {}
        tensors = []
        for spec, given in zip(specs, inputs):
            tensors.append((as_regions(made[spec.name]) if given is None else given).float())
        masks = [real_regions(x) if spec.varying else None for spec, x in zip(self.config.specs, tensors)]
        regions, mask = (None, None) if self.attended is None else (tensors[self.attended], masks[self.attended])
        # a map that nobody attends to is averaged over its regions
        pooled: list[Tensor | None] = [
            None if i == self.attended else mean_of_regions(x, one) if x.dim() == 3 else x
            for i, (x, one) in enumerate(zip(tensors, masks))
        ]
        initial = joined(pooled[: self.n_initial])
        persist = joined(pooled[self.n_initial :])
        if self.config.paragraphs is not None:
            return self.decoder.prepare(tensors[: self.n_initial], persist, regions)
        return self.decoder.prepare(image=initial, persist=persist, regions=regions, initial=initial, mask=mask)

    def forward(
        self,
        pixels: Tensor | None,
        inputs: list[Tensor | None],
        captions: Tensor,
        lengths: Tensor,
        row_image: Tensor,
        forcing: Forcing | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Logits of every next word under teacher forcing.

        captions (N, T) begin with <start> and end with <end>; lengths (N,), on the CPU, count both; row_image (N,) says
        which of the B images a caption belongs to. forcing: None for the truth always, else the mode of
        `captioning.decoder.teacher_forcing`, the truth's probability and the generator of its coins.
        Returns logits (M, V), targets (M,), attention weights (M, R) or None, the row of each token (M,).
        """
        return self.decode(self.encode(pixels, inputs), captions, lengths, row_image, forcing)

    def decode(
        self, memory: ImageMemory, captions: Tensor, lengths: Tensor, row_image: Tensor, forcing: Forcing | None = None
    ):
        """What `forward` returns, from what `encode` gave."""
        packing = Packing.of(lengths - 1, captions.device)
        if forcing is None:
            logits, weights = self.decoder(memory, captions, packing, row_image)
        elif self.config.decoder == "transformer":
            logits, weights = two_pass_read(self.decoder, memory, captions[:, :-1], packing, row_image, forcing)
        else:
            rows = memory.select(row_image[packing.order])
            logits, weights, _ = mixed_read(self.decoder, rows, captions[:, :-1], packing, forcing)
        return logits, packing.targets(captions), weights, packing.row

    def read_sentences(self, memory: ImageMemory, sentences: list[list[int]], row_image: Tensor):
        """Logits of every next word of sentences that are written: word ids without <start> and <end>, N of them.

        row_image (N,) says which image of `memory` each is about.
        Returns logits (M, V), targets (M,), attention weights (M, R) or None, and the Packing of the M tokens.
        """
        captions, packing = pack_sentences(sentences, row_image.device)
        logits, weights = self.decoder(memory, captions, packing, row_image)
        return logits, packing.targets(captions), weights, packing

    def finetune(self, blocks: int) -> None:
        """Train the last `blocks` blocks of each encoder from now on: -1 all, 0 none.

        Encoders of classes stay as they are. Once an encoder was trained the weights of all stay in the model file.
        Raises UserError where there is no encoder that can train.
        """
        extractors = [x for x in self.extractors if isinstance(x, ImageEncoder)]
        tuned = [x for x in extractors if not x.name.endswith("-classes")]
        if blocks and not extractors:
            raise UserError("--finetune_encoder: no encoder runs within the model, all features come from files")
        if blocks and not tuned:
            raise UserError("--finetune_encoder: encoders of classes stay as they are; name another one in --features")
        for extractor in extractors:
            extractor.freeze()
        for extractor in tuned if blocks else ():
            extractor.unfreeze(None if blocks < 0 else blocks)
        for main, classes in self._pairs():
            joint.give_own_layers(main, classes)
        self.config.finetune_encoder = blocks or self.config.finetune_encoder

    def count_images(self, counted: bool) -> None:
        """Whether the images of the next batch count in the statistics of batch norm; see `BatchNorm.counted`."""
        for module in self.decoder.modules():
            if isinstance(module, BatchNorm):
                module.counted = counted

    def trained_state(self) -> dict[str, Tensor]:
        """The weights that a model file holds: all but those of frozen encoders, and of encoders behind files."""
        in_file = self._in_file()
        return {name: value for name, value in self.state_dict().items() if in_file(name)}

    def _in_file(self) -> Callable[[str], bool]:
        """Whether a model file holds the tensor of a name; those of layers that encoders share it holds once."""
        specs, travel, twice = self.config.specs, self.config.encoders_travel, set()
        for main, classes in self._pairs():
            twice |= {f"extractors.{self._number(classes)}.{name}" for name in joint.shared_names(main, classes)}

        def holds(name: str) -> bool:
            if not name.startswith("extractors."):
                return True
            return travel and not specs[int(name.split(".")[1])].from_file and name not in twice

        return holds

    def _pairs(self) -> list[tuple[ImageEncoder, ImageEncoder]]:
        return joint.pairs(self.extractors)

    def _number(self, extractor: ImageEncoder) -> int:
        """The first place of `extractor` among the model's encoders."""
        return next(i for i, one in enumerate(self.extractors) if one is extractor)

    def load_trained_state(self, state: dict[str, Tensor], source) -> None:
        """Raises UserError, naming `source`, where the weights do not fit."""
        own = self.state_dict()
        for name, value in state.items():
            if name in own and own[name].shape != value.shape:
                shapes = f"{tuple(value.shape)} in the file, {tuple(own[name].shape)} in the model"
                raise UserError(f"{source} does not fit the model: {name} is {shapes}")
        if self.config.encoders_travel:
            for main, classes in self._pairs():
                prefix = f"extractors.{self._number(classes)}."
                given = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
                joint.share_absent_layers(main, classes, given)
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = list(filter(self._in_file(), missing))
        if missing or unexpected:
            raise UserError(f"{source} does not fit the model: {(missing + unexpected)[0]} is missing or unknown")


def as_regions(features: Tensor) -> Tensor:
    """A map (B, D, h, w) as regions (B, R, D) row by row; vectors (B, D) as they are."""
    return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


def joined(tensors: list[Tensor | None]) -> Tensor | None:
    present = [x for x in tensors if x is not None]
    return torch.cat(present, 1) if present else None


def build_model(
    config: ModelConfig,
    vocabulary: Vocabulary,
    weights: str | None = None,
    pretrained: bool = True,
    extractors: dict[str, ImageEncoder] | None = None,
) -> CaptionModel:
    """A model with fresh decoder weights. Encoders not among `extractors`, by name, get pretrained ones (`weights`)."""
    built = dict(extractors or {})
    for spec in config.specs:
        if not spec.from_file and spec.name not in built:
            built[spec.name] = make_encoder(spec, weights, pretrained)
    model = CaptionModel(config, len(vocabulary), [built.get(spec.name) for spec in config.specs])
    if pretrained:  # random weights are all different; load_trained_state says what is shared
        share_layers(model.extractors)
    model.finetune(config.finetune_encoder)
    return model
