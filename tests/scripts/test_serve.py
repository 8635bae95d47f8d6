"""serve.py as a person starts it: the captions of infer.py, its end by a signal, mistakes."""

import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from running import ROOT
from toy_captioner import picture

for package in ("starlette", "uvicorn", "python_multipart"):
    pytest.importorskip(package)

import json


def test_captions_are_those_of_infer_and_sigterm_ends_it(script, tmp_path):
    picture(1).save(tmp_path / "1.jpg")
    command = [sys.executable, "serve.py", "--port", "0", "--cpu", "--n_best", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = server.stderr.readline().split()[1]
            body = (tmp_path / "1.jpg").read_bytes()
            with urllib.request.urlopen(f"{address}/caption", body, timeout=60) as answer:
                captions = json.load(answer)["photos"][0]["captions"]
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 143
        assert server.stderr.read().strip() == "serve.py: interrupted"
    done = script("infer.py", tmp_path / "1.jpg", "--cpu", "--n_best", 2, "--output_file", tmp_path / "r.jsonl")
    assert done.status == 0, done.err
    wanted = json.loads((tmp_path / "r.jsonl").read_text(encoding="utf-8"))["n_best"]
    assert [one["text"] for one in captions] == [one["caption"] for one in wanted]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: no such address"),
        (["--model", "no.model"], "no such model file"),
        (["--port", "70000"], "--port 70000: must be at most"),
        (["--n_best", "5", "--beam_size", "3"], "--n_best 5 needs as many beams"),
        (["--max_megabytes", "0"], "--max_megabytes 0.0: must be at least"),
    ],
)
def test_mistakes_are_one_line(script, flags, message):
    done = script("serve.py", *flags)
    assert (done.status, done.err.count("\n")) == (2, 1) and message in done.err


def test_a_port_that_is_taken_is_one_line(script):
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = script("serve.py", "--port", other.getsockname()[1])
    assert (done.status, done.err.count("\n")) == (2, 1) and "--port 0 takes one that is free" in done.err


def find_nothing(name: str) -> None:
    """What find_spec says of a package that is not there."""


def hide(name: str):
    """What find_spec does where an import hook hides a package."""
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("find_spec", [find_nothing, hide])
def test_a_missing_package_is_one_line(script, monkeypatch, find_spec):
    monkeypatch.setattr("captioning.errors.find_spec", find_spec)
    done = script("serve.py")
    assert done.status == 2 and "pip install starlette uvicorn python-multipart" in done.err
