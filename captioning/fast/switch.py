"""The switch of everything in this folder: CAPTIONING_FAST=0 in the environment leaves the plain paths."""

import os

enabled = os.environ.get("CAPTIONING_FAST", "1") != "0"
