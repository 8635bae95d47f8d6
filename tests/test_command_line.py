"""The parser of the scripts' command lines."""

import re
from dataclasses import dataclass
from typing import Literal

import pytest
from running import ROOT, run_here

from captioning.command_line import VERSION, Parser

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if "parse_args" in path.read_text(encoding="utf-8"))


@dataclass
class Sizes:
    embed_size: int = 256
    rate: float = 0.001
    name: str | None = None


def make(**options) -> Parser:
    parser = Parser("What it does.", settings=(Sizes,), prog="x.py", **options)
    add = parser.group("model")
    add("--embed_size", type=int, help="size of word embeddings")
    add("--rate", metavar="R", help="step size")
    add("--name", help="of the run (default: none)")
    parser.add_argument("files", nargs="*", help="files")
    parser.add_argument("--learning_rate", type=float, default=1.0, help="default 1")
    parser.add_argument("--force", "--replace", action="store_true", help="write over")
    return parser


def test_defaults_are_filled_in_and_what_was_typed_is_known():
    args = make().parse_args(["a", "--embed_size", "256", "--replace"])
    assert (args.embed_size, args.rate, args.name, args.learning_rate, args.force) == (256, 0.001, None, 1.0, True)
    assert args.typed_flags == {"files": ["a"], "embed_size": 256, "force": True}
    args = make().parse_args([])
    assert (args.files, args.force, args.typed_flags) == ([], False, {})


def test_a_file_whose_name_begins_with_a_dash(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-top.jpg").touch()
    with pytest.raises(SystemExit):
        make().parse_args(["-top.jpg"])
    assert "unexpected argument -top.jpg (the file of this name is written ./-top.jpg)" in capsys.readouterr().err
    assert make().parse_args(["./-top.jpg"]).files == ["./-top.jpg"]


def test_one_parser_parses_twice():
    parser = make()
    assert parser.parse_args(["--rate", "2"]).rate == 2
    args = parser.parse_args([])
    assert args.rate == 0.001 and args.typed_flags == {}


def test_the_help_shows_the_defaults_of_the_settings():
    text = " ".join(make().format_help().split())
    assert "size of word embeddings (default: 256)" in text and "step size (default: 0.001)" in text
    assert "None" not in text and "SUPPRESS" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--lerning_rate", "1"],
            "unknown flag --lerning_rate; did you mean --learning_rate? (--help lists the flags)",
        ),
        (["--learn=1"], "unknown flag --learn; did you mean --learning_rate? (--help lists the flags)"),
        (["--zzz"], "unknown flag --zzz (--help lists the flags)"),
        (["-x"], "unexpected argument -x (--help shows what is expected)"),
        (["--rate", "x"], "argument --rate: 'x' is not a number"),
        (["--rate", "1e400"], "argument --rate: '1e400' is not a finite number"),
        (["--embed_size", "9" * 30], f"argument --embed_size: '{'9' * 30}' is too large a number"),
        (["--embed_size", "9" * 5000], f"argument --embed_size: '{'9' * 57}...' is not a whole number"),
        (["--name", ""], "argument --name: its value is empty; leave the flag out instead"),
        (["--name", "a\0b"], "argument --name: 'a\\x00b' holds a NUL character"),
        (["--\x1b[31m"], "unknown flag --\\x1b[31m (--help lists the flags)"),
        (["-" * 9000], f"unknown flag {'-' * 60} (--help lists the flags)"),
        (["--rate", "--foo"], "--rate needs a value; one that begins with - is written --rate=--foo"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        make().parse_args(words)
    assert stop.value.code == 2 and capsys.readouterr().err == f"x.py: error: {message}\n"


@dataclass
class Kinds:
    number: int = 3
    share: float | None = None
    name: str = "x"
    quiet: bool = False
    files: list[str] | None = None
    kind: Literal["a", "b"] | None = None


def test_a_flag_has_the_type_of_its_setting(capsys):
    parser = Parser("", settings=(Kinds,), prog="x.py")
    for name in ("number", "share", "name", "quiet", "files", "kind"):
        parser.add_argument(f"--{name}", help=name)
    parser.add_argument("--half", default=0.5, help="without a setting")
    words = "--number 4 --share 2 --name 5 --quiet --files a b --kind b --half 1"
    found = {"number": 4, "share": 2.0, "name": "5", "quiet": True, "files": ["a", "b"], "kind": "b", "half": 1.0}
    assert parser.parse_args(words.split()).typed_flags == found
    text = parser.format_help()
    assert "number (default: 3)" in text and "without a setting (default: 0.5)" in text and "--kind {a,b}" in text
    with pytest.raises(SystemExit):
        parser.parse_args(["--kind", "c"])
    assert "invalid choice: 'c'" in capsys.readouterr().err


def test_a_value_beyond_its_range_is_one_line(capsys):
    parser = make()
    values = parser.parse_args(["--embed_size", "12"])
    parser.at_least(12, values, "embed_size")
    parser.at_most(12, values, "embed_size")
    for check, limit, told in ((parser.at_least, 13, "at least 13"), (parser.at_most, 11, "at most 11")):
        with pytest.raises(SystemExit):
            check(limit, values, "embed_size")
        assert capsys.readouterr().err == f"x.py: error: --embed_size 12: must be {told}\n"


def test_a_misspelt_flag_is_named_before_the_required_one_that_is_missing(capsys):
    parser = Parser("", prog="x.py")
    parser.add_argument("--output", required=True, help="file")
    with pytest.raises(SystemExit):
        parser.parse_args(["--ouput", "f"])
    assert "did you mean --output?" in capsys.readouterr().err


def test_after_two_dashes_all_is_a_file():
    assert make().parse_args(["--", "--odd"]).files == ["--odd"]


def test_the_home_folder_is_put_in_once_wherever_a_path_begins(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser("", settings=(Kinds,), prog="x.py")
    for name in ("name", "files", "number"):
        parser.add_argument(f"--{name}", help=name)
    parser.add_argument("paths", nargs="*", help="files")
    args = parser.parse_args(["~/p.jpg", "--name=~/x,a,~/y,b~,~no_such_user/z", "--files", "~", "c", "--number", "4"])
    assert args.name == "/home/me/x,a,/home/me/y,b~,~no_such_user/z" and args.number == 4
    assert (args.files, args.paths) == (["/home/me", "c"], ["/home/me/p.jpg"])
    assert args.typed_flags["name"] == args.name


def test_help_lists_the_flags_of_first_use_and_help_all_lists_all(capsys):
    texts = {}
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stop:
            make(first_use=("embed_size",)).parse_args([flag])
        assert stop.value.code == 0
        texts[flag] = capsys.readouterr().out
    assert "--embed_size" in texts["--help"] and "--rate" not in texts["--help"]
    assert texts["--help"].endswith("\n5 more flags: --help_all lists all of them\n")
    assert "--embed_size" in texts["--help_all"] and "--rate" in texts["--help_all"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_tells_its_version(name):
    done = run_here(name, "--version")
    assert done.status == 0
    assert re.fullmatch(rf"\S+ {re.escape(VERSION)} \(torch \d\S+, Python 3\.\S+\)\n", done.out), done.out
