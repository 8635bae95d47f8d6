"""The parser of every script's command line. A mistake is one line that names the remedy, with exit status 2.

parser = Parser(__doc__, settings=(ModelConfig,))
add = parser.group("model")
add("--embed_size")                                          # type, default and help are those of the setting
add("--batch_size", default=32, help="images in a batch")    # no setting: the type is that of the default
args = parser.parse_args()
args.embed_size        # 256
args.typed_flags       # {} where nobody typed --embed_size, {"embed_size": 256} where somebody did
"""

import argparse
import dataclasses
import difflib
import math
import os
import sys
import time
import typing
from collections.abc import Callable
from functools import partial

from captioning.config_file import read_settings
from captioning.cores import process_count, process_number
from captioning.errors import UserError, message_line  # also: from here on a signal ends the script without a traceback

VERSION = "1.0"  # of the toolkit


class Parser(argparse.ArgumentParser):
    """An argparse parser that refuses abbreviated flags and knows which flags were typed.

    description: what --help begins with. settings: dataclasses; a flag with the name of one of their fields has its
    default, its type and what its metadata has for argparse under "flag". The help shows defaults, unless its text
    speaks of one. first_use: names of the flags that --help lists, while --help_all lists all; without it --help does.
    processes: whether several processes that torchrun started can share the work of the script; others are refused.
    options: further arguments of argparse.ArgumentParser.
    """

    def __init__(self, description: str, settings=(), first_use: tuple[str, ...] = (), processes=False, **options):
        fields = [field for part in settings for field in dataclasses.fields(part)]
        self.fields = {field.name: field for field in fields if field.default is not dataclasses.MISSING}
        self.defaults: dict[str, object] = {}
        self.first_use = first_use
        self.processes = processes
        self.file_flag: str | None = None  # the flag that names a file of settings, in place of typed ones
        self.typed_only: tuple[str, ...] = ()  # flags that such a file cannot give
        self.place = ""  # what errors begin with
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, **options}
        super().__init__(description=description, allow_abbrev=False, **options)
        self.add_argument("--version", action=ShowVersion, nargs=0, default=argparse.SUPPRESS, help="show it and exit")
        if first_use:
            self.add_argument(
                "--help_all", action=HelpAll, nargs=0, default=argparse.SUPPRESS, help="show all flags and exit"
            )

    def add_argument(self, *names, **options) -> argparse.Action:
        return self._add(super().add_argument, *names, **options)

    def group(self, title: str) -> Callable[..., argparse.Action]:
        """A function like `add_argument` that adds flags under the heading `title`."""
        return partial(self._add, self.add_argument_group(title).add_argument)

    def _add(self, add, *names, **options) -> argparse.Action:
        field = self.fields.get(names[0].lstrip("-"))
        if field is not None:
            options = {"default": field.default, **of_type(field.type), **field.metadata.get("flag", {}), **options}
        elif type(options.get("default")) in (int, float) and "action" not in options:
            options = {**of_type(type(options["default"])), **options}
        if "action" not in options and "choices" not in options:
            checked = text_or_nothing if options.get("default") == "" else text
            options["type"] = {int: whole_number, float: number, None: checked}.get(
                options.get("type"), options.get("type")
            )
        action = add(*names, **options)
        if action.default is argparse.SUPPRESS:  # --help
            return action
        if action.default and action.default is not True and action.help and "default" not in action.help:
            value = action.default
            action.help += f" (default: {f'{value:g}' if isinstance(value, float) else value})"
        repeated = action.nargs == "*" and not action.option_strings
        self.defaults[action.dest] = [] if repeated and action.default is None else action.default
        action.default = argparse.SUPPRESS  # parsing leaves in the namespace what was typed, and nothing else
        return action

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """The flags by name, defaults filled in; `typed_flags` of it is a dict of those that were typed."""
        words = list(sys.argv[1:] if args is None else args)
        if process_count() > 1 and not self.processes:
            self._refuse_processes()
        self._refuse_unknown_flags(words)
        found, unknown = self.parse_known_args(words, namespace)
        if unknown:
            remedy = "--help shows what is expected"
            if unknown[0].startswith("-") and os.path.lexists(unknown[0]):
                remedy = f"the file of this name is written ./{unknown[0]}"
            self.error(f"unexpected argument {unknown[0]} ({remedy})")
        typed = vars(found)
        if self.file_flag and typed.get(self.file_flag):
            typed = self.from_file(typed[self.file_flag]) | typed
        typed = {name: at_home(value) for name, value in typed.items()}
        return argparse.Namespace(**{**self.defaults, **typed}, typed_flags=typed)

    def from_file(self, path: str) -> dict[str, object]:
        """The flags that a file of settings gives, by name, as if they had been typed; see `read_settings`.

        A value that is the default of its flag, and null, count as not given. Ends the script where a name is no flag,
        or a flag does not take its value.
        """
        path, words = at_home(path), []
        try:
            table = read_settings(path, f"--{self.file_flag}")
        except UserError as error:
            self.error(str(error))
        self.place = f"--{self.file_flag} {path}: "
        known = [name for name in self.defaults if name not in self.typed_only and name != self.file_flag]
        for name, value in table.items():
            if name in self.typed_only:
                self.error(f"{name} is for the command line: leave it out of the file")
            if name not in known:
                near = nearest(name, known)
                self.error(f"unknown setting {clipped(name)}{f'; did you mean {near}?' if near else ''}")
            if value is not None and (value != self.defaults[name] or type(value) is not type(self.defaults[name])):
                words += self._words(name, value)
        found, _ = self.parse_known_args(words)
        self.place = ""
        return vars(found)

    def _words(self, name: str, value) -> list[str]:
        """What would be typed to give the flag `name` the value of a file."""
        action, several = self._option_string_actions[f"--{name}"], value if isinstance(value, list) else [value]
        switch = action.nargs == 0
        if type(value) is bool and (switch or (value and action.const is not None)):
            return [f"--{name}"] if value else []
        if switch or not several or not all(type(one) in (str, int, float) for one in several):
            self.error(f"{name} is {clipped(str(value))}, not {'true or false' if switch else 'a value that it takes'}")
        if action.nargs == "+":
            return [f"--{name}", *map(str, several)]
        if isinstance(value, list):
            self.error(f"{name} takes one value, not a list")
        return [f"--{name}={value}"]

    def at_least(self, least: float, values: argparse.Namespace, *names: str) -> None:
        """End the script where a flag of `names` has a value below `least`."""
        for name in names:
            value = getattr(values, name)
            if value is not None and value < least:
                self.error(f"--{name} {value}: must be at least {least}")

    def one_device(self, args: argparse.Namespace) -> None:
        """End the script where --cpu and --device name two devices."""
        if args.cpu and args.device not in (None, "cpu"):
            self.error(f"--cpu and --device {args.device} exclude each other")

    def _refuse_processes(self) -> None:
        """End the script, which each process would run from beginning to end. The first process says so."""
        if process_number() > 0:
            time.sleep(1)  # torchrun ends all when one ends: first let the first speak
            self.exit(2)
        self.error(f"it runs as one process, but torchrun started {process_count()} (WORLD_SIZE): run it by itself")

    def at_most(self, most: float, values: argparse.Namespace, *names: str) -> None:
        """End the script where a flag of `names` has a value above `most`."""
        for name in names:
            value = getattr(values, name)
            if value is not None and value > most:
                self.error(f"--{name} {value}: must be at most {most:,}")

    def _refuse_unknown_flags(self, words: list[str]) -> None:
        """Before argparse looks: it would rather complain that the flag which was meant is missing."""
        flags, lists = list(self._option_string_actions), "--help_all" if self.first_use else "--help"
        for before, word in zip(["", *words], words[: words.index("--")] if "--" in words else words):
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in flags:
                name, word = name[:60], word[:60]
                if before in flags and self._option_string_actions[before].nargs is None:
                    self.error(f"{before} needs a value; one that begins with - is written {before}={word}")
                near = nearest(name, flags)
                self.error(f"unknown flag {name}{f'; did you mean {near}?' if near else ''} ({lists} lists the flags)")

    def format_help(self) -> str:
        if not self.first_use:
            return super().format_help()
        shown = ("help", "help_all", "version", *self.first_use)
        hidden = [action for action in self._actions if action.dest not in shown]
        helps = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        text = super().format_help()
        for action, help in zip(hidden, helps):
            action.help = help
        return f"{text}\n{len(hidden)} more flags: --help_all lists all of them\n"

    def format_full_help(self) -> str:
        """The help of all flags."""
        return super().format_help()

    def error(self, message: str):
        """Print `message` as one line of bounded length and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message_line(self.place + message)}\n")


def add_device(add: Callable[..., argparse.Action]) -> None:
    """Add --device and --cpu, which `devices.choose_device` takes. add: as `Parser.group` gives it."""
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ... (default: cuda or mps where there is one)")
    add("--cpu", action="store_true", help="the same as --device cpu")


class HelpAll(argparse.Action):
    """--help_all: print the help of all flags and exit."""

    def __call__(self, parser, namespace, values, option_string=None):
        sys.stdout.write(parser.format_full_help())
        parser.exit()


class ShowVersion(argparse.Action):
    """--version: print the version of the toolkit, of torch and of Python, and exit."""

    def __call__(self, parser, namespace, values, option_string=None):
        import platform
        from importlib import metadata

        try:
            torch = f"torch {metadata.version('torch')}"  # without importing it
        except metadata.PackageNotFoundError:
            torch = "no torch"
        print(f"{parser.prog} {VERSION} ({torch}, Python {platform.python_version()})")
        parser.exit()


def nearest(name: str, flags: list[str]) -> str | None:
    """The flag that `name` abbreviates or misspells, or None where none is like it."""
    longer = [flag for flag in flags if flag.startswith(name)]
    found = difflib.get_close_matches(name, longer or flags, 1, 0.0 if longer else 0.6)
    return found[0] if found else None


def at_home(value):
    """A value of a flag with each `~` and `~name` that begins a path replaced by the home folder.

    Shells leave them as they are in `--output_file=~/x` and behind the commas of a list.
    """
    if isinstance(value, list):
        return [at_home(one) for one in value]
    return ",".join(map(os.path.expanduser, value.split(","))) if isinstance(value, str) and "~" in value else value


def whole_number(word: str) -> int:
    """The number that `word` writes. Raises ArgumentTypeError where it is none, or beyond 64 bits."""
    try:
        value = int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{clipped(word)} is not a whole number") from None
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{clipped(word)} is too large a number")
    return value


def number(word: str) -> float:
    """The finite number that `word` writes. Raises ArgumentTypeError for any other word."""
    try:
        value = float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{clipped(word)} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{clipped(word)} is not a finite number")
    return value


def text(word: str) -> str:
    """`word`. Raises ArgumentTypeError where it is empty, as a shell's variable that was never set is."""
    if not word:
        raise argparse.ArgumentTypeError("its value is empty; leave the flag out instead")
    return text_or_nothing(word)


