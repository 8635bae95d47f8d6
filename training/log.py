"""What --logger, --tensorboard and --profiler write, most of it into the folder of a run.

models/NAME/tensorboard/     scalars of steps and epochs, histograms of the trained weights after each epoch
models/NAME/log_step.csv     --logger csv: a row for each step that is logged; log_epoch.csv: for each epoch
models/NAME/profile.txt      which operations took the time of a few steps, the slowest first
models/NAME/trace.json       the same steps on a time line, for chrome://tracing or ui.perfetto.dev
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from captioning.files import atomic_write
from training.loggers import TensorBoard, open_loggers

# steps that the profiler passes over (allocations, warm-up) and that it records
PASSED, WARM_UP, RECORDED = 2, 2, 10


class TrainingLog:
    """folder: of the run; names: of loggers; profiler: whether to profile. Without either every call is free.

    resumed: the run goes on, so what its logs have stays. Raises UserError where a package is not installed, or files
    cannot be written.
    """

    def __init__(self, folder, names: Sequence[str] = (), profiler: bool = False, resumed: bool = False):
        self.folder = Path(folder)
        self.loggers = open_loggers(names, self.folder, resumed)
        self.profiler, self.profiled, self.steps = None, False, 0
        if profiler:
            self.profiler = torch.profiler.profile(
                activities=torch.profiler.supported_activities(),
                schedule=torch.profiler.schedule(wait=PASSED, warmup=WARM_UP, active=RECORDED, repeat=1),
                on_trace_ready=self._write_profile,
                record_shapes=True,
                acc_events=True,
            )
            self.profiler.start()

    def step(self) -> None:
        """After every step."""
        if self.profiler is not None and not self.profiled:
            self.steps += 1
            self.profiler.step()

    def scalars(self, group: str, number: int, values: dict[str, float]) -> None:
        """Figures of a step (group "step") or an epoch: training loss, learning rate, ..."""
        for logger in self.loggers:
            logger.scalars(group, number, values)

    def epoch(self, epoch: int, row: dict[str, float], model: nn.Module) -> None:
        """Scalars of an epoch and, for TensorBoard, the distribution of trained weights and of their last gradients."""
        self.scalars("epoch", epoch, row)
        for logger in self.loggers:
            if isinstance(logger, TensorBoard):
                logger.histograms(epoch, model)

    def _write_profile(self, profiler) -> None:
        table = profiler.key_averages(group_by_input_shape=False)
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        with atomic_write(self.folder / "profile.txt") as file:
            file.write(f"{self.steps - PASSED - WARM_UP} steps\n{table.table(sort_by=order, row_limit=60)}\n")
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        self.profiled = True
        print(f"profile: {self.folder / 'profile.txt'}, {self.folder / 'trace.json'}")

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()
        if self.profiler is not None and not self.profiled:
            if self.steps <= PASSED + WARM_UP:
                print(f"profile: none, the run has no more than {PASSED + WARM_UP} steps")
            self.profiler.stop()  # writes what was recorded so far
