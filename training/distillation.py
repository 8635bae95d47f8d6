"""Knowledge distillation (Hinton et al. 2015): a captioner learns the word probabilities of trained ones, its teachers.

    teachers = Teachers(["a/best.model", "b/best.model"], student, inputs, dataset)
    loader = get_loader(dataset, student.vocabulary, inputs + teachers.inputs)
    objective = Distillation(settings, teachers)

The teachers read the true captions, as the student does, and their probabilities are averaged. Their features come with
the student's batch: those of the same names, and feature files of their own behind them.

Shapes: B images, N rows, M real tokens, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from captioning.batches.features import FeatureFiles
from captioning.batches.inputs import Input, plan_inputs
from captioning.datasets.base import CaptionDataset
from captioning.errors import UserError
from model import Captioner, load_captioner
from training.losses import Mean, Objective, StepLoss, captions_of, token_cross_entropy
from training.settings import TrainSettings


class Teachers:
    """Trained captioners with the student's vocabulary, on the student's device.

    own: the student's inputs on `dataset`; weights: local file of an encoder's weights. inputs: those of all teachers,
    one teacher after the other, which are to stand in the batches behind the student's. Files that several models read
    are opened, and read, once. Raises UserError, naming the file, where a model has another vocabulary or reads photos
    that the student does not, and where a feature file is missing or has another shape than a teacher reads.
    """

    def __init__(
        self,
        paths: list[str],
        student: Captioner,
        own: list[Input],
        dataset: CaptionDataset,
        weights: str | None = None,
    ):
        self.captioners: list[Captioner] = []
        self.inputs: list[Input] = []
        self.places: list[slice] = []  # of the inputs of each in Batch.inputs
        for path in paths:
            teacher = load_captioner(path, student.device, weights, photos=False)
            if teacher.vocabulary.words != student.vocabulary.words:
                raise UserError(f"--distill {path}: its vocabulary is not the student's; train both with one --vocab")
            if not all(spec.from_file for spec in teacher.config.specs):
                check_pixels(path, teacher, student, own)
            if teacher.config.paragraphs is not None:
                raise UserError(f"--distill {path}: it writes paragraphs; a teacher writes sentences")
            teacher.model.requires_grad_(False)
            self.captioners.append(teacher)
            files = {x.spec.name: x.source for x in own + self.inputs if isinstance(x.source, FeatureFiles)}
            begin = len(own) + len(self.inputs)
            self.inputs += plan_inputs(teacher.config, dataset, sources=files)
            self.places.append(slice(begin, len(own) + len(self.inputs)))

    @torch.no_grad()
    def probabilities(self, batch, temperature: float = 1.0) -> Tensor:
        """The teachers' mean probabilities of every next word, softened: (M, V), tokens in the order of the student."""
        total = None
        for teacher, places in zip(self.captioners, self.places):
            device = teacher.device
            read = (batch.pixels, *batch.inputs[places])
            pixels, *inputs = (None if x is None else x.to(device, non_blocking=True) for x in read)
            teacher.model.eval()
            logits, *_ = teacher.model(pixels, inputs, *captions_of(batch, device))
            soft = (logits.float() / temperature).softmax(1)
            total = soft if total is None else total + soft
        return total / len(self.captioners)


class Distillation(Objective):
    """The cross-entropy of the true words, and that to the teachers' probabilities, whose share is `distill_weight`.

    The second is multiplied by `distill_temperature`^2, or its gradient would shrink with the temperature (Hinton et
    al. 2015, section 2). The first alone is reported.
    """

    def __init__(self, settings: TrainSettings, teachers: Teachers):
        super().__init__(settings)
        self.teachers = teachers

    def __call__(self, captioner: Captioner, batch, step: int) -> StepLoss:
        s = self.settings
        logits, targets, weights, row = self.teacher_forced(captioner, batch, step)
        loss = token_cross_entropy(logits, targets, s.label_smoothing)
        probabilities = self.teachers.probabilities(batch, s.distill_temperature)
        soft = soft_cross_entropy(logits, probabilities, s.distill_temperature)
        total = (1 - s.distill_weight) * loss + s.distill_weight * s.distill_temperature**2 * soft
        penalties = self.penalties(captioner, weights, row, len(batch.lengths))
        return StepLoss([Mean(total, len(targets)), *penalties], loss.detach(), len(targets))


def soft_cross_entropy(logits: Tensor, probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over tokens of -sum over words of p * log softmax(logits / temperature): both (M, V)."""
    return F.cross_entropy(logits.float() / temperature, probabilities)


def check_pixels(path, teacher: Captioner, student: Captioner, own: list[Input]) -> None:
    """Raises UserError unless the student's photos are what the teacher's encoder takes."""
    if not any(one.from_pixels for one in own):
        raise UserError(f"--distill {path}: it reads photos, but the student reads feature files only")
    own, theirs = ((c.size, c.transform.interpolation) for c in (student, teacher))
    if own != theirs:
        sizes = f"{theirs[0]} pixels ({theirs[1]}), the student's are {own[0]} ({own[1]})"
        raise UserError(f"--distill {path}: its photos have {sizes}; give --crop_size {theirs[0]}")
