"""What training and validation of a hierarchical model need besides those of a sentence: its losses and figures.

Shapes: M real tokens, N rows (sentences), R regions.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from captioning.decoder.sentence import SentenceDecoder
from captioning.decoder.teacher_forcing import mixed_read
from captioning.text.paragraphs import split_sentences
from model import Captioner
from training.losses import paragraph_loss, token_cross_entropy


@dataclass
class ParagraphLosses:
    """total: the objective, divided by the words' number; word: nats per word; stop: nats per sentence."""

    total: Tensor
    word: Tensor
    stop: Tensor
    tokens: int  # M
    weights: Tensor | None  # (M, R) attention weights
    row: Tensor  # (M,) the sentence of each token


def paragraph_losses(
    captioner: Captioner, memory, batch, forcing=None, label_smoothing: float = 0.0
) -> ParagraphLosses:
    """The losses of a batch under teacher forcing; `memory` of its images, `forcing` as in `CaptionModel.forward`."""
    captions, row_image = (x.to(captioner.device, non_blocking=True) for x in (batch.captions, batch.row_image))
    settings, read = captioner.config.paragraphs, SentenceDecoder.read
    if forcing is not None:

        def read(word_decoder, words, tokens, packing):
            return mixed_read(word_decoder, words, tokens[:, :-1], packing, *forcing)

    done = captioner.model.decoder(memory, captions, batch.lengths, row_image, batch.sentences, read)
    factors = (settings.weight_sentence_loss, settings.weight_word_loss)
    total, word, stop = paragraph_loss(done.logits, done.targets, done.stops, done.last, *factors, label_smoothing)
    return ParagraphLosses(total, word, stop, len(done.targets), done.weights, done.row)


def word_decoder_apart(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What is trained of a CaptionModel's decoder, and of it what belongs to a hierarchical model's word decoder."""
    if model.config.paragraphs is None:
        return [p for p in model.decoder.parameters() if p.requires_grad], []
    words = [p for p in model.decoder.word_decoder.parameters() if p.requires_grad]
    apart = {id(p) for p in words}
    return [p for p in model.decoder.parameters() if p.requires_grad and id(p) not in apart], words


def held_out_loss(captioner: Captioner, memory, batch, figures: "ParagraphFigures | None") -> tuple[float, int]:
    """The loss of a batch in nats per token, and the number of tokens; `figures` of a hierarchical model."""
    if figures is not None:
        losses = paragraph_losses(captioner, memory, batch)
        figures.add(losses, len(batch.lengths))
        return losses.total.item(), losses.tokens
    captions, row_image = batch.captions.to(captioner.device), batch.row_image.to(captioner.device)
    logits, targets, _, _ = captioner.model.decode(memory, captions, batch.lengths, row_image)
    return token_cross_entropy(logits, targets).item(), len(targets)


class ParagraphFigures:
    """What validation measures of a hierarchical model besides its loss and scores.

    `validation_word_loss` (nats per word), `validation_stop_loss` (nats per sentence), `validation_sentences` (mean
    number written), `validation_right_number` (share of paragraphs with as many sentences as the first reference).
    """

    def __init__(self, max_sentences: int):
        self.max_sentences = max_sentences
        self.word_sum = self.stop_sum = 0.0
        self.words = self.sentences = self.written = self.right = self.images = 0

    def add(self, losses: ParagraphLosses, sentences: int) -> None:
        self.word_sum += losses.word.item() * losses.tokens
        self.stop_sum += losses.stop.item() * sentences
        self.words += losses.tokens
        self.sentences += sentences

    def compare(self, paragraph, reference: str) -> None:
        """A Paragraph that was written, and the first reference."""
        expected = min(len(split_sentences(reference)), self.max_sentences)
        self.written += len(paragraph.sentences)
        self.right += len(paragraph.sentences) == expected
        self.images += 1

    def results(self) -> dict[str, float]:
        figures = {
            "validation_word_loss": self.word_sum / max(1, self.words),
            "validation_stop_loss": self.stop_sum / max(1, self.sentences),
        }
        if self.images:
            figures["validation_sentences"] = self.written / self.images
            figures["validation_right_number"] = self.right / self.images
        return figures
