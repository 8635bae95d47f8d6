"""What infer.py found out about an image, and how it is shown.

result = Result(42, [("A dog runs.", -7.31)])
result.captions[0]
"""

from dataclasses import dataclass, field

from captioning.datasets.base import ImageItem
from captioning.images.tar_file import plain_path
from captioning.text.cleaning import printable
from inference.lemmas import LemmaRules

NOT_SURE = "(not sure)"  # shown in place of captions that were withheld
Word = tuple[str, float | None]  # None: its probability was not asked for


@dataclass(frozen=True)
class Style:
    """How results name an image, and what they say of it.

    capitalize: captions are sentences, with a capital and a period; rules: turn lemmas into words; probabilities,
    alternatives: show the words of a caption one by one, with their probabilities or so many of the likeliest words at
    each step (None: not asked for); paths: images are named by their paths instead of their ids; scores: json has
    log-probabilities and confidences; min_confidence: captions of less confidence are withheld.
    """

    capitalize: bool = True
    rules: LemmaRules | None = None
    probabilities: bool = False
    alternatives: int | None = None
    paths: bool = False
    scores: bool = False
    min_confidence: float | None = None

    @property
    def wants_words(self) -> bool:
        """Whether the words of captions are shown one by one."""
        return self.probabilities or self.alternatives is not None

    def id_of(self, item: ImageItem) -> int | str:
        """How results name an image: by its id, or by its path (its key where no image_dir tells the path)."""
        return printable(plain_path(item.path or item.key) if self.paths else item.image_id)


@dataclass
class Result:
    """An image's captions with their log-probabilities, best first. path and references serve the gallery.

    words: nothing, or for every caption its steps, <end> included: the word written, then others that might have been.
    shown: word_text() of them, where they were read from a csv file, which has no more.
    mean_log_probs: of every caption the natural log-probability of a token, the mean over the words and <end>; nothing
    where they were read from a file of an older version. confidences: of every caption the chance, 0 to 1, that it is a
    good one; nothing where the model's file has no calibration. unsure: all captions were withheld: the only one is "".
    """

    image_id: int | str
    captions: list[tuple[str, float]]
    path: str | None = None
    references: list[str] = field(default_factory=list)
    words: list[list[list[Word]]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    mean_log_probs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    unsure: bool = False

    def figures(self) -> dict[str, list[float]]:
        """`mean_log_probs` and `confidences` by the names that files have for one of them; those that are there."""
        figures = {"mean_log_prob": self.mean_log_probs, "confidence": self.confidences}
        return {name: values for name, values in figures.items() if values}

    def withhold(self, least: float) -> None:
        """Leave out captions of less confidence than `least`. Where none is left, "" takes the place of the best."""
        kept = [n for n, confidence in enumerate(self.confidences) if confidence >= least]
        if len(kept) == len(self.captions):
            return
        if not kept:
            self.captions[0], self.unsure = ("", self.captions[0][1]), True
            self.words, self.shown = self.words and [[]], self.shown and [""]
        for name in ("captions", "words", "shown", "mean_log_probs", "confidences"):
            values = getattr(self, name)
            setattr(self, name, values and [values[n] for n in kept or [0]])


def word_text(steps: list[list[Word]], capitalize: bool = True) -> str:
    """The words of a caption, <end> left out: `A=0.69/two=0.08 man=0.15`, or `A/two man` without probabilities."""
    texts = []
    for number, step in enumerate(step for step in steps if step[0][0] != "<end>"):
        names = [word for word, _ in step]
        if number == 0 and capitalize:
            names[0] = names[0][:1].upper() + names[0][1:]
        texts.append("/".join(name if p is None else f"{name}={p:.6g}" for name, (_, p) in zip(names, step)))
    return " ".join(texts)


def shown_texts(result: Result) -> list[str]:
    """What is shown of the captions: their words one by one, where those are there, else the captions."""
    if not result.words:
        return result.shown or [text for text, _ in result.captions]
    # a caption that begins with a capital shows its first word so
    return [word_text(steps, text[:1].isupper()) for steps, (text, _) in zip(result.words, result.captions)]
