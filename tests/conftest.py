"""Fixtures of all tests: `script` runs a script in this process, `script_alone` in one of its own.

`fast` and `plainly` turn the fast paths on and off; `no_java` hides Java. Where pytest-xdist shares the tests among
processes, each process and the scripts that it starts get their share of the cores.
"""

import os

import hypothesis
import pytest
from running import run_alone, run_here

from captioning.fast import switch

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

# The same examples every time, and few of them: `pytest --hypothesis-profile thorough` tries many others.
hypothesis.settings.register_profile("suite", derandomize=True, max_examples=40, deadline=None, database=None)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def script():
    return run_here


@pytest.fixture
def script_alone():
    return run_alone


@pytest.fixture
def fast(monkeypatch):
    """Turns everything in captioning/fast on, whatever CAPTIONING_FAST says."""
    monkeypatch.setattr(switch, "enabled", True)


@pytest.fixture
def plainly(monkeypatch):
    """Calls a function with everything in captioning/fast turned off."""

    def call(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(switch, "enabled", False)
            return function(*args, **kwargs)

    return call


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
