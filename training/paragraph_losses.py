"""The objective of a hierarchical model: the words of its sentences, and the decision to stop after each.

Shapes: M real tokens, N rows (sentences), R regions, V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from captioning.config import ParagraphConfig
from captioning.decoder.sentence import SentenceDecoder
from captioning.decoder.teacher_forcing import mixed_read
from captioning.devices import autocast
from model import Captioner, batch_inputs
from training.losses import Mean, Objective, StepLoss, captions_of, token_cross_entropy


def paragraph_loss(
    logits: Tensor, targets: Tensor, stops: Tensor, last: Tensor, config: ParagraphConfig, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective of Krause et al. 2017 (eq. 2), which sums over sentences and words, divided by the words' number.

    logits (M, V), targets (M,): words; stops (N, 2): logits of going on and stopping after each sentence, last (N,) 1
    where the sentence is its paragraph's last, else 0. Smoothing is for words alone.
    Returns the weighted sum, and its parts: mean nats per word, and per sentence of the decision to stop.
    """
    word = token_cross_entropy(logits, targets, label_smoothing)
    stop = F.cross_entropy(stops.float(), last)
    total = config.weight_word_loss * word + config.weight_sentence_loss * stop * len(last) / len(targets)
    return total, word, stop


@dataclass
class ParagraphLosses:
    """The losses of a batch of paragraphs.

    total: the objective, divided by the number of words; word: nats per word; stop: nats per sentence.
    """

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
    captions, lengths, row_image = captions_of(batch, captioner.device)
    read = SentenceDecoder.read
    if forcing is not None:

        def read(word_decoder, words, tokens, packing):
            return mixed_read(word_decoder, words, tokens[:, :-1], packing, forcing)

    done = captioner.model.decoder(memory, captions, lengths, row_image, batch.sentences, read)
    of_words, of_stops, config = (done.logits, done.targets), (done.stops, done.last), captioner.config.paragraphs
    total, word, stop = paragraph_loss(*of_words, *of_stops, config, label_smoothing)
    return ParagraphLosses(total, word, stop, len(done.targets), done.weights, done.row)


class ParagraphObjective(Objective):
    """`paragraph_loss` of the batch's paragraphs."""

    def __call__(self, captioner: Captioner, batch, step: int) -> StepLoss:
        s = self.settings
        with autocast(captioner.device, s.amp):
            memory = captioner.model.encode(*batch_inputs(captioner, batch))
            losses = paragraph_losses(captioner, memory, batch, self.forcing(step), s.label_smoothing)
        penalties = self.penalties(captioner, losses.weights, losses.row, len(batch.lengths))
        # as DeepCaption calls them
        others = {
            "loss_word": Mean(losses.word.detach(), losses.tokens),
            "loss_sentence": Mean(losses.stop.detach(), len(batch.lengths)),
        }
        parts = [Mean(losses.total, losses.tokens), *penalties]
        return StepLoss(parts, losses.total.detach(), losses.tokens, others=others)
