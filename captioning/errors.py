"""What every script does the same way: errors of one line and exit statuses.

A script ends with

    if __name__ == "__main__":
        sys.exit(run(main, ARGS))

and raises `UserError` for whatever a person can mend: a wrong path, an unknown name, a damaged file. Such an
error is one line on stderr and exit status 2. Work that met bad items and went on returns status 1 from `main`.
"""

import os
import sys
from pathlib import Path

# Threads of torch that wait for work spin for microseconds only, then sleep: on a machine that others use too, the
# milliseconds of the default make it many times slower. It counts only if set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


class UserError(ValueError):
    """A person's mistake. The message is one line that names the option or file, its value and the remedy."""


def run(main, args) -> int:
    """Call `main(args)`; what it returns or raises becomes an exit status (0 well, 1 some items failed, 2 error)."""
    try:
        return main(args) or 0
    except UserError as error:
        print(f"{script_name()}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{script_name()}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) went away: that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def one_line(error) -> str:
    """A library's error as a line of at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (AssertionError, KeyError, TypeError, IndexError)):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 160 else text[:157] + "..."


def script_name() -> str:
    return Path(sys.argv[0]).name
