"""The switch of everything in this folder: CAPTIONING_FAST=0 in the environment leaves the plain paths."""

import contextlib
import os

enabled = os.environ.get("CAPTIONING_FAST", "1") != "0"


@contextlib.contextmanager
def plain_paths():
    """Within it the plain paths are taken, which can be traced. No other thread may compute meanwhile."""
    global enabled
    before, enabled = enabled, False
    try:
        yield
    finally:
        enabled = before
