"""Training losses over the real tokens of a batch (padding is never computed).

Shapes: M real tokens, V vocabulary, N rows, R regions, H hidden.
"""

from torch import Tensor
from torch.nn import functional as F

from captioning.fast.cross_entropy import output_cross_entropy
from captioning.rows import Packing


def token_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats per token: logits (M, V), targets (M,). Smoothing as in Szegedy et al. 2016."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def caption_cross_entropy(
    model, pixels, inputs: list, captions: Tensor, lengths: Tensor, row_image: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, int, Tensor | None, Tensor]:
    """token_cross_entropy of `model(...)`, a CaptionModel of sentences, without its logits; arguments as there.

    Returns the loss, the number of tokens M, attention weights (M, R) or None, the row of each token (M,).
    """
    packing = Packing.of(lengths - 1, captions.device)
    outputs, weights = model.decoder.outputs(model.encode(pixels, inputs), captions, packing, row_image)
    layer, targets = model.decoder.linear, captions[packing.row, packing.time + 1]
    loss = output_cross_entropy(outputs, layer.weight, layer.bias, targets, label_smoothing)
    return loss, len(targets), weights, packing.row


def paragraph_loss(
    logits: Tensor,
    targets: Tensor,
    stops: Tensor,
    last: Tensor,
    weight_sentence: float = 5.0,
    weight_word: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective of Krause et al. 2017 (eq. 2), which sums over sentences and words, divided by the words' number.

    logits (M, V), targets (M,): words; stops (N, 2): logits of going on and stopping after each sentence, last (N,) 1
    where the sentence is its paragraph's last, else 0. Smoothing is for words alone.
    Returns the weighted sum, and its parts: mean nats per word, and per sentence of the decision to stop.
    """
    word = token_cross_entropy(logits, targets, label_smoothing)
    stop = F.cross_entropy(stops.float(), last)
    return weight_word * word + weight_sentence * stop * len(last) / len(targets), word, stop


def attention_regularisation(weights: Tensor, row: Tensor, n_rows: int) -> Tensor:
    """Doubly stochastic attention (Xu et al. 2015, eq. 14): the mean of (1 - sum over time of weights)^2.

    weights (M, R) of the real tokens, row (M,) the row of each. The paper sums over the regions; the mean makes the
    factor independent of their number.
    """
    over_time = weights.new_zeros(n_rows, weights.shape[1]).index_add(0, row, weights)
    return ((1 - over_time) ** 2).mean()


def projection_regularisation(weight: Tensor) -> Tensor:
    """||P||_2 of the projection (H, H) in front of a shared output embedding (Press and Wolf 2017).

    The root of the sum of squares of all its numbers; the paper adds 0.15 times this to the loss.
    """
    return weight.float().norm()
