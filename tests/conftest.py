"""Fixtures of all tests: `script` runs a script in this process, `script_alone` in one of its own; `no_java`."""

import pytest
from running import run_alone, run_here


@pytest.fixture
def script():
    return run_here


@pytest.fixture
def script_alone():
    return run_alone


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
