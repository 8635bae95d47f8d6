"""Learning rates against the papers' formulas, rates by the depth of a block, and clipping by the norm."""

import pytest
import torch
from test_processes import captioner_of
from torch import nn
from toy_batches import batch_of

from captioning.config import ModelConfig
from captioning.encoder.factory import build_encoder
from captioning.encoder.provenance import internal_spec
from captioning.text.tokens import SPECIALS
from model import build_model
from training.flags import parse_args
from training.losses import CrossEntropy
from training.optimizers import ParameterGroups, learning_rate, make_optimizer, self_critical_settings
from training.settings import TrainSettings
from training.trainer import Trainer
from vocabulary import Vocabulary


def test_inverse_sqrt_is_the_schedule_of_the_transformers_paper():
    """d^-0.5 min(step^-0.5, step warmup^-1.5), steps counted from 1 (Vaswani et al. 2017, eq. 3)."""
    settings = TrainSettings(learning_rate=512**-0.5 * 4000**-0.5, lr_scheduler="inverse_sqrt", warmup_steps=4000)
    for step in (1, 2, 1000, 3999, 4000, 4001, 10_000, 10**6):
        expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert learning_rate(settings, step - 1, 100, 5) == pytest.approx(expected, rel=1e-12)
    plain = TrainSettings(learning_rate=1.0, lr_scheduler="inverse_sqrt")
    assert [learning_rate(plain, step, 100, 5) for step in (0, 3, 99)] == [1.0, 0.5, 0.1]


def test_what_suits_a_transformer_is_left_when_training_turns_to_rewards():
    typed = {"warmup_steps": 7}
    settings = TrainSettings(warmup_steps=7).for_decoder("transformer", typed)
    assert (settings.optimizer, settings.learning_rate, settings.lr_scheduler) == ("adamw", 5e-4, "inverse_sqrt")
    assert settings.warmup_steps == 7 and settings.for_any_decoder() == TrainSettings(warmup_steps=7)
    rewarded = self_critical_settings(settings, typed)
    assert (rewarded.optimizer, rewarded.lr_scheduler, rewarded.warmup_steps) == ("adam", None, 7)
    assert TrainSettings().for_decoder("lstm", {}) == TrainSettings()
    trainer = Trainer(captioner_of(), settings, CrossEntropy(settings))
    trainer.restart(CrossEntropy(settings), 2, 1)
    assert (trainer.settings.lr_scheduler, trainer.settings.learning_rate) == (None, 5e-5)


def test_blocks_nearer_to_the_pixels_learn_more_slowly():
    extractor = build_encoder("efficientnet_lite0-conv", pretrained=False)
    config = ModelConfig([internal_spec("efficientnet_lite0-conv", extractor)], finetune_encoder=3, hidden_size=8)
    model = build_model(config, Vocabulary([*SPECIALS, "a"]), extractors={"efficientnet_lite0-conv": extractor})
    settings = TrainSettings(learning_rate=1e-3, encoder_learning_rate=1e-4, encoder_lr_decay=0.5)
    optimizer = make_optimizer(settings, ParameterGroups.of(model))
    assert [group["share"] for group in optimizer.param_groups] == pytest.approx([1, 0.1, 0.05, 0.025])
    blocks = extractor.blocks[-3:][::-1]
    for block, group in zip(blocks, optimizer.param_groups[1:]):
        own = set(extractor.network.get_submodule(block).parameters())
        assert own <= set(group["params"])
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {p for p in model.parameters() if p.requires_grad}
    assert len(make_optimizer(TrainSettings(), ParameterGroups.of(model)).param_groups) == 2


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "timm:test_vit", "timm:test_convnext"])
def test_depths_count_the_blocks_behind(name):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    extractor = build_encoder(name, pretrained=False)
    depths = extractor.depths()
    assert set(depths) == set(extractor.network.parameters())
    for number, block in enumerate(reversed(extractor.blocks)):
        assert {depths[p] for p in extractor.network.get_submodule(block).parameters()} == {number}
    assert list(depths.values()) == sorted(depths.values(), reverse=True)


def test_the_norm_of_the_gradient_is_clipped():
    """The step of plain SGD is the gradient: its norm over all weights is the limit, its direction stays."""
    moved = []
    for limit in (None, 0.01, 1e6):
        settings = TrainSettings(optimizer="sgd", learning_rate=1.0, weight_decay=0, grad_clip_norm=limit)
        captioner = captioner_of()
        trainer = Trainer(captioner, settings, CrossEntropy(settings))
        before = nn.utils.parameters_to_vector(trainer.parameters).detach().clone()
        captioner.model.train()
        trainer.train_step(batch_of(0))
        moved.append(nn.utils.parameters_to_vector(trainer.parameters).detach() - before)
    plain, clipped, loose = moved
    assert clipped.norm() == pytest.approx(0.01, rel=1e-4) and plain.norm() > 0.1
    torch.testing.assert_close(clipped / clipped.norm(), plain / plain.norm(), rtol=0, atol=1e-4)
    assert torch.equal(plain, loose)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--grad_clip", "1", "--grad_clip_norm", "1"], "exclude each other"),
        (["--grad_clip_norm", "0"], "--grad_clip_norm 0.0: above 0"),
        (["--encoder_learning_rate", "0", "--finetune_encoder"], "--encoder_learning_rate 0.0: above 0"),
        (["--encoder_lr_decay", "0.5"], "--encoder_lr_decay needs an encoder that is trained"),
        (["--encoder_lr_decay", "1.5", "--finetune_encoder"], "--encoder_lr_decay 1.5: above 0 and at most 1"),
        (["--activation_checkpointing"], "--activation_checkpointing needs an encoder that is trained"),
        (
            ["--activation_checkpointing", "--finetune_encoder", "--compile"],
            "--compile and --activation_checkpointing exclude each other",
        ),
    ],
)
def test_flags_that_make_no_sense(flags, told, capsys):
    with pytest.raises(SystemExit):
        parse_args("", ["--dataset", "toy:train", *flags])
    assert told in capsys.readouterr().err
