"""Memory of processes, as the system tells it. Nothing heavy is imported: its pages would count in what is measured."""

import contextlib
from pathlib import Path

MB = 2**20


def resident(pid: int | str = "self", of: str = "VmHWM") -> int:
    """Bytes that a process has had resident at most (VmHWM) or has now (VmRSS); 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{of}:"):
                return int(line.split()[1]) * 1024
    return 0


def tree(pid: int) -> list[int]:
    """A process and all that came from it."""
    found, todo = [], [pid]
    while todo:
        found.append(one := todo.pop())
        with contextlib.suppress(OSError, ValueError):
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def proportional(pid: int, of: str = "Pss") -> int:
    """Bytes of a process, a page shared by n processes counting 1/n: sums over processes count each page once.

    of: "Pss", or a part of it: "Pss_Anon", "Pss_File" or "Pss_Shmem".
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{of}:"):
                return int(line.split()[1]) * 1024
    return 0
