"""A trained network with its vocabulary and its image transform: captions of photos, and what explains them.

Shapes: B images, R regions, T time steps.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from captioner.batches import caption_loader
from captioner.network import CaptionModel
from captioning.decoder.constrained import demands_of, mentioning
from captioning.decoder.paragraph_search import Paragraph, explain_paragraphs, write_paragraphs
from captioning.decoder.search import BEAMS, Search, Sentences, generate
from captioning.encoder.encoder import ImageEncoder
from captioning.encoder.joint import share_layers
from captioning.encoder.provenance import make_encoder
from captioning.encoder.ten_crops import photo_transform
from captioning.encoder.transforms import ImageTransform
from captioning.errors import UserError, one_line
from captioning.fast.steps import fast_decoder, ready
from captioning.images.image_file import open_image, upright
from captioning.rows import ImageMemory, log_probs_of
from captioning.scoring.calibration import Calibration
from captioning.text.function_words import content_words
from captioning.text.paragraphs import PERIODS, join_sentences
from captioning.text.tokens import upto_end
from vocabulary import Vocabulary


@dataclass
class Caption:
    """A caption of an image."""

    text: str  # as it is printed
    tokens: list[int]  # word ids without <start> and <end>; of a paragraph, those of its sentences joined
    log_prob: float  # natural, of the words and <end>; of a paragraph, the sum
    length: int  # tokens that log_prob is the sum of: the words and <end>, in a paragraph that of each sentence
    paragraph: Paragraph | None = None  # of a hierarchical model
    blank: float | None = None  # mean log-probability of the words about a picture of nothing, if confidence needs it

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
        self._blank_memory: ImageMemory | None = None
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

    @property
    def once(self) -> tuple[int, ...]:
        """Ids of the words that come once in a sentence at most, where the model's file recommends that; else none."""
        if not self.info.get("no_repeat_words") or self.vocabulary.tokenizer == "char":
            return ()
        return content_words(self.vocabulary.words)

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
        captions = [
            [self._caption(*pair, search) for pair in zip(tokens, log_prob) if pair[1] > -float("inf")]
            for tokens, log_prob in zip(found.tokens.tolist(), found.log_prob.tolist())
        ]
        if self.calibration is not None and self.calibration.blank_slope:
            self.read_on_blank([caption for several in captions for caption in several])
        return captions

    def read_on_blank(self, captions: list[Caption]) -> None:
        """Find out how likely captions of single sentences are about pictures that show nothing: `Caption.blank`.

        One is grey all over, the other one noise; the higher of both means counts. Raises UserError where the model
        cannot read pictures.
        """
        if not self.sees_pictures:
            raise UserError("a blank picture says nothing to a model that reads features from files, or paragraphs")
        if self._blank_memory is None:
            noise = np.random.RandomState(0).randint(0, 256, (3, self.size, self.size))
            pixels = torch.from_numpy(np.stack([np.full_like(noise, 128), noise]).astype(np.uint8)).to(self.device)
            self._blank_memory = self.encode(pixels, [None] * len(self.config.specs))
        count, sentences = len(captions), [caption.tokens for caption in captions]
        both = self.mean_log_probs(self._blank_memory, 2 * sentences, [0] * count + [1] * count)
        for caption, grey, noise in zip(captions, both[:count], both[count:]):
            caption.blank = max(grey, noise)

    @property
    def sees_pictures(self) -> bool:
        """Whether the model writes single sentences and its features are all made from pictures of one size."""
        encoders = all(isinstance(extractor, ImageEncoder) for extractor in self.model.extractors)
        return encoders and self.size is not None and self.config.paragraphs is None

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
        return self.calibration and self.calibration.confidence(caption.mean_log_prob, caption.blank)

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

    @torch.inference_mode()
    def mean_log_probs(self, memory: ImageMemory, sentences: list[list[int]], images: list[int]) -> list[float]:
        """How likely sentences are: of each the mean log-probability, natural, of its words and <end>.

        sentences: word ids without <start> and <end>; images: the row of `memory` that each is about. Raises UserError
        for a model of paragraphs.
        """
        if self.config.paragraphs is not None:
            raise UserError("a model of paragraphs cannot say how likely a sentence is")
        self.model.eval()
        rows = torch.tensor(images, dtype=torch.long, device=self.device)
        logits, targets, _, packing = self.model.read_sentences(memory, sentences, rows)
        return [float(x.mean()) for x in packing.by_row(log_probs_of(logits, targets))]

    @property
    def of_deepcaption(self) -> bool:
        """Whether DeepCaption trained the model."""
        return self.info.get("made_by") == "DeepCaption"

    def default_search(
        self,
        deepcaption: bool = True,
        beam_size: int | None = None,
        n_best: int = 1,
        length_penalty: float | None = None,
    ) -> Search:
        """How infer.py writes: with the beams of the model's file, or three, or `n_best` where that is more.

        deepcaption: whether a model of DeepCaption writes as that did, greedily and with <unk>; the rest then counts
        for other models only. length_penalty: None for that of the model's file. The file may also say that no word of
        content comes twice in a sentence.
        """
        if deepcaption and self.of_deepcaption:
            return Search(allow_unk=True)
        penalty = self.length_penalty if length_penalty is None else length_penalty
        beams = beam_size or max(self.info.get("beam_size", BEAMS), n_best)
        return Search(beams, length_penalty=penalty, n_best=n_best, once=self.once)

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
