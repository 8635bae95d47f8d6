"""Where the figures of a run are written while it trains: CSV files, TensorBoard, Weights & Biases, MLflow.

    loggers = open_loggers(("csv", "wandb"), Path("models/m"), resumed=False)
    for logger in loggers:
        logger.scalars("step", 10, {"training_loss": 3.2})
        logger.close()

Packages are imported only where their logger is asked for.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from captioning.errors import UserError, one_line, warn
from captioning.files import atomic_write, naming_file, read_lines
from captioning.tables import csv_lines


def require_packages(names: Sequence[str]) -> None:
    """Raises UserError where the package of a logger is missing."""
    for name in names:
        PACKAGES[name]()


def open_loggers(names: Sequence[str], folder: Path, resumed: bool) -> list:
    """The loggers `names` of the run in `folder`. resumed: it goes on, so what they have already stays.

    Raises UserError where a package is missing, or its files cannot be written.
    """
    kinds = {"tensorboard": TensorBoard, "csv": CsvFiles, "wandb": WeightsAndBiases, "mlflow": MLflow}
    return [kinds[name](folder, resumed) for name in names]


class TensorBoard:
    """Scalars and histograms in models/NAME/tensorboard/."""

    def __init__(self, folder: Path, resumed: bool):
        self.place = folder / "tensorboard"
        with naming_file(self.place):
            self.writer = require_tensorboard()(str(self.place))

    def scalars(self, group: str, number: int, values: Mapping[str, float]) -> None:
        with naming_file(self.place):
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, number)

    def histograms(self, epoch: int, model: nn.Module) -> None:
        """The distribution of each trained weight and of its last gradient."""
        with naming_file(self.place):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    for kind, values in (("weights", parameter), ("gradients", parameter.grad)):
                        if values is not None and torch.isfinite(values).all():  # a histogram cannot hold others
                            self.writer.add_histogram(f"{kind}/{name}", values.detach().float().cpu(), epoch)
            self.writer.flush()

    def close(self) -> None:
        with naming_file(self.place):
            self.writer.close()


class CsvFiles:
    """models/NAME/log_step.csv and log_epoch.csv: a row for each step that is logged, and for each epoch."""

    def __init__(self, folder: Path, resumed: bool):
        self.tables = {name: CsvTable(folder / f"log_{name}.csv", name, resumed) for name in ("step", "epoch")}

    def scalars(self, group: str, number: int, values: Mapping[str, float]) -> None:
        self.tables[group].add(number, values)

    def close(self) -> None:
        """Nothing: every row is in its file."""


class CsvTable:
    """A table that grows by a row at a time. A new column, or a row that was there before, writes the file anew.

    key: the first column, a number that rises; resumed: keep the rows that `path` has.
    """

    def __init__(self, path: Path, key: str, resumed: bool):
        self.path, self.columns, self.rows = path, [key], []
        self.anew = True  # the file must be written whole
        if resumed and path.exists():
            self.columns, *rows = list(csv.reader(read_lines(path, "--logger csv"))) or [[key]]
            self.rows = [dict(zip(self.columns, row)) for row in rows if len(row) == len(self.columns)]
            if self.columns[:1] != [key] or not all(row[key].isdecimal() for row in self.rows):
                raise UserError(f"--logger csv: {path} is no log of a run; remove it first")

    def add(self, number: int, values: Mapping[str, float]) -> None:
        key = self.columns[0]
        new = [name for name in values if name not in self.columns]
        again = bool(self.rows) and int(self.rows[-1][key]) >= number  # a resumed run comes to some steps a second time
        self.anew |= bool(new) or again
        self.columns += new
        self.rows = [row for row in self.rows if int(row[key]) < number] if again else self.rows
        self.rows.append({key: str(number), **values})
        if self.anew:
            with atomic_write(self.path) as file:
                file.write(csv_lines([self.columns]) + self._lines(self.rows))
            self.anew = False
            return
        with naming_file(self.path), open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(self._lines(self.rows[-1:]))

    def _lines(self, rows: Sequence[Mapping]) -> str:
        return csv_lines([row.get(name, "") for name in self.columns] for row in rows)


class Remote:
    """A logger that may lose its server: then one line says so and the run goes on without it."""

    name = ""

    def __init__(self, folder: Path, resumed: bool):
        self.lost = False
        package = PACKAGES[self.name]()
        try:
            self.start(package, folder, resumed)
        except Exception as error:  # noqa: BLE001 - each package has errors of its own: no login, no network, ...
            raise UserError(f"--logger {self.name} cannot start: {one_line(error)}") from error

    def scalars(self, group: str, number: int, values: Mapping[str, float]) -> None:
        self._try(self.send, group, number, {f"{group}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        self._try(self.end)

    def _try(self, work, *arguments) -> None:
        if self.lost:
            return
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - a log is not worth a run
            self.lost = True
            warn(f"--logger {self.name} failed and is left out from now on: {one_line(error)}")


class WeightsAndBiases(Remote):
    """A run named as its folder; WANDB_PROJECT, WANDB_MODE and the other variables of wandb are obeyed."""

    name = "wandb"

    def start(self, wandb, folder: Path, resumed: bool) -> None:
        self.run = wandb.init(name=folder.name, dir=str(folder), config={"command": sys.argv, "resumed": resumed})
        for group in ("step", "epoch"):
            self.run.define_metric(f"{group}/*", step_metric=group)

    def send(self, group: str, number: int, values: dict[str, float]) -> None:
        self.run.log({group: number, **values})

    def end(self) -> None:
        self.run.finish()


class MLflow(Remote):
    """A run named as its folder; MLFLOW_TRACKING_URI and the other variables of mlflow are obeyed."""

    name = "mlflow"

    def start(self, mlflow, folder: Path, resumed: bool) -> None:
        self.mlflow = mlflow
        mlflow.start_run(run_name=folder.name)
        mlflow.set_tag("command", " ".join(sys.argv))

    def send(self, group: str, number: int, values: dict[str, float]) -> None:
        self.mlflow.log_metrics(values, step=number)

    def end(self) -> None:
        self.mlflow.end_run()


# ---- packages ----


def require_tensorboard():
    """TensorBoard's class of writers. Raises UserError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--logger tensorboard needs the package tensorboard ({error}): pip install tensorboard"
        ) from error
    return SummaryWriter


def require_wandb():
    """The package wandb. Raises UserError where it is missing."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"--logger wandb needs the package wandb ({error}): pip install wandb") from error
    return wandb


def require_mlflow():
    """The package mlflow. Raises UserError where it is missing."""
    try:
        import mlflow
    except ImportError as error:
        raise UserError(f"--logger mlflow needs the package mlflow ({error}): pip install mlflow") from error
    return mlflow


PACKAGES = {
    "tensorboard": require_tensorboard,
    "csv": lambda: csv,
    "wandb": require_wandb,
    "mlflow": require_mlflow,
}
