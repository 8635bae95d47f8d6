"""The captioner: encoders and a decoder as one model, its file, and captioning a batch.

    captioner = load_captioner("models/run/best.model")           # .model .vocabulary .transform .config
    for captions in captioner.caption_photos(["photo.jpg", image]):  # a list of Caption per photo, best first
        print(captions[0].text)                                      # as infer.py prints it

Shapes: B images, N rows (captions), T time steps, M real tokens, R regions, D feature size, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captioning import checkpoint
from captioning.batches.arrays import tensors_for
from captioning.batches.pixels import StoryPixels, encoded
from captioning.config import ModelConfig
from captioning.decoder.batch_norm import BatchNorm
from captioning.decoder.constrained import demands_of, mentioning
from captioning.decoder.paragraph import HierarchicalDecoder
from captioning.decoder.paragraph_search import Paragraph, explain_paragraphs, write_paragraphs
from captioning.decoder.search import BEAMS, Search, Sentences, generate
from captioning.decoder.sentence import SentenceDecoder
from captioning.decoder.teacher_forcing import mixed_read, two_pass_read
from captioning.decoder.transformer import TransformerDecoder
from captioning.decoder.updown import UpDownDecoder
from captioning.deepcaption import models as deepcaption_files
from captioning.devices import autocast
from captioning.encoder import joint
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.joint import encode_all, share_layers
from captioning.encoder.provenance import make_encoder
from captioning.encoder.ten_crops import photo_transform
from captioning.encoder.transforms import ImageTransform
from captioning.errors import UserError, one_line
from captioning.fast.steps import fast_decoder, ready
from captioning.fast.threads import map_on_cores
from captioning.images.image_file import open_image, upright
from captioning.rows import ImageMemory, Packing, log_probs_of, mean_of_regions, pack_sentences, real_regions
from captioning.scoring.calibration import Calibration
from captioning.text.paragraphs import PERIODS, join_sentences
from captioning.text.tokens import upto_end
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
        forcing: tuple[str, float, torch.Generator] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Logits of every next word under teacher forcing.

        captions (N, T) begin with <start> and end with <end>; lengths (N,), on the CPU, count both; row_image (N,) says
        which of the B images a caption belongs to. forcing: None for the truth always, else the mode of
        `captioning.decoder.teacher_forcing`, the truth's probability and the generator of its coins.
        Returns logits (M, V), targets (M,), attention weights (M, R) or None, the row of each token (M,).
        """
        return self.decode(self.encode(pixels, inputs), captions, lengths, row_image, forcing)

    def decode(self, memory: ImageMemory, captions: Tensor, lengths: Tensor, row_image: Tensor, forcing=None):
        """`forward` from what `encode` gave."""
        packing = Packing.of(lengths - 1, captions.device)
        if forcing is None:
            logits, weights = self.decoder(memory, captions, packing, row_image)
        elif self.config.decoder == "transformer":
            logits, weights = two_pass_read(self.decoder, memory, captions[:, :-1], packing, row_image, forcing)
        else:
            rows = memory.select(row_image[packing.order])
            logits, weights, _ = mixed_read(self.decoder, rows, captions[:, :-1], packing, *forcing)
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


@dataclass
class Caption:
    """A caption of an image."""

    text: str  # as it is printed
    tokens: list[int]  # word ids without <start> and <end>; of a paragraph, those of its sentences joined
    log_prob: float  # natural, of the words and <end>; of a paragraph, the sum
    length: int  # tokens that log_prob is the sum of: the words and <end>, in a paragraph that of each sentence
    paragraph: Paragraph | None = None  # of a hierarchical model

    @property
    def mean_log_prob(self) -> float:
        """Natural log-probability of a token, the mean over the words and <end>."""
        return self.log_prob / max(1, self.length)


