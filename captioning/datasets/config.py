"""datasets.conf: which datasets there are, and where their images, captions and features lie.

A section [coco:train2014] inherits from its parent [coco] what it does not set, and so on: [coco:train2014:small].
"""

import configparser
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from captioning.datasets.names import as_path, is_shards, looks_like_path, split_names
from captioning.errors import UserError, warn_once
from captioning.files import read_lines

DEFAULT_FILE = "datasets/datasets.conf"
CONFIG_HELP = f"file of the datasets (default: {DEFAULT_FILE}, or the one in ~/.config/image_captioning)"
GENERIC = "generic"
OF_PATHS, OF_SHARDS = "CaptionFile", "WebDataset"  # the classes of datasets that are named by a path
PATH_KEYS = ("image_dir", "caption_path", "features_path")
CODE_DIR = Path(__file__).resolve().parents[2]  # the folder of the scripts
MOST_BYTES = 2**20  # of a file
LONGEST_LINE = 5_000  # characters
MOST_BLANKS = 200  # in a row: configparser takes a time that grows with the square of them
LONGEST_VALUE = 5_000  # characters of a value with all that it refers to; no path is longer
DEEPEST = 50  # values that refer to values


@dataclass
class DatasetParams:
    """One section with all that it inherits. Paths are whole ones; `extra` has the keys that a class adds."""

    name: str
    dataset_class: str
    root_dir: str | None = None
    image_dir: str | None = None
    caption_path: str | None = None
    features_path: str | None = None
    subset: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
    config_path: str | None = None
    option: str = "--dataset"  # the flag that named it, for errors
    bases: tuple[Path, ...] = ()  # folders where relative paths may begin, the first that has the path counts

    def path(self, value: str) -> str:
        """The place of a path in the section: of `bases`, the first where it is there, else the first.

        A warning names both places where it is there twice.
        """
        wanted = os.path.expanduser(value)
        places = list(dict.fromkeys(os.path.normpath(base / wanted) for base in self.bases or (Path.cwd(),)))
        there = [place for place in places if os.path.exists(place)]
        everywhere = os.path.normpath(wanted) == os.curdir
        if len(there) > 1 and not everywhere and not os.path.samefile(*there[:2]):
            warn_once(f"{self.config_path}: {value} is there twice: {there[0]} is used, {there[1]} is not")
        return (there or places)[0]

    def set_paths(self, values: dict[str, str]) -> None:
        """Set what PATH_KEYS name from the `values` of the section. Without root_dir, or with a relative one, paths
        begin at the folder of the configuration, or else at the working directory, as in DeepCaption."""
        folder = Path(self.config_path).resolve().parent if self.config_path else Path.cwd()
        self.bases = (folder, Path.cwd())
        if root := values.get("root_dir"):
            self.root_dir = self.path(root)
            self.bases = tuple(base / os.path.expanduser(root) for base in self.bases)
        for key in PATH_KEYS:
            if values.get(key):
                setattr(self, key, self.path(values[key]))


def get_datasets(
    spec: str, config_file: str | None = None, option: str = "--dataset", images: str | None = None
) -> list[DatasetParams]:
    """The settings of every dataset named in `spec`, "a:x+b:y", in that order: sections, paths of captions, tar shards.

    `config_file` is looked for as it stands, then in ~/.config/image_captioning/, then beside the code; None means
    datasets/datasets.conf. option: the flag that errors name; images: where the images of paths lie. Raises UserError
    for a dataset that is neither (listing the known sections), a file that is not there or malformed, a section without
    `dataset_class`, and `images` without a path.
    """
    path = find_config(config_file, required=False)
    parser = _parse(path) if path else configparser.RawConfigParser()
    known = [*(section for section in parser.sections() if section != configparser.DEFAULTSECT), GENERIC]
    found, of_paths = [], 0
    for name in split_names(spec, known):
        if not name:
            raise UserError(f"{option} {spec!r}: empty name; write one dataset, or several joined by '+'")
        if name in known:
            found.append(_section(parser, name, path))
            continue
        if is_shards(name):
            found.append(DatasetParams(name, OF_SHARDS, extra={"urls": name}, option=option))
            continue
        place = None if name.partition(":")[0] in known else as_path(name)
        if place is None:
            _refuse(name, known, path, config_file, option)
        where = {"image_dir": images, "caption_path": place[0], "subset": place[1]}
        found.append(DatasetParams(name, OF_PATHS, **where, option=option))
        of_paths += 1
    if images and not of_paths and option != "--validate":
        why = "has its images in it" if is_shards(spec) else f"is a section of {path}, which says where its images are"
        raise UserError(f"--images {images}: {option} {spec} {why}")
    if images and not os.path.exists(images):
        raise UserError(f"--images: no such folder: {images}")
    return found


