"""What a person may type next: the last lines of a script that has done its work.

print_next(["infer.py", "--model", "models/my run/best.model", "photo.jpg"])

    next:
      ./infer.py --model 'models/my run/best.model' photo.jpg
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from captioning.errors import shown


def print_next(*commands: Sequence) -> None:
    """Print the commands, each the name of a script and its words, as a shell reads them."""
    print("next:")
    for script, *words in commands:
        print(shown(f"  {script_command(script)} {shlex.join(map(str, words))}"))


def script_command(script: str) -> str:
    """How another script is called from where this one was: with the same folder before its name."""
    typed = sys.argv[0]
    folder = typed[: len(typed) - len(Path(typed).name)]
    return shlex.quote(f"{folder}{script}") if folder else f"python {script}"  # `python train.py` names no folder


def config_words(config_file: str | None) -> list[str]:
    """The flag for the file of the datasets, where one was named."""
    return ["--dataset_config_file", config_file] if config_file else []
