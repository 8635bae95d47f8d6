"""The lines that a script proposes: as a shell reads them, with the folder that was typed."""

import shlex
import sys

import pytest

from captioning.next_steps import print_next, script_command


@pytest.mark.parametrize(
    "typed, expected",
    [
        ("./train.py", "./infer.py"),
        ("train.py", "python infer.py"),
        ("/opt/my tools/train.py", "'/opt/my tools/infer.py'"),
        ("../toolkit/train.py", "../toolkit/infer.py"),
    ],
)
def test_scripts_are_called_as_this_one_was(monkeypatch, typed, expected):
    monkeypatch.setattr(sys, "argv", [typed, "--flag"])
    assert script_command("infer.py") == expected


def test_lines_are_read_back_by_a_shell(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["./train.py"])
    words = ["--model", "models/my run's/b;est$x.model", "photo.jpg"]
    print_next(["infer.py", *words], ["plot_stats.py", "a\x1b[31mb.json"])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head == "next:" and shlex.split(first) == ["./infer.py", *words]
    assert "\x1b" not in second and "\\x1b" in second
