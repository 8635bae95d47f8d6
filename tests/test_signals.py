"""captioning/signals.py: what a signal does to a script, at every stage, and to the processes that work for it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from running import ROOT

from captioning import signals
from captioning.signals import Interrupted, Stop, interrupting

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_interrupts_work_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as error, interrupting():
        signal.raise_signal(number)
    assert error.value.number == number and signal.getsignal(number) is before


def test_a_signal_to_a_process_and_its_group_interrupts_once():
    cleaned = False
    with pytest.raises(Interrupted), interrupting():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # as timeout(1) sends it: it must not end the cleaning up
            cleaned = True
    assert cleaned


def test_a_signal_that_comes_to_nothing_in_a_del_interrupts_all_the_same():
    class Odd:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0)

    with pytest.raises(Interrupted), interrupting():
        odd = Odd()
        del odd
        time.sleep(10)


def test_stop_notes_the_first_signal_and_a_second_ctrl_c_raises(monkeypatch):
    with Stop() as stop:
        assert stop.signal is None
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.signal == signal.SIGUSR1
        monkeypatch.setattr(signals, "SAME_SIGNAL_SECONDS", 0.0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_nohup_has_ignored_stays_ignored_but_ctrl_c():
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal is None
            signal.raise_signal(signal.SIGINT)
            assert stop.signal == signal.SIGINT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


SERVER = """
import os, sys, time
from captioning.signals import serve
serve(os.getppid())
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_serving_process_ignores_signals_and_ends_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    for number in NUMBERS:
        os.kill(child, number)
    parent.kill()
    assert parent.stdout.read() == ""  # the child, which held it open, is gone
    parent.wait()


SCRIPT = "import sys, time; sys.path.insert(0, {root!r})\n{head}\nprint('ready', flush=True)\n"
SCRIPT += "for _ in range(600):\n    time.sleep(0.1)\n"
IMPORTING = "import captioning.errors"
WORKING = """
from captioning.errors import run

def main(args):
    print("ready", flush=True)
    for _ in range(600):  # Python may answer a signal that comes just before a sleep after it
        time.sleep(0.1)

sys.exit(run(main, None))
"""


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("head, told", [(IMPORTING, ""), (WORKING, "\nx.py: interrupted\n")])
def test_a_script_leaves_with_128_and_the_number(tmp_path, monkeypatch, number, head, told):
    """While it imports modules, and while it works; what the toolkit's folder is, the script's own folder says."""
    script = tmp_path / "x.py"
    (tmp_path / "captioning").symlink_to(ROOT / "captioning")
    code = SCRIPT.format(root=str(tmp_path), head=f"import captioning.signals as s\n{head}")
    if head == IMPORTING:
        code = code.replace(head, f"{head}\ncaptioning.errors.signals.leave_at_once()")
    script.write_text(code)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", told) and process.returncode == 128 + number


def test_only_the_toolkits_scripts_answer_signals_on_import():
    code = "import captioning.errors, signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n"