class Captioner:
    """A trained model with its vocabulary and its image transform: what a caller needs to caption photos."""

    def __init__(
        self, model: CaptionModel, vocabulary: Vocabulary, weights: str | None = None, info: dict | None = None
    ):
        self.model, self.vocabulary, self.config, self.weights = model, vocabulary, model.config, weights
        self.info = info or {}  # epoch, versions, command, ...
        self.calibration: Calibration | None = None  # what makes confidences of log-probabilities
        if self.info.get("calibration") is not None:
            self.calibration = Calibration.from_dict(self.info["calibration"], "model file")
        known = [(spec.provenance or {}).get("transform") for spec in self.config.specs]
        self.transform = None
        for settings in filter(None, reversed(known)):  # the first counts
            if "size" in settings and "interpolation" in settings:
                self.transform = ImageTransform(self.config.crop_size or settings["size"], settings["interpolation"])

    @property
    def size(self) -> int | None:
        """The side of the squares that encoders get, in pixels; None where that is not known."""
        return None if self.transform is None else self.transform.size

    @property
    def device(self) -> torch.device:
        return next(self.model.decoder.parameters()).device

    @property
    def length_penalty(self) -> float:
        """The one that the model's file recommends for beam search."""
        return float(self.info.get("length_penalty", 0.0))

    def expect_few(self) -> None:
        """A few photos are to be captioned, no more: the first one comes sooner, further ones would come later."""
        for extractor in self.model.extractors:
            if isinstance(extractor, ImageEncoder):
                extractor.expect_few()

    def prepare_for_photos(self) -> None:
        """Build the encoders behind feature files that are not there yet, so that photos can be captioned too.

        Raises UserError where a file does not name its encoder, or was made from images of another size than the rest.
        """
        if not any(isinstance(extractor, nn.Identity) for extractor in self.model.extractors):
            return
        made: dict[str, ImageEncoder] = {}
        for index, spec in enumerate(self.config.specs):
            if not isinstance(self.model.extractors[index], nn.Identity):
                continue
            provenance = str(spec.provenance)
            if provenance not in made:
                made[provenance] = make_encoder(spec, self.weights).to(self.device).eval()
            own = made[provenance].transform
            if self.transform is None:  # the file names the encoder only
                self.transform = ImageTransform(own["size"], own["interpolation"])
            if (own["size"], own["interpolation"]) != (self.size, self.transform.interpolation):
                raise UserError(
                    f"the model's features are of photos of different sizes ({own['size']} pixels for {spec.name}, "
                    f"else {self.size}), so it cannot caption photos; caption a dataset with such features (--dataset)"
                )
            self.model.extractors[index] = made[provenance]
        share_layers(self.model.extractors)
        try:
            plain = ImageTransform(self.size, self.transform.interpolation)
            self.transform = photo_transform(list(self.model.extractors), plain)
        except ValueError as error:
            raise UserError(f"the model's features are of {error}, so it cannot caption photos") from error

    @torch.inference_mode()
    def encode(self, pixels: Tensor | None, inputs: list[Tensor | None]) -> ImageMemory:
        """`CaptionModel.encode` in eval mode, without gradients."""
        self.model.eval()
        return self.model.encode(pixels, inputs)

    @torch.inference_mode()
    def ready_decoder(self):
        """The decoder of sentences made ready for `caption`; good for many batches, until its weights change."""
        self.model.eval()
        return fast_decoder(self.model.sentence_decoder)

    @torch.inference_mode()
    def caption(
        self, images: ImageMemory | Sequence, search: Search | None = None, decoder=None
    ) -> list[list[Caption]]:
        """Captions of B images, `search.n_best` each, best first.

        images: what `encode` gave, or a list of photos as `caption_photos` takes them. search: None for that of
        `infer.py`. decoder: of `ready_decoder`. Raises UserError for a photo that cannot be read, and where training
        left weights that are no finite numbers.
        """
        if isinstance(images, list | tuple):
            return self.caption_photos(images, search)
        memory, search = images, search or self.default_search()
        self.model.eval()
        decoder = decoder or self.ready_decoder()
        if self.config.paragraphs is not None:
            written = write_paragraphs(self.model.decoder, memory, search, decoder)
            text = [[as_text(one.sentences, self.vocabulary) for one in several] for several in written]
            return [
                [Caption(t, p.words, p.log_prob, len(p.words) + len(p.sentences), p) for t, p in zip(*both)]
                for both in zip(text, written)
            ]
        found = self._search(memory, search, decoder)
        if not torch.isfinite(found.log_prob[:, 0]).all():
            raise UserError("the model's weights are no finite numbers, so it writes no caption: take an earlier epoch")
        return [
            [self._caption(*pair, search) for pair in zip(tokens, log_prob) if pair[1] > -float("inf")]
            for tokens, log_prob in zip(found.tokens.tolist(), found.log_prob.tolist())
        ]

    def _search(self, memory: ImageMemory, search: Search, decoder) -> Sentences:
        if not search.mention:
            return generate(*ready(decoder, memory), search)
        probabilities = None
        if self.classes_at is not None:
            probabilities = memory.persist[:, self.classes_at].float() ** 2  # the features are their square roots
        demands = demands_of(search.mention, probabilities, len(memory))
        return mentioning(*ready(decoder, memory), search, demands)

    @property
    def classes_at(self) -> slice | None:
        """Where the persistent features have ImageNet's classes, such as efficientnet_lite2-classes; None: nowhere."""
        first, attended = 0, self.config.attended()
        for number, spec in enumerate(self.config.persist_features, len(self.config.features)):
            if (spec.provenance or {}).get("extractor", spec.name).endswith("-classes"):
                return slice(first, first + spec.shape[0])
            first += 0 if number == attended else spec.shape[0]
        return None

    def _caption(self, tokens: list[int], log_prob: float, search: Search) -> Caption:
        written = upto_end(tokens)
        words = tidy_caption(written, self.vocabulary, search)
        return Caption(self.vocabulary.sentence(words), words, log_prob, len(written) + 1)

    def confidence(self, caption: Caption) -> float | None:
        """The chance, from 0 to 1, that a caption is a good one; None where the model's file has no calibration.

        captioning/scoring/calibration.py says what a good caption is.
        """
        return self.calibration and self.calibration.confidence(caption.mean_log_prob)

    def text(self, caption: Caption, capitalize: bool = True) -> str:
        """The caption as it is printed, or as plain words."""
        if caption.paragraph is not None:
            return as_text(caption.paragraph.sentences, self.vocabulary, capitalize)
        return self.vocabulary.sentence(caption.tokens, capitalize)

    def words(self, caption: Caption) -> list[str]:
        """The words of a caption with its <end>, of a paragraph with that of each sentence: what `explain` explains."""
        sentences = [caption.tokens] if caption.paragraph is None else caption.paragraph.sentences
        return [word for sentence in sentences for word in (*self.vocabulary.tokens(sentence), "<end>")]

    @torch.inference_mode()
    def explain(self, memory: ImageMemory, captions: list[Caption]) -> list[tuple[Tensor | None, Tensor]]:
        """Where the model looked for each word, and how sure it was: one caption for each of the B images of `memory`.

        Gives for each image attention weights (T, R), None without attention, and log-probabilities (T,), natural;
        T counts the words and <end>, in a paragraph that of each sentence. Both on the CPU, float32.
        """
        self.model.eval()
        if self.config.paragraphs is not None:
            return explain_paragraphs(self.model.decoder, memory, [caption.paragraph for caption in captions])
        images = torch.arange(len(captions), device=self.device)
        sentences = [caption.tokens for caption in captions]
        logits, targets, weights, packing = self.model.read_sentences(memory, sentences, images)
        log_probs = [x.cpu() for x in packing.by_row(log_probs_of(logits, targets))]
        attended = [None] * len(captions) if weights is None else [x.float().cpu() for x in packing.by_row(weights)]
        return list(zip(attended, log_probs))

    def default_search(self) -> Search:
        """How infer.py writes where no flag says how: with three beams; with a model of DeepCaption as that did."""
        if self.info.get("made_by") == "DeepCaption":
            return Search(allow_unk=True)
        return Search(BEAMS, length_penalty=self.length_penalty)

    def caption_photos(
        self, photos: Sequence, search: Search | None = None, batch_size: int = 32
    ) -> list[list[Caption]]:
        """Captions of each photo, `search.n_best` of them, best first: by default the one that infer.py prints.

        photos: paths of files, also within zip files, and PIL images, in any order. EXIF orientation and transparency
        are treated as infer.py does. A path is the better choice: large JPEGs are then decoded at a smaller size.
        batch_size: photos that are worked on at a time. Raises UserError for a photo that cannot be read, which it
        names, or counts from 0 on where it is an image.
        """
        self.prepare_for_photos()

        def batches() -> Iterator[SimpleNamespace]:
            for start in range(0, len(photos), batch_size):
                few = enumerate(photos[start : start + batch_size], start)
                pixels = [self.transform(self._opened(photo, number), None) for number, photo in few]
                yield SimpleNamespace(pixels=torch.stack(pixels), inputs=[None] * len(self.config.specs))

        written = caption_loader(self, batches(), search or self.default_search())
        return [several for _, _, captions in written for several in captions]

    def _opened(self, photo, number: int) -> Image.Image:
        """A photo, a path or a PIL image, as an upright RGB image. Raises UserError where it cannot be read."""
        if not isinstance(photo, Image.Image):
            return open_image(photo, getattr(self.transform, "size_hint", None))
        try:
            return upright(photo)
        except Exception as error:  # damaged files bring forth nearly every kind
            raise UserError(f"photo {number} cannot be read: {one_line(error)}") from error

    def caption_images(self, images: list, search: Search | None = None) -> list[list[Caption]]:
        """Captions of PIL images, greedy unless `search` says otherwise."""
        self.prepare_for_photos()
        pixels = torch.stack([self.transform(image.convert("RGB"), None) for image in images]).to(self.device)
        return self.caption(self.encode(pixels, [None] * len(self.config.specs)), search or Search())


