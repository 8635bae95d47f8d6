"""What Windows and macOS lack is not needed: modules and scripts work in a process that has lost it.

These tests stand in for machines that the suite does not run on. docs/troubleshooting.md says what was tried where.
"""

import json
import os
import subprocess
import sys

import pytest
from running import ROOT
from toy import draw

# Names that are removed from modules, once everything that is not ours has been imported.
LACKS = {
    "win32": {
        "os": "fork forkpty register_at_fork killpg getpgid setsid getuid geteuid sched_getaffinity sync pread preadv "
        "pwrite posix_fadvise statvfs fchown chown mkfifo nice uname sysconf O_CLOEXEC O_NOFOLLOW O_NONBLOCK "
        "copy_file_range sendfile WNOHANG wait3 wait4 getloadavg",
        "signal": "SIGHUP SIGUSR1 SIGUSR2 SIGKILL SIGALRM SIGPIPE SIGCHLD SIGSTOP SIGCONT SIGTSTP alarm setitimer "
        "pthread_sigmask pthread_kill sigwait",
    },
    "darwin": {
        "os": "sched_getaffinity sched_setaffinity posix_fadvise copy_file_range pidfd_open memfd_create eventfd",
        "signal": "SIGPWR SIGRTMIN SIGRTMAX SIGSTKFLT pidfd_send_signal",
    },
}
MISSING_MODULES = {"win32": ["fcntl", "resource", "termios", "pwd", "grp"], "darwin": []}

PROLOGUE = """
import importlib, json, os, signal, sys, types
system, lacks, missing, folder = json.loads(sys.argv[1])
for name in ("torch", "torchvision", "numpy", "PIL.Image", "lmdb", "tqdm", "nltk", "matplotlib.figure", "timm",
             "multiprocessing.pool", "concurrent.futures", "tempfile", "subprocess", "shutil"):
    importlib.import_module(name)
for name in ("uvicorn", "starlette.applications", "python_multipart"):
    try:
        importlib.import_module(name)
    except ImportError:  # it is optional
        pass
for module, names in lacks.items():
    for name in names.split():
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
for name in missing:
    sys.modules[name] = None
if system == "win32":
    held = set()
    def locking(handle, mode, count):
        found = os.fstat(handle)
        if mode != 2 or count != 1 or os.get_inheritable(handle):
            raise ValueError("not as it is called")
        held.add(found.st_ino)
    sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking, held=held)
sys.platform = system
"""

WORK = """
from pathlib import Path
from captioning import signals
from captioning.cores import core_count
from captioning.errors import UserError, run
from captioning.files import atomic_write, remove_leftovers
from captioning.locks import FileLock
for path in sorted(Path().glob("*.py")) + sorted(Path().glob("[cist]*/**/*.py")):
    if path.parts[0] in ("captioning", "captioner", "training", "inference", "serving") or len(path.parts) == 1:
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if name == "serving.int8":  # it does nothing but call a package, and that takes long to import
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:  # an optional package
            assert error.name.split(".")[0] in ("starlette", "uvicorn", "python_multipart", "h11"), (name, error)
folder = Path(folder)
assert core_count() >= 1
lock = FileLock(folder / "lock", "it")
try:
    FileLock(folder / "lock", "it")
    raise AssertionError("held twice")
except UserError:
    pass
lock.release(remove=True)
assert not (folder / "lock").exists()
with atomic_write(folder / "a.txt") as file:
    file.write("text")
remove_leftovers(folder)
from captioning.scoring.metrics import _silenced
with _silenced() as said:
    os.write(1, b"one\\n")
    first = said()
    os.write(2, b"two\\n")
    assert (first, said()) == ("one\\n", "one\\ntwo\\n")
from captioning.features.writer import FeatureWriter
from captioning.features.factory import open_features
import numpy as np
for name in ("f.npy", "f.lmdb"):
    with FeatureWriter(folder / name, (4,), "float32") as writer:
        writer.write("a.jpg", np.arange(4, dtype=np.float32))
    assert open_features(folder / name).get_many(["a.jpg"]).shape == (1, 4)
import resize
sys.argv[0] = "resize.py"
flags = ["--image_dir", str(folder / "photos"), "--output_dir", str(folder / "small"), "--num_workers", "1"]
assert run(resize.main, resize.parse_args(flags)) == 0
assert len(list((folder / "small").glob("*.png"))) == 2
before = signal.getsignal(signal.SIGINT)
def stop(args):
    signal.raise_signal(signal.SIGINT)
assert run(stop, None) == 130
signals.serve(os.getpid())
print("well")
"""


@pytest.mark.parametrize("system", ["win32", pytest.param("darwin", marks=pytest.mark.slow)])
def test_modules_and_scripts_work_without_what_the_system_lacks(system, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(2):
        draw(number).save(tmp_path / f"photos/{number}.png")
    given = json.dumps([system, LACKS[system], MISSING_MODULES[system], str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + WORK, given], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1:] == ["well"], done.stderr


SPAWNED = """
import multiprocessing, sys
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    import resize
    sys.exit(resize.main(resize.parse_args(sys.argv[1:])))
"""


def test_processes_that_are_spawned_do_the_work_of_forked_ones(tmp_path):
    """Windows and macOS start processes anew: what they get must be such that it can be sent."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        draw(number).save(tmp_path / f"photos/{number}.png")
    (tmp_path / "main.py").write_text(SPAWNED)
    flags = ["--image_dir", tmp_path / "photos", "--output_dir", tmp_path / "small", "--num_workers", "2"]
    command = [sys.executable, tmp_path / "main.py", *flags]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "small").glob("*.png"))) == 3


@pytest.mark.parametrize("script", ["plot_stats.py", pytest.param("show_attention.py", marks=pytest.mark.slow)])
def test_the_backend_of_a_notebook_is_no_error(script, tmp_path):
    """A notebook sets MPLBACKEND for all that it starts; the package that it names may be missing."""
    environment = {**os.environ, "MPLBACKEND": "module://no_such_package.backend_inline"}
    stats = tmp_path / "train_stats.json"
    stats.write_text('{"1": {"training_loss": 2.0}, "2": {"training_loss": 1.5}}')
    draw(1).save(tmp_path / "photo.png")
    flags = {"plot_stats.py": [stats], "show_attention.py": [tmp_path / "photo.png"]}[script]
    command = [sys.executable, ROOT / script, *flags, "--output", tmp_path / "out.png"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").exists()
