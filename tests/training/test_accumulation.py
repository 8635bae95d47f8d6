"""Gradient accumulation: the step of a batch that is computed in parts is the step of the whole batch."""

from dataclasses import replace

import pytest
import torch
from toy_batches import CAPTIONS, IMAGES, VOCABULARY, batch_of
from toy_decoders import config_of

from captioning.batches.pixels import StoryPixels
from captioning.datasets.base import image_key
from captioning.errors import UserError
from captioning.text.tokens import END, START
from model import Captioner, build_model
from training import self_critical
from training.accumulation import split
from training.cider_reward import CiderReward
from training.losses import CrossEntropy
from training.self_critical import SelfCritical
from training.settings import TrainSettings
from training.trainer import Trainer

SETTINGS = {"optimizer": "sgd", "learning_rate": 0.2, "weight_decay": 0, "self_critical_learning_rate": 0.2}
MODELS = {
    "lstm": {"image": 4, "rnn_hidden_init": "from_features"},  # a pooled image read like a word is batch-normalised
    "soft": {"attention": "soft"},
    "spatial, shared": {"attention": "spatial", "share_embedding_weights": True, "projection": True},
}


def batch_for(config, step: int = 0):
    """A random batch with the features that a model reads."""
    batch = batch_of(step)
    return replace(batch, inputs=batch.inputs[:1] if config.attention is None else batch.inputs[1:])


def stepped(model: str, accumulate: int, make=CrossEntropy, **settings) -> tuple[dict, object]:
    """The weights after a step, and its StepLoss."""
    torch.manual_seed(0)
    captioner = Captioner(build_model(config_of(**MODELS[model]), VOCABULARY), VOCABULARY)
    chosen = TrainSettings(**SETTINGS, **settings, accumulate=accumulate)
    trainer = Trainer(captioner, chosen, make(chosen))
    captioner.model.train()
    loss = trainer.train_step(batch_for(captioner.config))
    return captioner.model.state_dict(), loss


def assert_same(found: tuple[dict, object], wanted: tuple[dict, object]) -> None:
    for name, value in wanted[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-6, atol=1e-6, msg=name)
    for name in ("reported", "reward", "total"):
        values = (torch.as_tensor(getattr(loss, name)).detach() for _, loss in (found, wanted))
        # what a mixed loss reports is a mean over drawn and over true words, here weighted by the drawn ones
        torch.testing.assert_close(*values, rtol=1e-2 if name == "reported" else 1e-6, atol=0)
    assert (found[1].tokens, found[1].captions) == (wanted[1].tokens, wanted[1].captions)


@pytest.mark.parametrize("parts", [3, 4, 99])
@pytest.mark.parametrize("model", MODELS)
def test_cross_entropy_in_parts_is_that_of_the_batch(model, parts):
    settings = {"regularize_attn": 1.0, "label_smoothing": 0.1}
    torch.manual_seed(0)
    before = build_model(config_of(**MODELS[model]), VOCABULARY).state_dict()
    wanted = stepped(model, 1, **settings)
    assert_same(stepped(model, parts, **settings), wanted)
    assert (wanted[0]["decoder.linear.weight"] - before["decoder.linear.weight"]).abs().max() > 1e-3


def reward() -> CiderReward:
    batch = batch_of(0)
    texts = [" ".join(VOCABULARY.tokens(row[1 : n - 1].tolist())) for row, n in zip(batch.captions, batch.lengths)]
    own = {image_key(item): texts[n * CAPTIONS : (n + 1) * CAPTIONS] for n, item in enumerate(batch.items)}
    return CiderReward(own, VOCABULARY)


@pytest.mark.parametrize("loss", ["sc", "mixed"])
@pytest.mark.parametrize("model", ["lstm", "soft"])
def test_self_critical_training_in_parts_is_that_of_the_batch(monkeypatch, model, loss):
    """Given what is drawn: each image's captions are made of its features here."""

    def drawn(model, memory, settings):
        n = settings.self_critical_samples
        wide = memory.initial.sum(1).abs().mul(1000).long()
        words = torch.stack([(wide + k) % 9 + 4 for k in range(n)], 1).view(-1, 1)
        rows = torch.cat([torch.full_like(words, START), words, words + (words < 12).long(), words * 0 + END], 1)
        return rows, torch.full((len(rows),), 4), torch.arange(len(memory)).repeat_interleave(n)

    monkeypatch.setattr(self_critical, "sampled_captions", drawn)
    settings = {"self_critical_samples": 3, "self_critical_loss": loss, "gamma_ml_rl": 0.6}
    wanted = stepped(model, 1, lambda chosen: SelfCritical(chosen, reward()), **settings)
    assert float(wanted[1].reward) > 0.01
    assert_same(stepped(model, 4, lambda chosen: SelfCritical(chosen, reward()), **settings), wanted)


def test_parts_of_a_batch():
    batch = batch_of(0)
    photos = StoryPixels(torch.arange(12).view(12, 1, 1, 1), torch.tensor([0, 0, 0, 1, 2, 3, 3, 4, 4, 5, 6, 7]))
    parts = split(replace(batch, pixels=photos), 3)
    assert [len(part.items) for part in parts] == [3, 2, 3] and sum(parts[1].lengths) == sum(batch.lengths[6:10])
    assert parts[1].row_image.tolist() == [0, 0, 1, 1] and torch.equal(parts[2].inputs[0], batch.inputs[0][5:])
    assert parts[1].pixels.photos.flatten().tolist() == [5, 6, 7, 8] and parts[1].pixels.owner.tolist() == [0, 0, 1, 1]
    assert len(split(batch, 50)) == IMAGES
    with pytest.raises(UserError, match="not for paragraphs"):
        split(replace(batch, sentences=torch.ones(3)), 2)
