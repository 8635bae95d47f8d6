"""The device to compute on, and the processes that torchrun starts."""

import contextlib
import os
import signal
from datetime import timedelta

import torch
from torch import Tensor, nn

from captioning.cores import process_count
from captioning.errors import UserError
from captioning.signals import end_with_parent

PATIENCE = timedelta(hours=3)  # the others wait while the first process scores captions, longer than torch would


def choose_device(name: str | None = None, cpu: bool = False) -> torch.device:
    """The device named, or the best there is: CUDA, Apple's MPS, the CPU. Raises UserError where it is not there."""
    if cpu:
        return torch.device("cpu")
    if name is None:
        if torch.cuda.is_available():
            local = int(os.environ.get("LOCAL_RANK", 0))
            return torch.device("cuda", local % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def start_processes(device: torch.device) -> torch.device:
    """Join the other processes where torchrun started this one; otherwise nothing."""
    if process_count() > 1 and not torch.distributed.is_initialized():
        end_with_parent(signal.SIGTERM, os.getppid())  # torchrun leaves its processes behind where it is killed
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # counts are exchanged over the CPU
        store, rank, count = meeting_place()
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    return device


def meeting_place() -> "tuple[torch.distributed.Store, int, int]":
    """Where the processes of a run find each other, this one's number, and how many there are.

    `torchrun --max_restarts` keeps one store for all attempts, with the addresses of processes that have ended: each
    attempt has names of its own in it. Where a store is made for each attempt there is nothing to keep apart, and
    machines may have counted different numbers of restarts.
    """
    store, rank, count = next(torch.distributed.rendezvous("env://", timeout=PATIENCE))
    if os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1":
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = torch.distributed.PrefixStore(f"attempt_{attempt}", store)
    return store, rank, count


def from_main(work):
    """What `work()`, run in the first process alone, returned: in every process. Plain values, sent by pickling.

    A UserError of it is raised in the first process; the others end with its exit status.
    """
    if process()[1] == 1:
        return work()
    result = error = None
    if is_main():
        try:
            result = work()
        except UserError as problem:
            error = problem
    box = [result, error is not None]
    torch.distributed.broadcast_object_list(box)
    if box[1]:
        raise error or SystemExit(2)
    return box[0]


def share(value):
    """The first process' `value`, in every process. Plain values, sent by pickling. All must call it."""
    return from_main(lambda: value)


def to_main(value) -> list:
    """The `value` of every process in the first one, by rank; an empty list in the others. All must call it."""
    rank, count = process()
    if count == 1:
        return [value]
    values = [None] * count if rank == 0 else None
    torch.distributed.gather_object(value, values)
    return values or []


def largest(value: int) -> int:
    """The largest `value` of all processes, in each of them. All must call it."""
    found = torch.tensor(value)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def end_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def ended_processes():
    """A block after which the process leaves the group that `start_processes` made."""
    try:
        yield
    finally:
        end_processes()


@contextlib.contextmanager
def partners_may_fail():
    """Within it a process whose partner has ended raises UserError, not an error of the library that connected them."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if process_count() == 1 or not lost:
            raise
        rank = os.environ.get("RANK")
        raise UserError(f"process {rank}: another process has ended; its message, if it left one, says why") from error


def process() -> tuple[int, int]:
    """This process' number and how many there are."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return process()[0] == 0


def wait_for_all() -> None:
    """Return once every process is here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def summed(values: Tensor) -> Tensor:
    """The sum of the `values` of all processes, in each of them. All must call it. No gradient flows through it."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values := values.clone())
    return values


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in one message."""
    if not torch.distributed.is_initialized():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = part.view_as(parameter)


def autocast(device: torch.device, amp: str):
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")
