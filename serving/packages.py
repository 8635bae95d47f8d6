"""Packages that only some work needs: which of them are there, and what to type where one is not."""

from collections.abc import Iterable
from importlib.util import find_spec

from captioning.errors import UserError

INSTALLED_AS = {"python_multipart": "python-multipart"}  # where pip has another name for what is imported


def require_packages(what: str, modules: Iterable[str]) -> None:
    """Raises UserError, with the line to type, where one of `modules` that `what` imports is not installed."""
    missing = [INSTALLED_AS.get(name, name) for name in modules if not _installed(name)]
    if missing:
        raise UserError(f"{what} needs packages that are not installed: pip install {' '.join(missing)}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # an import hook hides it, or sys.modules has None in its place
        return False
