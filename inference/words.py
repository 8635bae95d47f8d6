"""How sure the model was of every word of its captions, and what else it might have written there.

    shown = word_probabilities(captioner, memory, captions, 3)    # captions: what captioner.caption(memory, ...) gave
    shown[0][0][0]                                                # [("a", 0.695), ("two", 0.085), ("the", 0.069)]

Shapes: M words of all captions, V vocabulary, N words shown.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.text.tokens import PAD, START

Step = list[tuple[str, float]]  # the word written, then the likeliest others in order, each with its probability


@torch.inference_mode()
def word_probabilities(captioner, memory, captions: Sequence[Sequence], shown: int = 1) -> list[list[list[Step]]]:
    """The steps of every caption, <end> included, `shown` words each (fewer where the vocabulary has fewer).

    captioner: a model.Captioner; memory: what its encode() gave for B images; captions: for each of them its
    model.Caption objects. A probability is that of the word given the image and the words before it. The product of a
    caption's probabilities is exp(caption.log_prob). Raises UserError for a model that writes paragraphs.
    """
    if captioner.config.paragraphs is not None:
        raise UserError("--probabilities and --alternatives are for captions; the model writes paragraphs")
    captioner.model.eval()
    flat = [(image, caption.tokens) for image, several in enumerate(captions) for caption in several]
    if not flat:
        return [[] for _ in captions]
    images = torch.tensor([image for image, _ in flat], device=captioner.device)
    logits, targets, _, packing = captioner.model.read_sentences(memory, [tokens for _, tokens in flat], images)
    ids, probabilities = likeliest(logits.float().softmax(1), targets, shown)
    names = captioner.vocabulary.words
    steps: list[list[Step]] = [[] for _ in flat]
    # the tokens of a row come in order of time
    for row, step_ids, step_p in zip(packing.row.tolist(), ids.tolist(), probabilities.tolist()):
        steps[row].append([(names[i], p) for i, p in zip(step_ids, step_p) if p >= 0])
    rows = iter(steps)
    return [[next(rows) for _ in several] for several in captions]


def likeliest(probabilities: Tensor, chosen: Tensor, shown: int) -> tuple[Tensor, Tensor]:
    """ids (M, N) and their probabilities from probabilities (M, V): the `chosen` (M,) first, then the likeliest others.

    <pad> and <start>, which are no words, come with probability -1 where nothing else is left.
    """
    first = probabilities.gather(1, chosen.unsqueeze(1))  # M,1
    others = probabilities.clone()
    others[:, [PAD, START]] = -1.0
    others.scatter_(1, chosen.unsqueeze(1), -1.0)
    best = others.topk(min(shown - 1, others.shape[1]), dim=1)
    return torch.cat([chosen.unsqueeze(1), best.indices], 1), torch.cat([first, best.values], 1)