def caption_loader(captioner: Captioner, loader: Iterable, search: Search | None, amp: str = "off") -> Iterator[tuple]:
    """(batch, memory, captions of its images, None without `search`) in turn. amp: "bf16" for mixed precision."""

    def work(batch):
        with autocast(captioner.device, amp):
            memory = captioner.encode(*batch_inputs(captioner, batch))
            return batch, memory, None if search is None else captioner.caption(memory, search, decoder)

    with autocast(captioner.device, amp):
        decoder = None if search is None else captioner.ready_decoder()
    alone = search is None or search.sample or captioner.device.type != "cpu"  # samples depend on the order of draws
    yield from map(work, loader) if alone else map_on_cores(work, loader)


def batch_inputs(captioner: Captioner, batch) -> tuple[Tensor | None, list[Tensor | None]]:
    """Pixels and inputs of a data_loader.Batch, on the model's device, as `CaptionModel.encode` takes them.

    The model's inputs come first in the batch; those of other models may follow.
    """
    own = [batch.pixels, *batch.inputs[: len(captioner.config.specs)]]
    pixels, *inputs = [None if x is None else x.to(captioner.device, non_blocking=True) for x in own]
    return pixels, inputs


def save_captioner(captioner: Captioner, path, **info) -> None:
    """Write a model file with all that inference needs, and `info` (epoch, command, optimizer state, ...) beside it."""
    contents = {"kind": "captioner", "config": captioner.config.to_dict()}
    contents |= {"vocabulary": captioner.vocabulary.to_dict(), "state": captioner.model.trained_state()}
    if "converted_from" in captioner.info:
        contents["converted_from"] = captioner.info["converted_from"]
    if captioner.calibration is not None:
        contents["calibration"] = captioner.calibration.to_dict()
    checkpoint.save({**contents, **info}, path)


