"""Running a script as a person would: in this process (fast), or in one of its own."""

import contextlib
import importlib
import io
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from captioning import errors  # noqa: F401  before torch is imported: it sets how threads wait

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Result:
    status: int
    out: str
    err: str


def run_here(script: str, *arguments) -> Result:
    """Run `script` ("train.py") with `arguments` in this process, which spares the import of torch each time."""
    from captioning.errors import note_once, run, warn_once

    for once in (note_once, warn_once):  # a process of its own would not have said anything yet
        once.cache_clear()
    module = importlib.import_module(script.removesuffix(".py"))
    out, err = io.StringIO(), io.StringIO()
    old_argv, sys.argv = sys.argv, [script, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = run(module.main, module.parse_args([str(a) for a in arguments]))
            except SystemExit as stop:  # argparse
                status = stop.code if isinstance(stop.code, int) else 2
    finally:
        sys.argv = old_argv
    return Result(status, out.getvalue(), err.getvalue())


def flags_of(script: str) -> dict[str, str]:
    """The flags of a script without their dashes, and the help text of each, as the script prints them."""
    full = run_here(script, "--help_all")
    text = full.out if full.status == 0 else run_here(script, "--help").out
    flags = {}
    for entry in re.findall(r"^  (-.*?)(?=^  -|^\S|\Z)", text, flags=re.DOTALL | re.MULTILINE):
        # names and what the value is called, then the help after two blanks or on the next line
        head, *help_text = re.split(r"\n +| {2,}", entry.strip(), maxsplit=1)
        flags |= dict.fromkeys(re.findall(r"--(\w+)", head), "".join(help_text))
    return flags


def run_alone(script: str, *arguments, cwd=None, env=None, timeout=300) -> Result:
    """Run `script` in a Python process of its own, as the shell would."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, env=env, timeout=timeout)
    return Result(done.returncode, done.stdout, done.stderr)
