"""Every flag of every script with values that nobody means: one line on stderr and status 2, never a traceback.

The commands name a model or a data file that is not there, so that what a parser takes goes through the checks of a
script, and no further.
"""

import importlib

import pytest
from PIL import Image

from captioning.command_line import Parser

COMMANDS = {
    "infer.py": "photo.png --model gone.model",
    "show_attention.py": "photo.png --model gone.model",
    "extract_features.py": "--image_dir pictures --weights gone.pth",
    "train.py": "--dataset generic --load_model gone.model",
    "score.py": "results.json --ground_truth gone.json",
    "average_models.py": "gone.model --output new.model",
    "model_info.py": "gone.model",
    "plot_stats.py": "gone.json",
    "resize.py": "--image_dir pictures --output_dir out --num_workers 0 --subset gone.txt",
    "build_vocab.py": "--dataset gone:x --vocab_output_path v.json",
    "build_cached_words.py": "--dataset gone:x --output w.json",
    "datasets_compare.py": "--vocab_1 gone.json --vocab_2 gone.json",
}
NUMBERS = ("nan", "-inf", "1e400", "9" * 5000, "-1", "0", "9" * 18, "")
TEXTS = ("", "a\0b", "-" * 9000, "x" * 5000, "a\nb\x1b[31m", "-1", "../" * 2000)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("photo.png", "pictures/photo.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    (tmp_path / "results.json").write_text('[{"image_id": 1, "caption": "a dog"}]')


def flags(script: str, words: list[str], monkeypatch) -> list[tuple[list[str], bool]]:
    """The flags of a script that take a value, a list without one for its files, and whether the value is a number."""
    made = []
    with monkeypatch.context() as patch:
        parse = Parser.parse_args
        patch.setattr(Parser, "parse_args", lambda self, *rest: (made.append(self), parse(self, *rest))[1])
        importlib.import_module(script.removesuffix(".py")).parse_args(words)
    numbers = ("whole_number", "number")
    actions = [action for action in made[0]._actions if action.nargs != 0]
    return [(action.option_strings[-1:], getattr(action.type, "__name__", "") in numbers) for action in actions]


@pytest.mark.parametrize("script_name", COMMANDS)
def test_odd_values_are_one_line(script_name, script, here, monkeypatch):
    words = COMMANDS[script_name].split()
    for flag, is_number in flags(script_name, words, monkeypatch):
        for value in NUMBERS if is_number else TEXTS:
            done = script(script_name, *words, *([f"{flag[0]}={value}"] if flag else [value]))
            seen = (flag, value[:20], done.status, done.err[:300])
            assert done.status == 2 and done.err.count("\n") == 1, seen
            assert len(done.err) < 1000 and "\x1b" not in done.err and "Traceback" not in done.err, seen
