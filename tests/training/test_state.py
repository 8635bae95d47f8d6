"""The state of training in a model file, with something else in any place: it is one line, or training goes on."""

import copy

import pytest
import torch
from odd_json import changed, places
from torch import optim
from toy_decoders import REGION, R, config_of

from captioning import checkpoint
from captioning.datasets.base import ImageItem
from captioning.errors import UserError
from captioning.text.tokens import END, SPECIALS, START
from data_loader import Batch
from model import Captioner, build_model
from training.losses import CrossEntropy
from training.optimizers import make_plateau
from training.settings import TrainSettings
from training.trainer import Progress, Trainer
from vocabulary import Vocabulary

VOCABULARY = Vocabulary([*SPECIALS, "a", "dog"])
ODD = (None, "x", -1, [], torch.zeros(3))


def trainer_of(optimizer: str) -> Trainer:
    torch.manual_seed(0)
    captioner = Captioner(build_model(config_of(image=4, attention="soft"), VOCABULARY), VOCABULARY)
    settings = TrainSettings(optimizer=optimizer, ema=0.9, lr_scheduler="ReduceLROnPlateau")
    captioner.model.train()
    return Trainer(captioner, settings, CrossEntropy(settings), steps=2, num_epochs=2)


def batch() -> Batch:
    random = torch.Generator().manual_seed(1)
    return Batch(
        [ImageItem(n, str(n), None) for n in range(2)],
        inputs=[torch.randn(2, 4, generator=random), torch.randn(2, R, REGION, generator=random)],
        captions=torch.tensor([[START, 4, 5, END]] * 2),
        lengths=torch.tensor([4, 4]),
        row_image=torch.arange(2),
    )


def position_of(trainer: Trainer) -> dict:
    """As RunFolder.save_last() writes it, after a step; of the optimizer's groups and averages the first places."""
    progress = Progress(trainer.captioner.device)
    progress.add(trainer.train_step(batch()))
    trainer.epoch_ended({"validation_loss": 1.0})
    settings = {"--batch_size": 2, "--num_epochs": 2, "--self_critical_from_epoch": -1}
    sums = {**progress.state(), "others": {"stopping": (1.0, 2)}}
    return {"epoch": 1, "batch": 1, "progress": sums, "trainer": trainer.state_dict(), "settings": settings}


def go_on(position: dict, optimizer: str) -> None:
    """What --resume does with it."""
    checkpoint.check_contents({"training": position}, "last.model")
    trainer = trainer_of(optimizer)
    trainer.load_state_dict(position["trainer"])
    progress = Progress(trainer.captioner.device, position.get("batch") and position["progress"] or None)
    progress.add(trainer.train_step(batch()))
    trainer.epoch_ended({"validation_loss": progress.loss})


def read_places(position: dict, optimizer: str) -> list[tuple]:
    """Places that are read; of the optimizer and the average those of two parameters."""
    unread = set(optim.RMSprop([torch.zeros(1)]).defaults) | {"share", *make_plateau().state_dict()}
    unread -= {"lr", "best", "num_bad_epochs", "cooldown_counter", "last_epoch"}
    own = [place for place in places(position) if place and place[-1] not in unread and place[-1] not in range(2, 99)]
    own = [place for place in own if not (place[:3] == ("trainer", "optimizer", "state") and (*place, 0, 0)[3] > 1)]
    return own if optimizer == "rmsprop" else [place for place in own if place[:3] == ("trainer", "optimizer", "state")]


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam", "sgd"])
def test_any_value_in_any_place_is_taken_or_is_one_line(optimizer):
    position = position_of(trainer_of(optimizer))
    go_on(copy.deepcopy(position), optimizer)
    for place in read_places(position, optimizer):
        for value in (*ODD, ...):
            try:
                go_on(changed(position, place, value), optimizer)
            except UserError as error:
                assert "\n" not in str(error)
            except Exception as error:
                pytest.fail(f"{place}, {value}: {type(error).__name__}: {error}")


def test_the_optimizer_and_the_average_of_another_model_are_refused():
    position = position_of(trainer_of("adam"))
    for place in (("optimizer", "state", 0, "exp_avg"), ("average", 0)):
        state = changed(position["trainer"], place, torch.zeros(2, 2))
        with pytest.raises(UserError, match="does not fit|not those of this model"):
            trainer_of("adam").load_state_dict(state)
