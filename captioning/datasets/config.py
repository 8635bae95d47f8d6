"""datasets.conf: which datasets there are, and where their images, captions and features lie.

A section [coco:train2014] inherits from its parent [coco] what it does not set, and so on: [coco:train2014:small].
"""

import configparser
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from captioning.errors import UserError
from captioning.files import read_lines

DEFAULT_FILE = "datasets/datasets.conf"
CONFIG_HELP = f"file of the datasets (default: {DEFAULT_FILE}, or the one in ~/.config/image_captioning)"
GENERIC = "generic"
PATH_KEYS = ("root_dir", "image_dir", "caption_path", "features_path")  # the first is where the others begin
CODE_DIR = Path(__file__).resolve().parents[2]  # the folder of the scripts


@dataclass
class DatasetParams:
    """One section with all that it inherits. Paths are joined to `root_dir`; `extra` has the keys a class adds."""

    name: str
    dataset_class: str
    root_dir: str | None = None
    image_dir: str | None = None
    caption_path: str | None = None
    features_path: str | None = None
    subset: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
    config_path: str | None = None

    def path(self, value: str) -> str:
        """The place of a path in the section: relative to root_dir, or else to the folder of the configuration."""
        base = self.root_dir or (Path(self.config_path).resolve().parent if self.config_path else Path.cwd())
        return os.path.normpath(Path(base) / Path(value).expanduser())


def get_datasets(spec: str, config_file: str | None = None, option: str = "--dataset") -> list[DatasetParams]:
    """The settings of every dataset named in `spec`, "a:x+b:y", in that order.

    `config_file` is looked for as it stands, then in ~/.config/image_captioning/, then beside the code; None means
    datasets/datasets.conf. option: the flag that errors name. Raises UserError for an unknown dataset (listing the
    known ones), a file that is not there or malformed, and a section without `dataset_class`.
    """
    names = [name.strip() for name in spec.split("+")]
    if "" in names:
        raise UserError(f"{option} {spec!r}: empty name; write one dataset, or several joined by '+'")
    path = find_config(config_file, required=set(names) != {GENERIC})
    parser = _parse(path) if path else configparser.RawConfigParser()
    for name in names:
        if name != GENERIC and not parser.has_section(name):
            known = [section for section in parser.sections() if section != configparser.DEFAULTSECT]
            known = ", ".join(dict.fromkeys([*known, GENERIC]))
            raise UserError(f"{option}: unknown dataset {name!r}; {path} has: {known}")
    return [_section(parser, name, path) for name in names]


def find_config(config_file: str | None, required: bool = True) -> Path | None:
    """The first place where `config_file` exists; where it exists nowhere UserError, or None if not `required`.

    A file that was asked for by another name than the default must exist even if not `required`.
    """
    wanted = Path(config_file or DEFAULT_FILE).expanduser()
    user_dir = Path("~/.config/image_captioning").expanduser()
    # In the user's folder datasets.conf may lie by itself as well as under the relative path asked for.
    places = [wanted]
    if not wanted.is_absolute():
        places += [user_dir / wanted, user_dir / wanted.name, CODE_DIR / wanted]
    for place in places:
        if place.is_file():
            return place
    if required or wanted != Path(DEFAULT_FILE):
        raise UserError(f"--dataset_config_file: no such file: {', '.join(dict.fromkeys(map(str, places)))}")
    return None


def _parse(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(default_section="")  # [DEFAULT] and %(...)s: see _inherited
    try:
        parser.read_string("\n".join(read_lines(path, "--dataset_config_file")))
        return parser
    except configparser.DuplicateSectionError as error:
        line, what = error.lineno, f"section [{error.section}] is there twice"
    except configparser.DuplicateOptionError as error:
        line, what = error.lineno, f"{error.option!r} is set twice in [{error.section}]"
    except configparser.MissingSectionHeaderError as error:
        line, what = error.lineno, f"{error.line.strip()!r} stands before the first [section]"
    except configparser.ParsingError as error:
        line, text = error.errors[0]
        what = f"cannot parse {text}; expected 'key = value' or '[section]'"
    raise UserError(f"{path}, line {line}: {what}")


def _section(parser: configparser.RawConfigParser, name: str, path: Path | None) -> DatasetParams:
    values = _inherited(parser, name, path)
    if name == GENERIC:
        values.setdefault("dataset_class", "GenericDataset")
    if not values.get("dataset_class"):
        raise UserError(f"{path}: [{name}] sets no dataset_class and inherits none (CocoDataset, GenericDataset, ...)")

    params = DatasetParams(name, values.pop("dataset_class"), config_path=str(path) if path else None)
    params.subset = values.pop("subset", None) or None
    for key in PATH_KEYS:
        value = values.pop(key, None)
        setattr(params, key, params.path(value) if value else None)
    params.extra = values
    return params


def _inherited(parser: configparser.RawConfigParser, name: str, path: Path | None) -> dict[str, str]:
    """The keys of [DEFAULT], `a`, `a:b` and `a:b:c`, the later overriding the earlier, with %(...)s filled in last, so
    that a child may refer to what its parent sets, and what a parent refers to may be set by the child."""
    parts = name.split(":")
    raw: dict[str, str] = {}
    for section in [configparser.DEFAULTSECT, *(":".join(parts[:depth]) for depth in range(1, len(parts) + 1))]:
        if parser.has_section(section):
            raw.update(parser.items(section))
    known = raw | {"here": str(path.resolve().parent if path else Path.cwd()).replace("%", "%%")}
    try:
        return {key: _filled(value, known) for key, value in raw.items()}
    except ValueError as error:
        raise UserError(f"{path}: [{name}]: {error}") from None


def _filled(value: str, raw: dict[str, str], depth: int = 0) -> str:
    """`value` with %(key)s and %% replaced. Raises ValueError saying what is wrong."""
    if depth > 10:
        raise ValueError(f"{value!r} refers to itself")

    def one(match: re.Match) -> str:
        name = (match[1] or "").lower()
        if match[0] == "%%":
            return "%"
        if not name:
            raise ValueError(f"{value!r} has a single '%'; write %% for a plain one")
        if name not in raw:
            raise ValueError(f"{value!r} refers to {name!r}, which is not set")
        return _filled(raw[name], raw, depth + 1)

    return re.sub(r"%%|%\(([^)]+)\)s|%", one, value)
