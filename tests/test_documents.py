"""What the documents say holds: their commands run or are parsed, their flags, files and links exist."""

import contextlib
import importlib
import io
import re

import pytest
from running import ROOT, flags_of, run_here
from toy_documents import PAGES, as_run, blocks, commands, commands_in_text, make_world, script_and_flags

from captioning.scoring import calibration

# Commands that are parsed but not run, by words that they contain.
PARSED_ONLY = {
    "resnet152caffe-original": "Caffe's weights cannot be made up in a small file",
    "--watch": "it does not end",
    "--ext_persist_features": "no model of the toy data reads such features",
    "benchmarks/bench.py": "it has tests of its own",
    "benchmarks/bench_shards.py": "it has tests of its own",
    "./serve.py": "it does not end",
    "./export.py": "it has tests of its own",
    "--write_metadata": "its package is optional",
    "--write_metadata_in_place": "its package is optional",
}
RUN = [page for page in PAGES if page.startswith("docs/")]  # the README's are typed by test_walkthrough.py
OTHER_PROGRAMS = {"pip", "curl", "make", "source", "tensorboard", "python", "bash"}
EVERY = [
    pytest.param(words, id=f"{page}:{block.line} {' '.join(words)[:60]}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "bash"
    for words in commands(block)
] + [pytest.param(words, id=f"{page} {' '.join(words)[:60]}") for page in PAGES for words in commands_in_text(page)]


def parse(script: str, flags: list[str], monkeypatch) -> None:
    """Fails where the script's own parser refuses the flags."""
    folder, _, name = script.rpartition("/")
    data = {"dataset": "coco:train2014"}  # what a file of --config holds, which is not there
    monkeypatch.setattr("captioning.command_line.read_settings", lambda path, option: data)
    monkeypatch.syspath_prepend(str(ROOT / folder))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            importlib.import_module(name.removesuffix(".py")).parse_args(flags)
    except SystemExit as stop:
        if stop.code == 0:  # --help
            return
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
        patch.setattr(calibration, "LEAST_IMAGES", 5)  # the toy data has few
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
    well = (0, 1) if script == "check_data.py" else (0,)  # some of the toy pictures are alike
    assert done.status in well, f"{place}\n{' '.join(as_run(script, flags))}\n{done.out}\n{done.err}"


# ---- what the text names ----

FOLDERS = "captioning|training|inference|serving|tests|benchmarks|recipes|datasets"
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if "parse_args" in path.read_text(encoding="utf-8"))
OF_OTHERS = {
    "data",
    "form",
    "build",
    "tag",
    "publish",
    "volume",
    "help",
    "help_all",
    "nproc_per_node",
    "max_restarts",
    "logdir",
}
OF_OLDER_VERSIONS = {"threshold", "show_stats", "vocab_path", "class_filter"}  # DeepCaption's, with their names today


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", text_of(page))
    lost = [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    assert not lost, f"{page}: {lost}"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*\w(?:\.py|\.sh|\.md|\.conf|/))`", text_of(page))
    lost = [name for name in named if not (ROOT / name).exists()]
    assert not lost, f"{page}: {lost}"


def test_the_page_on_the_code_names_what_is_there():
    """The modules that its tables name, and the functions, classes and attributes."""
    page = text_of("docs/layout.md")
    code = [path for path in ROOT.glob("**/*.py") if path.relative_to(ROOT).parts[0] not in ("tests", ".venv")]
    lost = set(re.findall(r"`(\w+\.py)`", page)) - {path.name for path in code}
    words = {word for path in code for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    lost |= {name for name in re.findall(r"`[\w.]*?(\w+)(?:\([\w, .]*\))?`", page) if name not in words}
    assert not lost, lost


def test_named_flags_exist(monkeypatch):
    for folder in ("benchmarks", "datasets"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    known = OF_OTHERS.union(*(flags_of(script) for script in [*SCRIPTS, "bench.py", "pair_sentences.py"]))
    for page in PAGES:
        text = re.sub(r"^\|.*left out.*\|$", "", text_of(page), flags=re.MULTILINE)  # rows of the table of flags
        older = OF_OLDER_VERSIONS if page == "docs/deepcaption.md" else set()
        lost = set(re.findall(r"(?<![\w-])--(\w+)", text)) - known - older
        assert not lost, f"{page}: {lost}"


def test_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 150