def read_model_file(path, vocabulary: Vocabulary | None = None) -> dict:
    """The contents of a model file, ours or DeepCaption's; vocabulary: for files of DeepCaption that hold none."""
    if deepcaption_files.is_deepcaption_file(path):
        return deepcaption_files.load(path, None if vocabulary is None else vocabulary.to_dict())
    return checkpoint.load(path, map_location="cpu")


def load_captioner(
    path, device="cpu", weights: str | None = None, photos: bool = True, vocabulary: Vocabulary | None = None
) -> Captioner:
    """The captioner in a model file, ready to caption: eval mode, encoders with the weights it was trained on.

    weights: local file of the encoder's weights where they cannot be downloaded. photos=False spares the encoders that
    feature files stand in for. vocabulary: for files of DeepCaption that hold none. Raises UserError where the file is
    damaged or the encoder's weights are other ones.
    """
    contents = read_model_file(path, vocabulary)
    for name in ("config", "vocabulary", "state"):
        if name not in contents:
            raise UserError(f"model file {path} lacks {name!r}: it was not written by train.py")
    try:
        captioner = captioner_of(contents, device, weights, f"model file {path}")
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"model file {path}: {error}") from error
    if photos:
        captioner.prepare_for_photos()
    return captioner


RANDOM = (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_)


