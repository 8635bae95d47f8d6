"""Knowledge distillation (Hinton et al. 2015): a captioner learns the word probabilities of trained ones, its teachers.

    teachers = Teachers(["a/best.model", "b/best.model"], student)
    loader = get_loader(..., persist_features=[*own, *teachers.extra_features])
    teachers.bind(loader)
    loss = teachers.mixed(cross_entropy, logits, batch, weight=0.5, temperature=1.0)

The teachers read the true captions, as the student does, and their probabilities are averaged. Their features come with
the student's batch: those of the same names, and feature files of their own behind them.

Shapes: B images, N rows, M real tokens, V vocabulary.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.batches.inputs import check_feature_files
from captioning.config import ModelConfig
from captioning.errors import UserError
from model import Captioner, load_captioner


class Teachers:
    """Trained captioners with the student's vocabulary, on the student's device.

    weights: local file of an encoder's weights. extra_features: the feature files that they read and the student does
    not. Raises UserError, naming the file, where a model has another vocabulary or reads photos that the student does
    not.
    """

    def __init__(self, paths: Sequence[str], student: Captioner, weights: str | None = None):
        self.captioners: list[Captioner] = []
        self.sources: list[list[int | None]] = []  # of each, for each feature, its place in the batch; None: the pixels
        own, extra = file_names(student.config), {}
        for path in paths:
            teacher = load_captioner(path, student.device, weights, photos=False)
            if teacher.vocabulary.words != student.vocabulary.words:
                raise UserError(f"--distill {path}: its vocabulary is not the student's; train both with one --vocab")
            if not all(teacher.external):
                check_pixels(path, teacher, student)
            if teacher.config.paragraphs is not None:
                raise UserError(f"--distill {path}: it writes paragraphs; a teacher writes sentences")
            teacher.model.requires_grad_(False)
            self.captioners.append(teacher)
            extra |= dict.fromkeys(name for name in file_names(teacher.config) if name not in own)
        self.extra_features = list(extra)

    def bind(self, loader) -> None:
        """Learn where the features stand in the batches of `loader` (data_loader.Loader), and whether they fit.

        Raises UserError, naming the file, where one has another shape than a teacher reads.
        """
        opened = [*loader.features, *loader.persist_features]
        place = {source.name: index for index, source in reversed(list(enumerate(opened)))}
        for teacher in self.captioners:
            config = teacher.config
            lists = [
                [opened[place[s.name]] for s in specs if s.from_file]
                for specs in (config.features, config.persist_features)
            ]
            check_feature_files(config, SimpleNamespace(features=lists[0], persist_features=lists[1]))
            self.sources.append([place[spec.name] if spec.from_file else None for spec in config.specs])

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
    return [spec.name for spec in config.specs if spec.from_file]


def check_pixels(path, teacher: Captioner, student: Captioner) -> None:
    """Raises UserError unless the student's photos are what the teacher's encoder takes."""
    if all(student.external):
        raise UserError(f"--distill {path}: it reads photos, but the student reads feature files only")
    own, theirs = ((c.size, c.transform.interpolation) for c in (student, teacher))
    if own != theirs:
        sizes = f"{theirs[0]} pixels ({theirs[1]}), the student's are {own[0]} ({own[1]})"
        raise UserError(f"--distill {path}: its photos have {sizes}; give --crop_size {theirs[0]}")