def _refuse(name: str, known: list[str], path: Path | None, config_file: str | None, option: str) -> None:
    """Raises UserError for a name that is neither a section nor a path."""
    if looks_like_path(name):
        raise UserError(f"{option}: no such file or folder: {name[:200]}")
    find_config(config_file)
    other = "" if config_file else "; --dataset_config_file names another file"
    raise UserError(f"{option}: unknown dataset {name[:80]!r}; {path} has: {', '.join(dict.fromkeys(known))}{other}")


def find_config(config_file: str | None, required: bool = True) -> Path | None:
    """The first place where `config_file` exists; where it exists nowhere UserError, or None if not `required`.

    A file that was asked for by another name than the default must exist even if not `required`.
    """
    wanted = Path(config_file or DEFAULT_FILE)
    user_dir = Path(os.path.expanduser("~/.config/image_captioning"))
    # In the user's folder datasets.conf may lie by itself as well as under the relative path asked for.
    places = [wanted]
    if not wanted.is_absolute():
        places += [user_dir / wanted, user_dir / wanted.name, CODE_DIR / wanted]
    for place in places:
        if os.path.isfile(place):  # unlike Path.is_file it takes names of any length
            return place
        if os.path.exists(place):
            kind = "a folder" if os.path.isdir(place) else "not a plain file"
            raise UserError(f"--dataset_config_file: {place} is {kind}")
    if required or wanted != Path(DEFAULT_FILE):
        raise UserError(f"--dataset_config_file: no such file: {', '.join(dict.fromkeys(map(str, places)))}")
    return None


def _parse(path: Path) -> configparser.RawConfigParser:
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES:,} bytes: this is no file of datasets")
    lines = read_lines(path, "--dataset_config_file")
    for number, text in enumerate(lines, 1):
        if (what := _unreadable(text)) is not None:
            raise UserError(f"{path}, line {number} has {what}")
    parser = configparser.RawConfigParser(default_section="")  # [DEFAULT] and %(...)s: see _inherited
    try:
        parser.read_string("\n".join(lines))
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


def _unreadable(line: str) -> str | None:
    """What a line has that no such file needs, and that would take long or break paths; None for a good line."""
    if "\0" in line:
        return "a NUL character"
    if len(line) > LONGEST_LINE:
        return f"more than {LONGEST_LINE:,} characters"
    return f"more than {MOST_BLANKS} blanks in a row" if re.search(rf"\S\s{{{MOST_BLANKS + 1}}}", line) else None


def _section(parser: configparser.RawConfigParser, name: str, path: Path | None) -> DatasetParams:
    values = _inherited(parser, name, path)
    if name == GENERIC:
        values.setdefault("dataset_class", "GenericDataset")
    if not values.get("dataset_class"):
        raise UserError(f"{path}: [{name}] sets no dataset_class and inherits none (CocoDataset, GenericDataset, ...)")

    params = DatasetParams(name, values.pop("dataset_class"), config_path=str(path) if path else None)
    params.subset = values.pop("subset", None) or None
    params.set_paths({key: values.pop(key, "") for key in ("root_dir", *PATH_KEYS)})
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
    here = str(path.resolve().parent if path else Path.cwd())
    references = _References(raw | {"here": here.replace("%", "%%")})
    try:
        return {key: references.filled(key) for key in raw}
    except ValueError as error:
        raise UserError(f"{path}: [{name}]: {error}") from None


class _References:
    """The values of a section with %(key)s and %% replaced, each worked out once.

    filled() raises ValueError for a single percent sign, a key that is not there, one that refers to itself, and values
    that would grow without bounds.
    """

    def __init__(self, raw: dict[str, str]):
        self.raw, self.done, self.within = raw, {}, []

    def filled(self, key: str) -> str:
        if key in self.done:
            return self.done[key]
        value = self.raw[key]
        if key in self.within or len(self.within) >= DEEPEST:
            what = "itself" if key in self.within else f"others, these to others, more than {DEEPEST} deep"
            raise ValueError(f"{value[:60]!r} refers to {what}")
        self.within.append(key)
        parts, length = [], 0
        for text, name, sign in re.findall(r"([^%]+)|%\(([^)]+)\)s|(%%?)", value):
            parts.append(text or self._sign(sign, value) if not name else self._value(name.lower(), value))
            length += len(parts[-1])
            if length > LONGEST_VALUE:
                raise ValueError(f"{key} has more than {LONGEST_VALUE:,} characters")
        self.within.pop()
        self.done[key] = "".join(parts)
        return self.done[key]

    def _value(self, name: str, value: str) -> str:
        if name not in self.raw:
            raise ValueError(f"{value[:60]!r} refers to {name!r}, which is not set")
        return self.filled(name)

    @staticmethod
    def _sign(sign: str, value: str) -> str:
        if sign == "%":
            raise ValueError(f"{value[:60]!r} has a single '%'; write %% for a plain one")
        return "%"
