"""The model of a run of infer.py, and whether it can do what is asked of it.

captioner = ModelFlags.of(vars(args)).open(path, vocabulary)
"""

from dataclasses import dataclass
from pathlib import Path

from captioning.config import Settings
from captioning.devices import choose_device
from captioning.errors import UserError
from model import Captioner, load_captioner
from vocabulary import Vocabulary


@dataclass(frozen=True)
class ModelFlags(Settings):
    """The flags of infer.py that choose a model and a device, or need an ability that not every model has."""

    weights: str | None = None
    vocab: str | None = None
    device: str | None = None
    cpu: bool = False
    min_confidence: float | None = None
    attention_output: str | None = None
    html_attention: bool = False
    n_best: int = 1
    sample: bool = False
    alternatives: int | None = None
    probabilities: bool = False
    lemma_pos_rules: str | None = None

    def open(self, path: Path, vocabulary: Vocabulary | None) -> Captioner:
        """The captioner of a model file, without the encoders that feature files may stand in for.

        vocabulary: takes the place of the model's own. Raises UserError for what cannot be asked of the model.
        """
        device = choose_device(self.device, self.cpu)
        captioner = load_captioner(path, device, self.weights, photos=False, vocabulary=vocabulary)
        if vocabulary is not None:
            if len(vocabulary) != len(captioner.vocabulary):
                sizes = f"it has {len(vocabulary)} words, the model {len(captioner.vocabulary)}"
                raise UserError(f"--vocab {self.vocab} does not fit the model: {sizes}")
            captioner.vocabulary = vocabulary
        if self.min_confidence is not None and captioner.calibration is None:
            advice = f"./average_models.py {path} --calibrate DATASET --output FILE gives it one"
            raise UserError(f"--min_confidence: the model file {path} has no calibration: {advice}")
        if captioner.config.paragraphs is not None:
            self._check_paragraphs()
        self._check_attention(captioner)
        return captioner

    def _check_paragraphs(self) -> None:
        """Raises UserError for what cannot be asked of a model that writes paragraphs."""
        if self.n_best > 1 and not self.sample:
            advice = "a beam search writes one paragraph of an image; for several --sample"
            raise UserError(f"--n_best {self.n_best}: {advice}")
        for name in ("alternatives", "probabilities", "lemma_pos_rules"):
            if getattr(self, name):
                raise UserError(f"--{name} is for captions of one sentence; the model writes paragraphs")

    def _check_attention(self, captioner: Captioner) -> None:
        """Raises UserError where attention weights are asked of a model that has none, or none that fill a table."""
        attended = captioner.model.attended
        for name in ("attention_output", "html_attention"):
            if getattr(self, name) and attended is None:
                raise UserError(f"--{name}: the model has no attention")
            if getattr(self, name) and captioner.config.specs[attended].varying:
                raise UserError(f"--{name}: the model attends to different numbers of regions, which fill no table")


def model_lines(captioner: Captioner, path: Path, inputs) -> list[str]:
    """What --verbose says of the model in the file `path`. inputs: the Input of each feature that it reads."""
    made = [one.spec.name for one in inputs]
    for number, one in enumerate(inputs):
        if one.from_pixels and one.spec.from_file:
            made[number] += f" made by {one.spec.provenance['extractor']}"
    size = sum(p.numel() for p in captioner.model.decoder.parameters())
    pixels = f"; images {captioner.size}x{captioner.size}" if any(one.from_pixels for one in inputs) else ""
    return [
        f"model {path}: decoder of {size / 1e6:.1f} million weights, {len(captioner.vocabulary)} words",
        f"features {', '.join(made)}{pixels}; device {captioner.device}",
    ]
