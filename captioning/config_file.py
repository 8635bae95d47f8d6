"""Files of settings: a table of names and values, in JSON or, where the package PyYAML is installed, in YAML.

{"batch_size": 64, "attention": "soft", "load_model": ["a.model", "b.model"]}
"""

from collections import Counter
from pathlib import Path

from captioning.errors import UserError, one_line
from captioning.files import expect, read_bytes, read_json

YAML = (".yaml", ".yml")


def read_settings(path: str, option: str) -> dict[str, object]:
    """The settings in a file by their names, YAML where its ending says so. `option` names the flag in errors.

    Raises UserError where the file cannot be read or is no table, and for YAML without the package.
    """
    if Path(path).suffix.lower() not in YAML:
        return expect(read_json(path, option), dict, f"{option}: {path}")
    try:
        import yaml
    except ImportError as error:
        raise UserError(f"{option} {path}: YAML needs the package PyYAML: pip install pyyaml; or give JSON") from error
    content = read_bytes(path, option)
    try:
        table = yaml.safe_load(content)
        _refuse_repeats(yaml.compose(content, yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{option}: {path} is not valid YAML: {one_line(error)}") from error
    for name in expect(table, dict, f"{option}: {path}"):
        expect(name, str, f"{option}: {path}", "a name")
    return table


def _refuse_repeats(root) -> None:
    """Raises ValueError where the table `root`, a node of PyYAML, has a name twice; PyYAML takes the last value."""
    names = [name.value for name, _ in root.value] if root is not None and root.id == "mapping" else []
    if repeated := [name for name, count in Counter(map(str, names)).items() if count > 1]:
        raise ValueError(f"it has the name {repeated[0]!r} twice")
