"""What the documents say holds: their commands run or are parsed, their flags, files and links exist."""

import contextlib
import importlib
import io
import re

import pytest
from running import ROOT, run_here
from toy_documents import PAGES, as_run, blocks, commands, make_world, script_and_flags

# Commands that are parsed but not run, by words that they contain.
PARSED_ONLY = {
    "resnet152caffe-original": "Caffe's weights cannot be made up in a small file",
    "--watch": "it does not end",
    "--ext_persist_features": "no model of the toy data reads such features",
    "benchmarks/bench.py": "it has tests of its own",
}
RUN = [page for page in PAGES if page.startswith("docs/")]  # the README's are typed by test_walkthrough.py
OTHER_PROGRAMS = {"make", "source", "tensorboard", "python", "bash"}
EVERY = [
    pytest.param(words, id=f"{page}:{block.line} {' '.join(words)[:60]}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "bash"
    for words in commands(block)
]


def parse(script: str, flags: list[str], monkeypatch) -> None:
    """Fails where the script's own parser refuses the flags."""
    folder, _, name = script.rpartition("/")
    monkeypatch.syspath_prepend(str(ROOT / folder))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            importlib.import_module(name.removesuffix(".py")).parse_args(flags)
    except SystemExit:
        pytest.fail(f"{script} {' '.join(flags)}\n{errors.getvalue()}")


def test_all_blocks_of_commands_are_marked():
    """A block without a language, or of another shell, would not be tested."""
    for page in PAGES:
        assert {block.language for block in blocks(page)} <= {"bash", "ini", "json", "python", ""}, page
        for block in blocks(page):
            assert block.language or not re.search(r"^(\./|python |make )", block.text, re.MULTILINE), page


@pytest.mark.parametrize("words", EVERY)
def test_the_command_is_one(words, monkeypatch):
    """A script's flags are parsed by the script; of another program what it names is there."""
    if found := script_and_flags(words):
        parse(*found, monkeypatch)
    elif words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests"))
    elif words[:2] == ["python", "-c"]:
        compile(words[2], "-c", "exec")
    else:
        assert words[0] in OTHER_PROGRAMS or re.match(r"[A-Z_]+=", words[0]), words


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder that the commands run in, as the current one."""
    root = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("HOME", str(root / "home"))
        patch.delenv("DISPLAY", raising=False)
        make_world(root)
        yield root


@pytest.mark.parametrize("page", RUN)
def test_commands_run(page, world):
    """The commands of a page, one after the other, on toy data."""
    for block in blocks(page):
        if block.language == "bash":
            for words in commands(block):
                run(words, f"{page}, line {block.line}: {' '.join(words)}")
        elif block.language == "python":
            exec(compile(block.text, f"{page}, line {block.line}", "exec"), {})


def run(words: list[str], place: str) -> None:
    found = script_and_flags(words)
    if found is None or any(reason in words for reason in PARSED_ONLY) or "/" in found[0]:
        return
    script, flags = found
    done = run_here(script, *as_run(script, flags))
    assert done.status == 0, f"{place}\n{' '.join(as_run(script, flags))}\n{done.out}\n{done.err}"


# ---- what the text names ----

NOT_OURS = {"--nproc_per_node"}
LEFT_OUT = "docs/deepcaption.md"  # names flags of DeepCaption that are not here


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_flags_named_in_the_text_exist(script):
    helps = "".join(script(path.name, flag).out for path in ROOT.glob("*.py") for flag in ("--help", "--help_all"))
