"""Figures of where a captioner looked for each of its words, in the manner of Xu et al. 2015 (figures 2, 3 and 5).

    figure = draw_attention(photo, ["a", "dog"], maps, caption="A dog.", probabilities=[0.7, 0.3])
    figure.savefig("dog.png", dpi=150)

Shapes: T words, (h, w) grid of attention weights, (H, W) photo in pixels.
"""

import math
from collections.abc import Sequence

import numpy as np

from captioning.files import atomic_write

SHADE = 0.18  # brightness where the model did not look at all
SHOWN = 420  # pixels of the photo's longer side in a panel
PANEL = 2.35  # inches of a panel's longer side


def enlarge(weights: np.ndarray, height: int, width: int, blur: float = 0.25) -> np.ndarray:
    """Attention weights (h, w) as a smooth map (height, width), not negative, of the same mean as `weights`.

    Bicubic interpolation between the middles of the regions, then a Gaussian, standard deviation `blur` regions.
    """
    import torch
    from torch.nn.functional import interpolate

    h, w = weights.shape
    grid = torch.as_tensor(np.asarray(weights, np.float32))[None, None]
    big = interpolate(grid, (height, width), mode="bicubic", align_corners=False).clamp_(min=0)
    for axis, sigma in ((2, blur * height / h), (3, blur * width / w)):
        big = _gaussian(big, sigma, axis)
    out = big[0, 0].double().numpy()
    return out * (float(np.mean(weights)) / max(out.mean(), 1e-12))


def _gaussian(image, sigma: float, axis: int):
    """Convolve an image tensor (1, 1, H, W) with a Gaussian along `axis`, its border repeated."""
    import torch
    from torch.nn.functional import conv2d, pad

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
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
    FigureCanvasAgg(figure)
    for number in range(len(words) + 1):
        row, column = divmod(number, columns)
        left, top = margin + column * (width + gap), head + above + row * (height + above)
        axes = figure.add_axes((left / size[0], 1 - (top + height) / size[1], width / size[0], height / size[1]))
        axes.set_axis_off()
        axes.imshow(pixels if number == 0 else shaded(pixels, maps[number - 1]), interpolation="antialiased")
        if number:
            _label(axes, words[number - 1], None if probabilities is None else probabilities[number - 1])
    if caption:
        font = max(7.0, min(15.0, 125 * (size[0] - 2 * margin) / max(len(caption), 1)))  # a letter is about 0.55 em
        y = 1 - 0.6 * head / size[1]
        figure.text(0.5, y, caption, ha="center", va="center", fontsize=font, color="#1a1a1a", parse_math=False)
    return figure


def _label(axes, word: str, probability: float | None) -> None:
    """The word above its panel on the left, how probable it was in grey on the right."""
    style = {"transform": axes.transAxes, "va": "bottom", "parse_math": False}
    axes.text(0.0, 1.025, word, ha="left", fontsize=11, fontweight="bold", color="#1a1a1a", **style)
    if probability is not None:
        axes.text(1.0, 1.03, f"{probability:.2f}", ha="right", fontsize=8, color="#8a8a86", **style)


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

    def write(self, path) -> None:
        """A compressed npz of the n images, padded to the longest sentence, T words:

        image_ids (n,) and words (n, T) as text, lengths (n,), attention (n, T, h, w) whose maps sum to one, zero beyond
        the sentence, log_prob (n, T), natural, NaN beyond it.
        """
        import numpy as np

        n, longest, regions = len(self.ids), max(map(len, self.words)), self.weights[0].shape[1]
        h, w = self.grid
        if h * w != regions:  # images of another size (--resize), square ones
            h = math.isqrt(regions)
            w = regions // h
        attention = np.zeros((n, longest, regions), np.float32)
        log_prob = np.full((n, longest), np.nan, np.float32)
        words = np.full((n, longest), "", f"<U{max(len(word) for row in self.words for word in row)}")
        for i, row in enumerate(self.words):
            words[i, : len(row)] = row
            attention[i, : len(row)], log_prob[i, : len(row)] = self.weights[i], self.log_probs[i]
        with atomic_write(path, "wb") as file:
            np.savez_compressed(
                file,
                image_ids=np.array(self.ids),
                words=words,
                lengths=np.array([len(row) for row in self.words]),
                attention=attention.reshape(n, longest, h, w),
                log_prob=log_prob,
            )
