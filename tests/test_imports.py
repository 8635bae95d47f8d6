"""Who may import whom, and that scripts answer before anything heavy is imported."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

# A part, or a file outside the parts -> what it may import besides ALL_MAY_IMPORT and itself.
MAY_IMPORT = {
    "training": "model data_loader vocabulary captioning",
    "inference": "model data_loader vocabulary captioning",
    "serving": "model vocabulary captioning",
    "model": "captioner",
    "captioner": "vocabulary captioning",
    "data_loader": "vocabulary captioning",
    "vocabulary": "captioning",
    "captioning.batches": "captioning.datasets captioning.features captioning.images captioning.text captioning.config",
    "captioning.features": "captioning.config",
    "captioning.datasets": "captioning.features captioning.images captioning.tables captioning.text captioning.cores "
    "captioning.processes captioning.progress",
    "captioning.command_line": "captioning.config_file captioning.cores",
    "captioning.devices": "captioning.cores",
    "captioning.progress": "captioning.cores",
    "captioning.checkpoint": "captioning.tensor_files",
    "captioning.tensor_files": "captioning.pickles",
    "captioning.deepcaption": "captioning.encoder captioning.checkpoint captioning.config captioning.text "
    "captioning.pickles captioning.tensor_files",
    "captioning.encoder": "captioning.fast captioning.config captioning.tensor_files",
    "captioning.decoder": "captioning.fast captioning.config captioning.rows captioning.text",
    "captioning.scoring": "captioning.text captioning.pickles",
    "captioning.fast": "captioning.rows",
    "captioning.rows": "captioning.text",
}
ALL_MAY_IMPORT = ("captioning.errors", "captioning.files", "captioning.locks", "captioning.signals")
MOST_FILES = {"": 19, "captioning": 19, "training": 19, "inference": 17}
HEAVY = {"starlette", "uvicorn", "onnx", "onnxruntime"}
HEAVY |= {"torch", "torchvision", "timm", "numpy", "PIL", "matplotlib", "nltk", "lmdb", "pycocotools", "pycocoevalcap"}
WHOLES = {"model", "data_loader", "vocabulary"}
FOLDERS = ("captioning", "captioner", "training", "inference", "serving")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for pattern in ("*.py", *(f"{folder}/**/*.py" for folder in FOLDERS))
    for path in sorted(ROOT.glob(pattern))
    if path.name != "__init__.py"
}
SCRIPTS = sorted(name for name in FILES if "." not in name and name not in WHOLES)


def part(module: str) -> str:
    """The row of the table for a module: captioning.PART, training, inference, or the module itself."""
    names = module.split(".")
    return ".".join(names[: 2 if names[0] == "captioning" else 1])


def imports(path: Path) -> set[str]:
    """Full names of the modules imported anywhere in a file, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import, but the toolkit is a folder of scripts"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            names |= inner or {node.module}
    return names


@pytest.mark.parametrize("name", sorted(set(FILES) - set(SCRIPTS)))
def test_modules_import_what_the_table_allows(name):
    own = part(name)
    allowed = (*MAY_IMPORT.get(own, "").split(), *ALL_MAY_IMPORT, own)
    for other in imports(FILES[name]) & set(FILES):
        fits = any(other == entry or other.startswith(f"{entry}.") for entry in allowed)
        assert fits, f"{name} imports {other}, which the table does not allow"


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_no_script(name):
    assert not imports(FILES[name]) & set(SCRIPTS)


def test_no_module_imports_itself_through_others():
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' > '.join((*path, name))}"
        if name not in order:
            for other in sorted(imports(FILES[name]) & set(FILES)):
                visit(other, (*path, name))
            order.append(name)

    for name in FILES:
        visit(name, ())


def test_no_folder_holds_too_many_files():
    counts: dict[str, int] = {}
    for name in FILES:
        folder = name.rpartition(".")[0]
        counts[folder] = counts.get(folder, 0) + 1
    for folder, count in counts.items():
        assert count <= MOST_FILES.get(folder, 17), f"{folder or 'the root'} holds {count} Python files"
    for folder in ("datasets", "models"):
        assert not (ROOT / folder / "__init__.py").exists(), f"{folder}/ would hide installed packages of that name"


NEED_NO_TORCH = {"vocabulary", "captioning.errors", "captioning.files", "captioning.config", "captioning.command_line"}
NEED_NO_TORCH |= {"captioning.batches.sampler", "training.flags", "inference.flags", "training.settings"}
NEED_NO_TORCH |= {"inference.run.images", "inference.run.outputs", "inference.run.report"}
NEED_NO_TORCH |= {
    name for name in FILES if part(name) in ("captioning.datasets", "captioning.text", "captioning.images")
}


@pytest.mark.parametrize("name", sorted(NEED_NO_TORCH - {"captioning.images.torch_resize"}))
def test_modules_that_need_no_torch(name):
    assert not imports(FILES[name]) & {"torch", "torchvision", "timm"}


ASK = """
import json, runpy, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
heavy, found = set(sys.argv[1].split(",")), {}
for script in sys.argv[2:]:
    for flag in ("--help", "--no_such_flag"):
        sys.argv, out, status = [script, flag], StringIO(), None
        try:
            with redirect_stdout(out), redirect_stderr(out):
                runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        found[f"{script} {flag}"] = (status, out.getvalue(), sorted(heavy & set(sys.modules)))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers():
    command = [sys.executable, "-c", ASK, ",".join(sorted(HEAVY)), *(f"{name}.py" for name in SCRIPTS)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True).stdout)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_answers_before_anything_heavy_is_imported(answers, name):
    status, text, heavy = answers[f"{name}.py --help"]
    assert status == 0 and text.startswith("usage:") and heavy == []
    status, text, heavy = answers[f"{name}.py --no_such_flag"]
    assert status == 2 and text.count("\n") == 1 and heavy == []
    assert text.startswith(f"{name}.py: error: unknown flag --no_such_flag")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_run_as_the_readme_types_it(name):
    path = FILES[name]
    assert path.read_text(encoding="utf-8").startswith('#!/usr/bin/env python3\n"""')
    assert path.stat().st_mode & 0o111, f"chmod +x {path.name}"


SPEED = re.compile(r"torch\.ops\.mkldnn|\bdata_ptr\b|\._version\b|\bset_num_threads\b")


@pytest.mark.parametrize("name", sorted(name for name in FILES if part(name) != "captioning.fast"))
def test_what_trades_plain_torch_for_speed_is_in_its_folder(name):
    assert not SPEED.findall(FILES[name].read_text(encoding="utf-8"))


def test_names_of_test_files_are_unique():
    """pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
