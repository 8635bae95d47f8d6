"""The self-critical gradient against the exact one: all sentences of a language of three words, enumerated."""

import itertools

import pytest
import torch
from toy_decoders import config_of

from captioning.datasets.base import ImageItem
from captioning.text.tokens import END, PAD, START
from data_loader import Batch
from model import Captioner, build_model
from training import self_critical
from training.cider_reward import CiderReward
from training.losses import token_cross_entropy
from training.self_critical import SelfCritical
from training.settings import TrainSettings
from vocabulary import build_vocabulary

WORDS, LONGEST = (4, 5, 6), 2
# all that can be drawn: sentences with their <end>, and those of the greatest length, which are cut off there
SENTENCES = [[*words, END] for n in range(LONGEST) for words in itertools.product(WORDS, repeat=n)]
SENTENCES += [list(words) for words in itertools.product(WORDS, repeat=LONGEST)]
REFERENCES = {(0, 1): ["red ball", "ball", "a red"], (0, 2): ["a ball", "red"]}


@pytest.fixture
def toy(monkeypatch):
    """A captioner in float64 that writes sentences of two words at most, a batch of one image, and its reward."""
    monkeypatch.setattr(self_critical, "MAX_LENGTH", LONGEST)
    vocabulary = build_vocabulary([text for texts in REFERENCES.values() for text in texts], 1)
    torch.manual_seed(3)
    captioner = Captioner(build_model(config_of(image=4), vocabulary).double(), vocabulary)
    with torch.no_grad():
        for parameter in captioner.model.parameters():
            parameter.normal_(0, 0.7)
        captioner.model.decoder.linear.bias[[PAD, START, 3]] += 1.0  # likely, were they allowed
    prepare = captioner.model.decoder.prepare  # `encode` would make float32 of the features
    monkeypatch.setattr(captioner.model, "encode", lambda pixels, inputs: prepare(inputs[0].double(), None, None))
    batch = Batch(
        [ImageItem(1, "1", None, REFERENCES[0, 1])],
        inputs=[torch.randn(1, 4)],
        captions=torch.tensor([[START, 4, 5, END], [START, 6, END, PAD]]),
        lengths=torch.tensor([4, 3]),
        row_image=torch.tensor([0, 0]),
    )
    return captioner, batch, CiderReward(REFERENCES, vocabulary)


def probabilities(captioner, batch, temperature: float) -> torch.Tensor:
    """Of each of SENTENCES, a word at a time by the decoder's plain step, as a function of its weights."""
    model = captioner.model.eval()
    memory = model.encode(None, batch.inputs)
    found = []
    for sentence in SENTENCES:
        state, last, likelihood = model.decoder.start(memory), START, 1.0
        for word in sentence:
            logits, state, _ = model.decoder.step(torch.tensor([last]), state, memory)
            allowed = (logits[0, [END, *WORDS]] / temperature).softmax(0)
            likelihood, last = likelihood * allowed[[END, *WORDS].index(word)], word
        found.append(likelihood)
    return torch.stack(found)


def gradient(captioner, value) -> torch.Tensor:
    parameters = list(captioner.model.parameters())
    parts = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, parts)])


def drawn(*sentences):
    """In place of `sampled_captions`: these sentences, as it gives them."""
    rows = [[START, *s, *[PAD] * (LONGEST - len(s))] for s in sentences]
    captions = torch.tensor(rows)
    return lambda *_: (captions, (captions != PAD).sum(1), torch.zeros(len(rows), dtype=torch.int64))


@pytest.mark.parametrize("loss", ["sc", "mixed"])
@pytest.mark.parametrize("samples", [1, 2], ids=["greedy_baseline", "mean_of_others"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_expected_gradient_is_that_of_the_expected_reward(toy, monkeypatch, loss, samples, temperature):
    captioner, batch, reward = toy
    gamma = 0.6 if loss == "mixed" else 1.0
    settings = TrainSettings(
        self_critical_loss=loss, self_critical_samples=samples, self_critical_temperature=temperature, gamma_ml_rl=gamma
    )
    objective = SelfCritical(settings, reward)
    p = probabilities(captioner, batch, temperature)
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    rewards = torch.tensor([reward.score_ids((0, 1), sentence) for sentence in SENTENCES], dtype=torch.float64)
    wanted = -gamma * (p @ rewards)
    if loss == "mixed":  # per caption, as the reward is
        logits, targets, *_ = captioner.model(None, batch.inputs, batch.captions, batch.lengths, batch.row_image)
        wanted = wanted + (1 - gamma) * token_cross_entropy(logits, targets) * len(targets) / len(batch.lengths)
        monkeypatch.setattr(captioner.model, "train", lambda mode=True: captioner.model)  # batch norm as in the other
    expected = 0.0
    for several in itertools.product(range(len(SENTENCES)), repeat=samples):
        monkeypatch.setattr(self_critical, "sampled_captions", drawn(*(SENTENCES[i] for i in several)))
        expected = expected + p.detach()[list(several)].prod() * objective(captioner, batch, 0).total
    exact, found = gradient(captioner, wanted), gradient(captioner, expected)
    assert exact.norm() > 0.01
    assert (found - exact).norm() < 1e-6 * exact.norm()