class NoRandomWeights(TorchFunctionMode):
    """Within it tensors get no random values: those of a file take their place.

    On meta, where tensors have no values, torch would import its compiler for it.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def captioner_of(contents: dict, device, weights: str | None, source: str) -> Captioner:
    """`load_captioner` from what `read_model_file` gave; `source` names the file in errors."""
    config = ModelConfig.from_dict(contents["config"])
    vocabulary = Vocabulary.from_dict(contents["vocabulary"])
    check_decoder(config, len(vocabulary), contents["state"], source)
    # encoders that travel in the file: no need for the pretrained ones
    with NoRandomWeights() if config.encoders_travel else contextlib.nullcontext():
        model = build_model(config, vocabulary, weights, pretrained=not config.encoders_travel)
    model.load_trained_state(contents["state"], source)
    model.finetune(0)
    info = {name: value for name, value in contents.items() if name not in ("config", "vocabulary", "state")}
    return Captioner(model.to(device).eval(), vocabulary, weights, info)


def check_decoder(config: ModelConfig, words: int, state: dict[str, Tensor], source: str) -> None:
    """Raises UserError, naming `source`, where `state` does not hold the decoder that `config` describes.

    It is found out without the memory that the decoder takes: what a file says of its size need not be true.
    """
    layers = sum(name.startswith("decoder.") for name in state) // 4  # each has four tensors or more
    if max(config.num_layers, config.region_layers) > max(1, layers) or not config.specs:
        raise UserError(f"{source} does not fit its config: it has no {config.num_layers} layers, or no features")
    try:
        with torch.device("meta"), NoRandomWeights():
            decoder = CaptionModel(config, words, [None] * len(config.specs)).decoder.state_dict()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{source} has a config that no model can have: {one_line(error)}") from error
    given = {name.removeprefix("decoder."): value for name, value in state.items() if name.startswith("decoder.")}
    for name in dict.fromkeys([*decoder, *given]):
        if name not in decoder or name not in given:
            raise UserError(f"{source} does not fit the model: decoder.{name} is missing or unknown")
        if decoder[name].shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)} in the file, {tuple(decoder[name].shape)} in the model"
            raise UserError(f"{source} does not fit the model: decoder.{name} is {shapes}")
    for index, spec in enumerate(config.specs):
        travels = config.encoders_travel and not spec.from_file
        if travels and not any(name.startswith(f"extractors.{index}.") for name in state):
            raise UserError(f"{source} lacks the weights of its encoder {spec.name}")


def tidy_caption(words: list[int], vocabulary: Vocabulary, search: Search) -> list[int]:
    """The rules of `search` about sentences for a caption in one piece, whose sentences end in "." or the like."""
    if not (search.no_repeat_sentences or search.only_complete_sentences):
        return words
    periods = {vocabulary.words.index(mark) for mark in PERIODS if mark in vocabulary}
    if not periods:
        return words
    sentences: list[list[int]] = [[]]
    for word in words:
        sentences[-1].append(word)
        if word in periods:
            sentences.append([])
    if search.only_complete_sentences and len(words) >= search.max_length and sentences[-1]:
        sentences.pop()  # cut off at the limit
    if search.no_repeat_sentences:
        firsts: dict[tuple, list[int]] = {}
        for sentence in sentences:
            firsts.setdefault(tuple(word for word in sentence if word not in periods), sentence)
        sentences = list(firsts.values())
    return [word for sentence in sentences for word in sentence]


def as_text(sentences: Iterable[list[int]], vocabulary: Vocabulary, capitalize: bool = True) -> str:
    """A paragraph as it is printed; without `capitalize` in plain words, with the periods that part its sentences."""
    return join_sentences(vocabulary.sentence(sentence, capitalize) for sentence in sentences)


def caption_features(
    captioner, features=None, persist_features=None, search: Search | None = None, batch_size: int = 32
) -> list[list]:
    """Captions of B images from their features, `search.n_best` model.Caption objects each, best first.

    features: for the one name of the model's `--features` an array, a tensor, or nested lists of numbers; for several
    names a list or tuple of such, in the order of the names. A vector feature is (B, D), a map (B, D, h, w) or its
    regions row by row (B, R, D); a single image may leave B out. persist_features: the same for `--persist_features`.
    Both may stand in for encoders that run within the model. search: None for beam 3. batch_size: images at a time.
    Raises UserError where a feature that the model needs is not given, or one has another shape or is not finite.
    """
    config = captioner.config
    inputs = tensors_for("features", features, config.features)
    inputs += tensors_for("persist_features", persist_features, config.persist_features)
    counts = {len(values) for values in inputs}
    if len(counts) > 1:
        raise UserError(f"features of different numbers of images: {', '.join(map(str, sorted(counts)))}")
    captions, decoder = [], captioner.ready_decoder()
    for start in range(0, counts.pop(), batch_size):
        batch = [values[start : start + batch_size].to(captioner.device) for values in inputs]
        captions += captioner.caption(captioner.encode(None, batch), search or Search(BEAMS), decoder)
    return captions
