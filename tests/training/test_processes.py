"""Training by several processes on gloo against one process that has the batches of all."""

import multiprocessing
from dataclasses import replace

import pytest
import torch
from toy_batches import IMAGES, VOCABULARY, batch_of, part_of
from toy_decoders import config_of, transformer_config

from captioning.devices import partners_may_fail, process, summed
from captioning.errors import UserError
from model import Captioner, build_model
from training.losses import CrossEntropy
from training.settings import TrainSettings
from training.trainer import Progress, Trainer

STEPS = 20
SETTINGS = TrainSettings(
    optimizer="sgd", learning_rate=0.2, weight_decay=0, regularize_attn=1.0, ema=0.9, grad_clip_norm=1
)


def captioner_of(seed: int = 0, decoder: str = "lstm") -> Captioner:
    """One that reads a pooled image, which an LSTM batch-normalises, and attends to a map."""
    torch.manual_seed(seed)
    of_lstm = config_of(image=4, attention="soft")
    config = of_lstm if decoder == "lstm" else transformer_config("map_refined", image=4)
    return Captioner(build_model(config, VOCABULARY), VOCABULARY)


def trained(batches, decoder: str = "lstm", **changes) -> dict:
    """Weights, averages and the loss after a step for each of `batches`; changes: of the settings."""
    captioner, settings = captioner_of(decoder=decoder), replace(SETTINGS, **changes)
    trainer = Trainer(captioner, settings, CrossEntropy(settings))
    captioner.model.train()
    progress = Progress(captioner.device)
    for batch in batches:
        progress.add(trainer.train_step(batch))
    return {**captioner.model.state_dict(), "average": trainer.average[0], "loss": torch.tensor(progress.loss)}


def in_processes(work, folder, count: int = 2) -> list:
    """What `work()` returns in each of `count` processes that gloo joins."""

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=count)
        torch.save(work(), folder / f"{rank}.pt")
        torch.distributed.destroy_process_group()

    children = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def test_a_process_whose_partner_ends_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    def work() -> str:
        if process()[0] == 0:
            return "ends, as after a mistake"
        with pytest.raises(UserError, match="another process has ended") as caught, partners_may_fail():
            while True:  # the first collective, or one soon after
                summed(torch.ones(1))
        return str(caught.value)

    assert "\n" not in in_processes(work, tmp_path)[1]


def assert_same(found: dict, wanted: dict, least: float = 1e-5) -> None:
    """Within `least` of the length of each tensor; statistics of batch norm within a tenth of that."""
    for name, value in wanted.items():
        error = (found[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-12)
        assert error < (least / 10 if "running" in name else least), f"{name}: {error}"


@pytest.mark.parametrize("first", [IMAGES // 2, 1], ids=["halves", "one_image_and_the_rest"])
def test_two_processes_are_one(tmp_path, first):
    """Every weight after twenty steps, the statistics of batch norm and the mean loss over all tokens."""
    before = captioner_of().model.state_dict()
    alone = trained(batch_of(step) for step in range(STEPS))

    def work() -> dict:
        bounds = (0, first) if process()[0] == 0 else (first, IMAGES)
        return trained(part_of(batch_of(step), *bounds) for step in range(STEPS))

    for found in in_processes(work, tmp_path):
        assert_same(found, alone)
    assert (alone["decoder.image.bn.running_mean"] - before["decoder.image.bn.running_mean"]).norm() > 0.1
    assert (alone["decoder.embed.weight"] - before["decoder.embed.weight"]).norm() > 0.1


def test_two_processes_train_one_transformer(tmp_path):
    alone = trained((batch_of(step) for step in range(STEPS)), "transformer")

    def work() -> dict:
        bounds = (0, 3) if process()[0] == 0 else (3, IMAGES)
        return trained((part_of(batch_of(step), *bounds) for step in range(STEPS)), "transformer")

    for found in in_processes(work, tmp_path):
        assert_same(found, alone)
    before = captioner_of(decoder="transformer").model.state_dict()
    assert (alone["decoder.embed.weight"] - before["decoder.embed.weight"]).norm() > 0.1


def test_two_processes_are_one_in_mixed_precision(tmp_path):
    """As well as its seven bits allow: which images share a product decides how their sums are rounded."""
    alone = trained((batch_of(step) for step in range(5)), amp="bf16")

    def work() -> dict:
        bounds = (0, 3) if process()[0] == 0 else (3, IMAGES)
        return trained((part_of(batch_of(step), *bounds) for step in range(5)), amp="bf16")

    first, second = in_processes(work, tmp_path)
    assert_same(second, first)
    assert_same(first, alone, 0.02)


def test_each_process_draws_its_own_random_numbers(tmp_path):
    """Else rows of dropout masks and of sampled captions would be the same in all, and their noise would add up."""

    def work() -> torch.Tensor:
        drawn = []

        class Drawing(CrossEntropy):
            def __call__(self, captioner, batch, step):
                drawn.append(torch.rand(8))
                return super().__call__(captioner, batch, step)

        captioner = captioner_of()
        trainer = Trainer(captioner, SETTINGS, Drawing(SETTINGS))
        for step in range(2):
            trainer.train_step(batch_of(step))
        return torch.cat(drawn)

    alone, (first, second) = work(), in_processes(work, tmp_path)
    assert torch.equal(first, alone)
    assert not torch.isin(second, first).any()


def test_a_process_without_images_takes_part(tmp_path):
    """The second process has nothing but a stand-in at every other step: that weighs nothing, also in batch norm."""
    alone = trained(batch_of(s) if s % 2 == 0 else part_of(batch_of(s), 0, 5) for s in range(STEPS))

    def work() -> dict:
        if process()[0] == 0:
            return trained(part_of(batch_of(step), 0, 5) for step in range(STEPS))
        batches = (part_of(batch_of(step), 5, IMAGES) for step in range(STEPS))
        return trained(replace(batch, counted=step % 2 == 0) for step, batch in enumerate(batches))

    for found in in_processes(work, tmp_path):
        assert_same(found, alone)


@pytest.mark.parametrize("decoder", ["lstm", "transformer"])
def test_processes_accumulate_equally_many_parts(tmp_path, decoder):
    """The second process has one image, as where all others of its batch are broken, so one part in place of four.

    Batch norm exchanges figures in each part: without as many of them a process would wait for ever, or take other
    figures for these. Without batch norm the step is that of the whole batch.
    """

    def work() -> dict:
        bounds = (0, IMAGES - 1) if process()[0] == 0 else (IMAGES - 1, IMAGES)
        return trained((part_of(batch_of(step), *bounds) for step in range(5)), decoder, accumulate=4)

    first, second = in_processes(work, tmp_path)
    assert_same(second, first)
    if decoder == "transformer":
        assert_same(first, trained((batch_of(step) for step in range(5)), decoder))
