"""Packages that only some work needs: which of them are there, and what to type where one is not."""

from collections.abc import Iterable

from captioning.errors import UserError, is_installed

INSTALLED_AS = {"python_multipart": "python-multipart"}  # where pip has another name for what is imported


def require_packages(what: str, modules: Iterable[str]) -> None:
    """Raises UserError, with the line to type, where one of `modules` that `what` imports is not installed."""
    missing = [INSTALLED_AS.get(name, name) for name in modules if not is_installed(name)]
    if missing:
        raise UserError(f"{what} needs packages that are not installed: pip install {' '.join(missing)}")
