"""The loggers of train.py: CSV files against what was logged, others against modules that stand in for packages."""

import csv
import math
import sys

import pytest

from captioning.errors import UserError
from training.loggers import CsvTable, open_loggers, require_packages
from training.settings import RunSettings


def table(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_which_loggers_are_asked_for():
    assert RunSettings().loggers == []
    assert RunSettings(tensorboard=True).loggers == RunSettings(logger="tensorboard").loggers == ["tensorboard"]
    assert RunSettings(tensorboard=True, logger="csv").loggers == ["csv", "tensorboard"]


def test_csv_rows_grow_and_columns_may_come_later(tmp_path):
    (logger,) = open_loggers(["csv"], tmp_path, False)
    assert not list(tmp_path.iterdir())  # an older run's log stays until there is something to write
    logger.scalars("step", 10, {"training_loss": 3.5, "learning_rate": 1e-3})
    first = (tmp_path / "log_step.csv").stat().st_ino
    logger.scalars("step", 20, {"training_loss": math.nan, "learning_rate": 1e-3})
    assert (tmp_path / "log_step.csv").stat().st_ino == first  # a row was added, nothing written anew
    logger.scalars("step", 30, {"training_loss": 3.0, "training_reward": 0.25})
    logger.scalars("epoch", 1, {"validation_cider": 0.5})
    logger.close()
    assert table(tmp_path / "log_step.csv") == [
        {"step": "10", "training_loss": "3.5", "learning_rate": "0.001", "training_reward": ""},
        {"step": "20", "training_loss": "nan", "learning_rate": "0.001", "training_reward": ""},
        {"step": "30", "training_loss": "3.0", "learning_rate": "", "training_reward": "0.25"},
    ]
    assert table(tmp_path / "log_epoch.csv") == [{"epoch": "1", "validation_cider": "0.5"}]


def test_csv_of_a_resumed_run(tmp_path):
    """Steps that come again take the place of the earlier ones; a line that was cut off goes; a new run begins anew."""
    path = tmp_path / "log_step.csv"
    path.write_text("step,a,b\n10,1.0,2.0\n20,1.5,2.5\n30,1.7,2.7\n40,1.")
    log = CsvTable(path, "step", True)
    log.add(30, {"a": 7.0})
    log.add(40, {"a": 8.0, "b": 9.0})
    assert path.read_text() == "step,a,b\n10,1.0,2.0\n20,1.5,2.5\n30,7.0,\n40,8.0,9.0\n"
    CsvTable(path, "step", False).add(20, {"a": 0.5})
    assert path.read_text() == "step,a\n20,0.5\n"


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "step,a\nx,2\n"])
def test_a_csv_file_of_something_else(tmp_path, content):
    (tmp_path / "log_step.csv").write_text(content)
    with pytest.raises(UserError, match="log_step.csv is no log of a run"):
        open_loggers(["csv"], tmp_path, True)
    (tmp_path / "log_step.csv").write_text("")
    open_loggers(["csv"], tmp_path, True)


class Calls:
    """A module, or an object, whose functions note how they were called; those in `failing` raise."""

    def __init__(self, failing=()):
        self.made, self.failing = [], failing

    def __getattr__(self, name):
        def call(*arguments, **named):
            if name in self.failing:
                raise OSError("the server\n is gone")
            self.made.append((name, arguments, named))
            return self

        return call


def test_wandb(tmp_path, monkeypatch):
    wandb = Calls()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (logger,) = open_loggers(["wandb"], tmp_path / "mymodel", False)
    logger.scalars("step", 10, {"training_loss": 3.5})
    logger.scalars("epoch", 1, {"validation_cider": 0.5})
    logger.close()
    begun = wandb.made[0]
    assert begun[0] == "init" and begun[2]["name"] == "mymodel" and begun[2]["dir"] == str(tmp_path / "mymodel")
    assert wandb.made[1:] == [
        ("define_metric", ("step/*",), {"step_metric": "step"}),
        ("define_metric", ("epoch/*",), {"step_metric": "epoch"}),
        ("log", ({"step": 10, "step/training_loss": 3.5},), {}),
        ("log", ({"epoch": 1, "epoch/validation_cider": 0.5},), {}),
        ("finish", (), {}),
    ]


def test_mlflow(tmp_path, monkeypatch):
    mlflow = Calls()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    (logger,) = open_loggers(["mlflow"], tmp_path / "mymodel", False)
    logger.scalars("step", 10, {"training_loss": 3.5})
    logger.close()
    assert mlflow.made[0] == ("start_run", (), {"run_name": "mymodel"})
    assert mlflow.made[-2:] == [("log_metrics", ({"step/training_loss": 3.5},), {"step": 10}), ("end_run", (), {})]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_server_that_is_lost_does_not_end_the_run(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, Calls(failing=("log", "log_metrics")))
    (logger,) = open_loggers([name], tmp_path, False)
    for step in (10, 20):
        logger.scalars("step", step, {"training_loss": 3.5})
    logger.close()
    told = capsys.readouterr().err
    assert told == f"warning: --logger {name} failed and is left out from now on: the server is gone\n"


def test_a_missing_tensorboard_is_named_by_its_flag(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="^--logger tensorboard needs the package tensorboard"):
        require_packages(["tensorboard"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_or_does_not_start(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UserError, match=f"--logger {name} needs the package {name} .*: pip install {name}"):
        require_packages([name])
    monkeypatch.setitem(sys.modules, name, Calls(failing=("init", "start_run")))
    with pytest.raises(UserError, match=f"--logger {name} cannot start: the server is gone"):
        open_loggers([name], tmp_path, False)
