"""Where a captioner looked for each of its words: figures in the manner of Xu et al. 2015 (2, 3 and 5), and a file.

    figure = draw_attention(photo, ["a", "dog"], maps, caption="A dog.", probabilities=[0.7, 0.3])
    figure.savefig("dog.png", dpi=150)

Shapes: T words, (h, w) grid of attention weights, (H, W) photo in pixels.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from captioning.decoder.search import Search
from captioning.errors import UserError, script_name, shown
from captioning.files import atomic_write
from captioning.images.image_file import ImageError, open_image
from inference.gallery.cards import WordMaps
from model import Captioner

SHADE = 0.18  # brightness where the model did not look at all
SHOWN = 420  # pixels of the photo's longer side in a panel
PANEL = 2.35  # inches of a panel's longer side
BLUR = 0.25  # standard deviation of the Gaussian over a map, in regions


def draw_caption(path: str, captioner: Captioner, search: Search, capitalize: bool, columns: int | None) -> tuple:
    """The matplotlib figure of one photo, and its caption. Raises ImageError where it cannot be read.

    captioner: one with attention; capitalize: write captions as sentences; columns: as in draw_attention.
    """
    photo = open_image(path)
    pixels = captioner.transform(photo, None).unsqueeze(0).to(captioner.device)
    memory = captioner.encode(pixels, [None] * len(captioner.config.specs))
    caption = captioner.caption(memory, search)[0][0]
    weights, log_probs = captioner.explain(memory, [caption])[0]
    h, w = captioner.config.specs[captioner.model.attended].shape[1:]
    steps = zip(captioner.words(caption), weights.reshape(-1, h, w).numpy(), log_probs.exp().tolist())
    # an end and a period look nowhere
    shown = [step for step in steps if step[0] != "<end>" and any(letter.isalnum() for letter in step[0])]
    words, maps, probabilities = zip(*shown) if shown else ((), (), ())
    text = captioner.text(caption, capitalize)
    return draw_attention(photo, words, maps, text, probabilities, columns), text


def write_figures(images: list[str], paths: list[Path], draw: Callable[[str], tuple], dpi: int) -> int:
    """A file for each photo, or the pages of one .pdf where all `paths` are the same.

    draw: gives the figure and the caption of a photo. Photos that cannot be read are named and skipped. Returns how
    many there were. Raises UserError where none could be read.
    """
    from matplotlib.backends.backend_pdf import PdfPages

    pages = len(paths) > 1 and len(set(paths)) == 1
    done = 0
    with contextlib.ExitStack() as stack:
        if pages:
            pdf = stack.enter_context(PdfPages(stack.enter_context(atomic_write(paths[0], "wb"))))
        for image, path in zip(images, paths):
            try:
                figure, text = draw(image)
            except ImageError as error:
                print(shown(f"{script_name()}: {error}"), file=sys.stderr)
                continue
            done += 1
            print(shown(f"{image}: {text}" if pages else f"{image}: {text} -> {path}"), flush=True)
            if pages:
                pdf.savefig(figure, dpi=dpi)
            else:
                with atomic_write(path, "wb") as file:
                    figure.savefig(file, format=path.suffix.lower()[1:], dpi=dpi)
        if not done:
            raise UserError(f"none of the {len(images)} photos could be read")
    if pages:
        print(f"{paths[0]}: {done} pages")
    return len(images) - done


def enlarge(weights: np.ndarray, height: int, width: int) -> np.ndarray:
    """Attention weights (h, w) as a smooth map (height, width), not negative, of the same mean as `weights`.

    Bicubic interpolation between the middles of the regions, then a Gaussian, standard deviation BLUR regions.
    """
    h, w = weights.shape
    grid = torch.as_tensor(np.asarray(weights, np.float32))[None, None]
    big = interpolate(grid, (height, width), mode="bicubic", align_corners=False).clamp_(min=0)
    for axis, sigma in ((2, BLUR * height / h), (3, BLUR * width / w)):
        big = _gaussian(big, sigma, axis)
    out = big[0, 0].double().numpy()
    return out * (float(np.mean(weights)) / max(out.mean(), 1e-12))


def _gaussian(image: Tensor, sigma: float, axis: int) -> Tensor:
    """Convolve an image (1, 1, H, W) with a Gaussian along `axis`, its border repeated."""
    radius = min(round(3 * sigma), 10_000)
    if radius < 1:
        return image
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
    border = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
    return conv2d(pad(image, border, mode="replicate"), kernel)


def shaded(photo: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """photo (H, W, 3) uint8 lit where `weights` (h, w) are large: full brightness at their maximum, SHADE at zero."""
    light = enlarge(weights, *photo.shape[:2])
    light = SHADE + (1 - SHADE) * light / max(light.max(), 1e-12)
    return np.clip(photo * light[..., None] + 0.5, 0, 255).astype(np.uint8)


def columns_for(panels: int, aspect: float) -> int:
    """How many panels, `aspect` = width / height each, go beside each other: near 3:2 as a whole, the last row full."""

    def badness(columns: int) -> float:
        rows = math.ceil(panels / columns)
        shape = abs(math.log(columns * aspect / (rows * 1.18) / 1.5))  # 1.18: the word above the panel
        return shape + 0.8 * (rows * columns - panels) / panels

    return min(range(1, panels + 1), key=badness)


def draw_attention(
    photo,
    words: Sequence[str],
    maps: Sequence[np.ndarray],
    caption: str = "",
    probabilities: Sequence[float] | None = None,
    columns: int | None = None,
):
    """A matplotlib Figure: the photo, then once per word, lit where the model looked, the word as the title.

    photo: PIL RGB image; maps: of each word its attention weights (h, w); caption: title of the figure; probabilities:
    of each word, shown beside it; columns: panels in a row (default: whatever makes a pleasant shape).
    """
    from matplotlib.figure import Figure

    photo = photo.copy()
    photo.thumbnail((SHOWN, SHOWN))
    pixels = np.asarray(photo)
    aspect = photo.width / photo.height
    columns = min(columns or columns_for(len(words) + 1, aspect), len(words) + 1)
    rows = math.ceil((len(words) + 1) / columns)
    width, height = (PANEL, PANEL / aspect) if aspect > 1 else (PANEL * aspect, PANEL)
    margin, gap, above, head = 0.18, 0.12, 0.34, 0.55  # inches; `above` a panel for its word, `head` for the caption
    size = (2 * margin + columns * width + (columns - 1) * gap, head + margin + rows * (height + above))
    figure = Figure(figsize=size, facecolor="white")
    for number in range(len(words) + 1):
        row, column = divmod(number, columns)
        left, top = margin + column * (width + gap), head + above + row * (height + above)
        axes = figure.add_axes((left / size[0], 1 - (top + height) / size[1], width / size[0], height / size[1]))
        axes.set_axis_off()
        axes.imshow(pixels if number == 0 else shaded(pixels, maps[number - 1]), interpolation="antialiased")
        if number:
            style = {"transform": axes.transAxes, "va": "bottom", "parse_math": False}
            axes.text(
                0.0, 1.025, words[number - 1], ha="left", fontsize=11, fontweight="bold", color="#1a1a1a", **style
            )
            if probabilities is not None:
                label = f"{probabilities[number - 1]:.2f}"
                axes.text(1.0, 1.03, label, ha="right", fontsize=8, color="#8a8a86", **style)
    if caption:
        font = max(7.0, min(15.0, 125 * (size[0] - 2 * margin) / max(len(caption), 1)))  # a letter is about 0.55 em
        y = 1 - 0.6 * head / size[1]
        figure.text(0.5, y, caption, ha="center", va="center", fontsize=font, color="#1a1a1a", parse_math=False)
    return figure


class AttentionLog:
    """Gathers where the model looked, word by word. grid: (h, w) of the map that the model was trained on."""

    def __init__(self, grid: tuple[int, int]):
        self.grid = grid
        self.ids, self.words, self.weights, self.log_probs = [], [], [], []

    def add(self, image_id, words: list[str], weights, log_probs) -> None:
        """words: T of them, with <end>; weights (T, R) with R = h * w; log_probs (T,): numpy arrays."""
        self.ids.append(str(image_id))
        self.words.append(words)
        self.weights.append(weights)
        self.log_probs.append(log_probs)

    def joined(self, others: list["AttentionLog"], order: Mapping[str, int]) -> "AttentionLog":
        """A log of what this one and `others` have, in the order of the images. order: the place of an image id."""
        whole = AttentionLog(self.grid)
        logs = [self, *others]
        rows = [row for log in logs for row in zip(log.ids, log.words, log.weights, log.log_probs)]
        for row in sorted(rows, key=lambda row: order[row[0]]):
            whole.add(*row)
        return whole

    def word_maps(self) -> dict[str, WordMaps]:
        """Image id -> its maps in 256 steps, as the gallery shows them."""
        maps = {}
        for image_id, words, weights in zip(self.ids, self.words, self.weights):
            steps = weights / np.maximum(weights.max(1, keepdims=True), 1e-12) * 255
            maps[image_id] = WordMaps(words, self.shape(weights), np.round(steps).astype(np.uint8).tobytes())
        return maps

    def shape(self, weights) -> tuple[int, int]:
        """(h, w) of the maps `weights` (T, R): the grid, but for images of another size (--resize), square ones."""
        h, w = self.grid
        if h * w != weights.shape[1]:
            h = math.isqrt(weights.shape[1])
            w = weights.shape[1] // h
        return h, w

    def write(self, path) -> None:
        """A compressed npz of the n images, padded to the longest sentence, T words:

        image_ids (n,) and words (n, T) as text, lengths (n,), attention (n, T, h, w) whose maps sum to one, zero beyond
        the sentence, log_prob (n, T), natural, NaN beyond it.
        """
        n, longest, regions = len(self.ids), max(map(len, self.words)), self.weights[0].shape[1]
        h, w = self.shape(self.weights[0])
        attention = np.zeros((n, longest, regions), np.float32)
        log_prob = np.full((n, longest), np.nan, np.float32)
        words = np.full((n, longest), "", f"<U{max(len(word) for row in self.words for word in row)}")
        for i, row in enumerate(self.words):
            words[i, : len(row)] = row
            attention[i, : len(row)], log_prob[i, : len(row)] = self.weights[i], self.log_probs[i]
        attention = attention.reshape(n, longest, h, w)
        known = {"image_ids": np.array(self.ids), "lengths": np.array([len(row) for row in self.words])}
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, **known, words=words, attention=attention, log_prob=log_prob)
