"""Photos are captioned, and figures drawn of where the model looked for each word.

    captioner = open_model("models/attentive/best.model")
    artist = Artist(captioner, Search(beam_size=3))
    figure, caption = artist.draw("photo.jpg")

Shapes: T words, (h, w) grid of attention weights.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages

from captioning.decoder.search import Search
from captioning.devices import choose_device
from captioning.errors import UserError, script_name
from captioning.files import atomic_write
from captioning.images.image_file import ImageError, open_image
from inference.attention_maps import draw_attention
from model import Captioner, load_captioner


def open_model(path, device: str | None = None, cpu: bool = False, weights: str | None = None) -> Captioner:
    """The captioner in a model file, ready for photos. Raises UserError where it has no attention.

    device: by name, None for the best there is; weights: local file of the encoder's weights.
    """
    captioner = load_captioner(path, choose_device(device, cpu), weights, photos=False)
    if captioner.model.attended is None:
        raise UserError(f"--model {path}: it has no attention to show; train one with --attention soft")
    captioner.prepare_for_photos()
    return captioner


class Artist:
    """Draws where a captioner with attention looked.

    capitalize: whether captions are written as sentences; columns: panels in a row, None for a shape near 3:2.
    """

    def __init__(self, captioner: Captioner, search: Search, capitalize: bool = True, columns: int | None = None):
        self.captioner, self.search, self.capitalize, self.columns = captioner, search, capitalize, columns

    def draw(self, path: str) -> tuple:
        """The matplotlib figure of one photo, and its caption. Raises ImageError where it cannot be read."""
        captioner, photo = self.captioner, open_image(path)
        pixels = captioner.transform(photo, None).unsqueeze(0).to(captioner.device)
        memory = captioner.encode(pixels, [None] * len(captioner.config.specs))
        caption = captioner.caption(memory, self.search)[0][0]
        weights, log_probs = captioner.explain(memory, [caption])[0]
        h, w = captioner.config.specs[captioner.model.attended].shape[1:]
        maps, probabilities = weights.reshape(-1, h, w).numpy(), log_probs.exp().tolist()  # T,h,w
        steps = zip(captioner.words(caption), maps, probabilities)
        # an end and a period look nowhere
        shown = [step for step in steps if step[0] != "<end>" and any(letter.isalnum() for letter in step[0])]
        words, maps, probabilities = zip(*shown) if shown else ((), (), ())
        text = captioner.text(caption, self.capitalize)
        return draw_attention(photo, words, maps, text, probabilities, self.columns), text

    def draw_all(self, images: list[str]) -> Iterator[tuple]:
        """(its number, its figure, its caption) of each photo; those that cannot be read are named and skipped."""
        for number, image in enumerate(images):
            try:
                figure, text = self.draw(image)
            except ImageError as error:
                print(f"{script_name()}: {error}", file=sys.stderr)
            else:
                yield number, figure, text


def write_figures(artist: Artist, images: list[str], paths: list[Path], dpi: int) -> int:
    """A file for each photo; gives how many photos could not be read. Raises UserError where none could."""
    done = 0
    for number, figure, text in artist.draw_all(images):
        path = paths[number]
        print(f"{images[number]}: {text} -> {path}", flush=True)
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=path.suffix.lower()[1:], dpi=dpi)
        done += 1
    return count_bad(done, len(images))


def write_pages(artist: Artist, images: list[str], path: Path, dpi: int) -> int:
    """One .pdf with a page for each photo; gives and raises what write_figures does."""
    figures = []
    for number, figure, text in artist.draw_all(images):
        print(f"{images[number]}: {text}", flush=True)
        figures.append(figure)
    bad = count_bad(len(figures), len(images))
    with atomic_write(path, "wb") as file, PdfPages(file) as pdf:
        for figure in figures:
            pdf.savefig(figure, dpi=dpi)
    print(f"{path}: {len(figures)} pages")
    return bad


def count_bad(done: int, count: int) -> int:
    if not done:
        raise UserError(f"none of the {count} photos could be read")
    return count - done
