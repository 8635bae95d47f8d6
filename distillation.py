"""Knowledge distillation (Hinton et al. 2015): a captioner learns the word probabilities of trained ones, its teachers.

    teachers = Teachers.load(["a/best.model", "b/best.model"], student, loader.features + loader.persist_features)
    loss = teachers.mixed(cross_entropy, logits, batch, weight=0.5, temperature=1.0)

The teachers read the true captions, as the student does, and their probabilities are averaged. Their features come with
the student's batch: those of the same names, and feature files of their own through `extra_features`.

Shapes: B images, N rows, M real tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

import checkpoint
from common import UserError
from data_loader import FeatureSource
from model import Captioner, load_captioner
from model_config import ModelConfig


class Teachers:
    """Trained captioners with the student's vocabulary.

    sources: for each of them, for each of its features, the place in the batch's list of features (`features`, then
    `persist_features`), or None for an encoder that reads the pixels.
    """

    def __init__(self, captioners: list[Captioner], sources: list[list[int | None]]):
        self.captioners, self.sources = captioners, sources

    @classmethod
    def load(
        cls, paths: Sequence[str], student: Captioner, features: Sequence[FeatureSource], weights: str | None = None
    ) -> "Teachers":
        """The models of `paths` on the student's device.

        features: the sources of a batch's `features` and `persist_features`, those of `extra_features` among them.
        weights: local file of an encoder's weights. Raises UserError, naming the file, where a model has another
        vocabulary, reads pixels that the student does not, or features of another shape.
        """
        captioners, sources = [], []
        place = {source.name: index for index, source in reversed(list(enumerate(features)))}
        for path in paths:
            teacher = load_captioner(path, student.device, weights, photos=False)
            if teacher.vocabulary.words != student.vocabulary.words:
                raise UserError(f"--distill {path}: its vocabulary is not the student's; train both with one --vocab")
            if not all(teacher.external):
                check_pixels(path, teacher, student)
            for spec in teacher.config.specs:
                found = tuple(features[place[spec.name]].shape) if spec.external else spec.shape
                if found != spec.shape:
                    shapes = f"of shape {spec.shape}, but the one of --dataset has {found}"
                    raise UserError(f"--distill {path}: it reads {spec.name} {shapes}")
            teacher.model.requires_grad_(False)
            captioners.append(teacher)
            sources.append([place[spec.name] if spec.external else None for spec in teacher.config.specs])
        return cls(captioners, sources)

    @torch.no_grad()
    def probabilities(self, batch, temperature: float = 1.0) -> Tensor:
        """The teachers' mean probabilities of every next word, softened: (M, V), tokens in the order of the student."""
        files = [*batch.features, *batch.persist_features]
        total = None
        for teacher, places in zip(self.captioners, self.sources):
            device = teacher.device
            inputs = [None if place is None else files[place].to(device, non_blocking=True) for place in places]
            pixels = None if batch.pixels is None or None not in places else batch.pixels.to(device, non_blocking=True)
            teacher.model.eval()
            logits, _, _, _ = teacher.model(
                pixels, inputs, batch.captions.to(device), batch.lengths, batch.row_image.to(device)
            )
            soft = (logits.float() / temperature).softmax(1)
            total = soft if total is None else total + soft
        return total / len(self.captioners)

    def mixed(self, loss: Tensor, logits: Tensor, batch, weight: float, temperature: float) -> Tensor:
        """(1 - weight) * loss + weight * the cross-entropy to the teachers' probabilities.

        loss: that of the true words; logits (M, V): the student's. The second part is multiplied by temperature^2, or
        its gradient would shrink with it (Hinton et al. 2015, section 2).
        """
        soft = soft_cross_entropy(logits, self.probabilities(batch, temperature), temperature)
        return (1 - weight) * loss + weight * temperature**2 * soft


def soft_cross_entropy(logits: Tensor, probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over tokens of -sum over words of p * log softmax(logits / temperature): both (M, V)."""
    return F.cross_entropy(logits.float() / temperature, probabilities)


def file_names(config: ModelConfig) -> list[str]:
    """The feature files that a model reads, in the order of a batch's features."""
    return [spec.name for spec in config.specs if spec.external]


def extra_features(paths: Sequence[str], student: ModelConfig) -> list[str]:
    """The feature files that the teachers read and the student does not: to be loaded with its batches, behind its own.

    Raises UserError where a model file cannot be read.
    """
    own, extra = file_names(student), {}
    for path in paths:
        contents = checkpoint.load(path)
        if "config" not in contents:
            raise UserError(f"--distill {path}: this is no model of train.py")
        for name in file_names(ModelConfig.from_dict(contents["config"])):
            if name not in own:
                extra[name] = None
    return list(extra)


def check_pixels(path, teacher: Captioner, student: Captioner) -> None:
    """Raises UserError unless the student's photos are what the teacher's encoder takes."""
    if all(student.external):
        raise UserError(f"--distill {path}: it reads photos, but the student reads feature files only")
    own, theirs = ((c.size, c.transform.interpolation) for c in (student, teacher))
    if own != theirs:
        sizes = f"{theirs[0]} pixels ({theirs[1]}), the student's are {own[0]} ({own[1]})"
        raise UserError(f"--distill {path}: its photos have {sizes}; give --crop_size {theirs[0]}")
