"""What --tensorboard and --profiler write into the folder of a run.

models/NAME/tensorboard/     scalars of steps and epochs, histograms of the trained weights after each epoch
models/NAME/profile.txt      which operations took the time of a few steps, the slowest first
models/NAME/trace.json       the same steps on a time line, for chrome://tracing or ui.perfetto.dev
"""

from pathlib import Path

import torch
from torch import nn

from captioning.errors import UserError
from captioning.files import atomic_write, naming_file

# steps that the profiler passes over (allocations, warm-up) and that it records
PASSED, WARM_UP, RECORDED = 2, 2, 10


class TrainingLog:
    """folder: of the run; tensorboard, profiler: what is asked for. Without either every call is free.

    Raises UserError where the package tensorboard is not installed, or its files cannot be written.
    """

    def __init__(self, folder, tensorboard: bool = False, profiler: bool = False):
        self.folder = Path(folder)
        self.events, self.writer = self.folder / "tensorboard", None
        if tensorboard:
            with naming_file(self.events):
                self.writer = require_tensorboard()(str(self.events))
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
        if self.writer is not None:
            with naming_file(self.events):
                for name, value in values.items():
                    self.writer.add_scalar(f"{group}/{name}", value, number)

    def epoch(self, epoch: int, row: dict[str, float], model: nn.Module) -> None:
        """Scalars of an epoch and the distribution of each trained weight and of its last gradient."""
        if self.writer is None:
            return
        self.scalars("epoch", epoch, row)
        with naming_file(self.events):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    for kind, values in (("weights", parameter), ("gradients", parameter.grad)):
                        if values is not None and torch.isfinite(values).all():  # a histogram cannot hold others
                            self.writer.add_histogram(f"{kind}/{name}", values.detach().float().cpu(), epoch)
            self.writer.flush()

    def _write_profile(self, profiler) -> None:
        table = profiler.key_averages(group_by_input_shape=False)
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        with atomic_write(self.folder / "profile.txt") as file:
            file.write(f"{self.steps - PASSED - WARM_UP} steps\n{table.table(sort_by=order, row_limit=60)}\n")
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        self.profiled = True
        print(f"profile: {self.folder / 'profile.txt'}, {self.folder / 'trace.json'}")

    def close(self) -> None:
        if self.writer is not None:
            with naming_file(self.events):
                self.writer.close()
        if self.profiler is not None and not self.profiled:
            if self.steps <= PASSED + WARM_UP:
                print(f"profile: none, the run has no more than {PASSED + WARM_UP} steps")
            self.profiler.stop()  # writes what was recorded so far


def require_tensorboard():
    """TensorBoard's class of writers. Raises UserError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(f"--tensorboard needs the package tensorboard ({error}): pip install tensorboard") from error
    return SummaryWriter
