"""From a captioner and a dataset to results: batches, and the captions of every image.

captioner = load_captioner("models/run/best.model", photos=False)
loader = open_loader(captioner, dataset, LoaderSettings(batch_size=32))
for item, result in ImageCaptions(captioner, Search(beam_size=3), Style()).of(loader):
    print(result.captions[0])
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from captioning.batches.inputs import plan_inputs
from captioning.datasets.base import CaptionDataset, ImageItem
from captioning.decoder.search import Search
from captioning.devices import autocast
from captioning.encoder.ten_crops import with_size
from captioning.errors import UserError, one_line
from captioning.text.detokenizers import as_sentence, detokenize
from data_loader import Loader, LoaderSettings, get_eval_loader
from inference.attention_maps import AttentionLog
from inference.results.result import Result, Style
from inference.sharing import seeded
from inference.words import word_probabilities
from model import Caption, Captioner, caption_loader


def open_loader(
    captioner: Captioner,
    dataset: CaptionDataset,
    settings: LoaderSettings,
    replaced: dict[str, str | None] | None = None,
    photos: str = "instead",
    size: int | None = None,
) -> Loader:
    """Batches of the images, from feature files where the dataset has them, else from pixels.

    captioner: may lack the encoders that feature files stand in for; replaced, photos: feature files in place of the
    model's, and when to encode photos instead, as in plan_inputs; size: width and height, in pixels, of the images
    that encoders get. Raises UserError where `size` is given, but no pixels are read.
    """
    inputs = plan_inputs(captioner.config, dataset, replaced=replaced, photos=photos, strict=True)
    from_pixels = all(one.from_pixels for one in inputs)
    if from_pixels:
        captioner.prepare_for_photos()
    if size:
        if not from_pixels:
            raise UserError("--resize is for photos, but the model reads this dataset from feature files")
        give_images_at(captioner, size)
    if settings.num_workers is None and len(dataset) <= settings.batch_size:
        settings = replace(settings, num_workers=0)  # a single batch: starting processes would only cost time
    return get_eval_loader(dataset, inputs, settings, captioner.transform)


def give_images_at(captioner: Captioner, size: int) -> None:
    """Have images of `size` x `size` pixels given to the encoders. Raises UserError where one cannot take them."""
    captioner.transform = with_size(captioner.transform, size)
    probe = captioner.transform(Image.new("RGB", (size, size)), None).unsqueeze(0)
    try:
        captioner.encode(probe.to(captioner.device), [None] * len(captioner.config.specs))
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error)
        raise UserError(f"--resize {size}: the model's encoder cannot take images of this size ({reason})") from error


@dataclass
class ImageCaptions:
    """The results of a loader's images.

    amp: "bf16" for mixed precision; attention: gathers where the model looked for the words of each best caption;
    seed: of the samples that `search` draws.
    """

    captioner: Captioner
    search: Search
    style: Style
    amp: str = "off"
    attention: AttentionLog | None = None
    seed: int | None = None

    def of(self, loader: Loader) -> Iterator[tuple[ImageItem, Result]]:
        """Each image with its result, in the order of the loader, which is closed at the end."""
        with contextlib.closing(loader):
            batches = loader if self.seed is None else seeded(loader, self.seed)
            for batch, memory, captions in caption_loader(self.captioner, batches, self.search, self.amp):
                words = self._words(memory, captions)
                if self.attention is not None:
                    self._log_attention(batch.items, memory, captions)
                for item, several, steps in zip(batch.items, captions, words):
                    pairs = [(self._text(caption), caption.log_prob) for caption in several]
                    result = Result(self.style.id_of(item), pairs, item.path, item.captions, steps)
                    result.mean_log_probs = [caption.mean_log_prob for caption in several]
                    if self.captioner.calibration is not None:
                        result.confidences = [self.captioner.confidence(caption) for caption in several]
                    if self.style.min_confidence is not None:
                        result.withhold(self.style.min_confidence)
                    yield item, result

    def _text(self, caption: Caption) -> str:
        rules, capitalize = self.style.rules, self.style.capitalize
        if rules is None:
            return self.captioner.text(caption, capitalize)
        vocabulary = self.captioner.vocabulary
        text = detokenize(rules.words(vocabulary.tokens(caption.tokens)), vocabulary.tokenizer)
        return as_sentence(text) if capitalize else text

    def _words(self, memory, captions: list[list[Caption]]) -> list[list]:
        """Of each image, the words of its captions with their alternatives; nothing where they are not wanted."""
        style = self.style
        if not style.wants_words:
            return [[] for _ in captions]
        with autocast(self.captioner.device, self.amp):
            found = word_probabilities(self.captioner, memory, captions, style.alternatives or 1)
        if style.probabilities:
            return found
        return [[[[(word, None) for word, _ in step] for step in steps] for steps in several] for several in found]

    def _log_attention(self, items: list[ImageItem], memory, captions: list[list[Caption]]) -> None:
        best = [several[0] for several in captions]
        with autocast(self.captioner.device, self.amp):
            explained = self.captioner.explain(memory, best)
        for item, caption, (weights, log_probs) in zip(items, best, explained):
            words = self.captioner.words(caption)
            self.attention.add(self.style.id_of(item), words, weights.numpy(), log_probs.numpy())