def text_or_nothing(word: str) -> str:
    """`word`. Raises ArgumentTypeError where it holds a NUL character, which no name of a file does."""
    if "\0" in word:
        raise argparse.ArgumentTypeError(f"{clipped(word)} holds a NUL character")
    return word


def several_times(word: str) -> str:
    """`word`, such as "1,2.5". Raises ArgumentTypeError where a part is no number above 0 and up to 1,000."""
    try:
        sound = all(0 < float(part) <= 1000 for part in word.split(","))
    except ValueError:
        sound = False
    if not sound:
        raise argparse.ArgumentTypeError(f"{clipped(word)}: numbers above 0 and up to 1,000 with commas, such as 1,3")
    return word


def clipped(word: str) -> str:
    """`word` in quotes, at most 60 characters of it."""
    return repr(word if len(word) <= 60 else f"{word[:57]}...")


def of_type(kind) -> dict:
    """What argparse must know of values of type `kind`: `int | None`, `bool`, `list[str]`, `Literal["a", "b"]`."""
    if type(None) in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    if kind is bool:
        return {"action": "store_true"}
    if typing.get_origin(kind) is typing.Literal:
        return {"choices": typing.get_args(kind)}
    if typing.get_origin(kind) is list:
        return {"nargs": "+"}
    return {"type": kind, "metavar": "N" if kind is int else "X"} if kind in (int, float) else {}
