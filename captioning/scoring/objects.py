"""Whether captions name what the references agree that a photo shows: its main object."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from captioning.text.objects import named_objects, names

LEAST_SHARE = 0.6  # of the references of a photo: three of five


@dataclass(frozen=True)
class ObjectScore:
    """How often captions name the main object of their photo.

    named: captions with the main object; images: photos whose references agree on one.
    """

    named: int
    images: int

    @property
    def share(self) -> float:
        return self.named / self.images if self.images else 0.0


def main_objects(references: Sequence[Sequence[str]]) -> set[str]:
    """The object that most of a photo's references name, by tokens; several where equally many name them, or none.

    One counts that at least three of five references name.
    """
    counts = Counter(name for tokens in references for name in named_objects(list(tokens)))
    most = max(counts.values(), default=0)
    if most < LEAST_SHARE * len(references) or len(references) < 2:
        return set()
    return {name for name, count in counts.items() if count == most}


def score_objects(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> ObjectScore:
    """How many captions name the main object of their photo, if only by a broader word ("animal" for "cat").

    captions: tokens of each; references: tokens of those of each. Objects are COCO's 80 categories.
    """
    mains = [main_objects(several) for several in references]
    pairs = [(tokens, main) for tokens, main in zip(captions, mains) if main]
    return ObjectScore(sum(any(names(list(tokens), name) for name in main) for tokens, main in pairs), len(pairs))
