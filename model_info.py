#!/usr/bin/env python3
"""Show what is in a model file, of this toolkit or of DeepCaption.

    ./model_info.py models/mymodel/best.model
    ./model_info.py models/*/best.model --json                       # a list, for other programs
    ./model_info.py models/mymodel/best.model --dump_vocabulary -    # its words, one a line; or vocab.json, .pkl, .txt
    ./model_info.py models/mymodel/best.model --verbose              # every tensor too

No code in a file is run. Files of DeepCaption are shown even where they cannot be loaded as models.
"""

import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from captioning.command_line import Parser
from captioning.errors import UserError, run, shown
from captioning.files import require_model_file, sha256_of


def parse_args(argv=None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="model files")
    add("--dump_vocabulary", metavar="FILE", help="write the vocabulary to a .json, .pkl or .txt file; - prints it")
    add("--json", action="store_true", help="print JSON instead of text (default: text)")
    add("--verbose", action="store_true", help="list every tensor (default: the number of weights only)")
    args = parser.parse_args(argv)
    if args.dump_vocabulary and len(args.models) > 1:
        parser.error("--dump_vocabulary takes one model")
    if args.dump_vocabulary == "-" and args.json:
        parser.error("--dump_vocabulary - and --json exclude each other: both print")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports of packages, so that --help and mistakes answer at once

from captioning.config import ModelConfig
from vocabulary import Vocabulary

NO_SETTINGS = ("encoder", "decoder", "optimizer", "vocab", "command_history")


def describe(path) -> tuple[dict, Vocabulary | None]:
    """What is in the file as plain types, and its vocabulary. Raises UserError where the file is missing or damaged."""
    require_model_file(path)
    from captioning.checkpoint import command_history  # torch, after the mistake that needs none of it
    from captioning.deepcaption import models as deepcaption_files
    from model import read_model_file

    old = deepcaption_files.read(path) if deepcaption_files.is_deepcaption_file(path) else None
    try:
        contents = read_model_file(path)
    except UserError as error:
        if old is None:
            raise
        contents = {"state": {}, "problem": str(error), "made_by": "DeepCaption"}
        contents |= {"epoch": old.get("epoch"), "history": old.get("command_history") or []}
        if old.get("vocab") is not None:
            contents["vocabulary"] = Vocabulary.from_deepcaption(old["vocab"]).to_dict()
    state = contents["state"] or {f"{part}.{k}": v for part in ("encoder", "decoder") for k, v in old[part].items()}
    vocabulary = Vocabulary.from_dict(contents["vocabulary"]) if "vocabulary" in contents else None
    facts = vocabulary and {name: getattr(vocabulary, name) for name in ("tokenizer", "threshold", "dataset")}
    info = {
        "file": str(path),
        "bytes": Path(path).stat().st_size,
        "sha256": sha256_of(path),
        "converted_from": contents.get("converted_from"),
        "made_by": contents.get("made_by", "DeepCaption reborn"),
        "problem": contents.get("problem"),
        "epoch": contents.get("epoch"),
        "weights": count_weights(state),
        "config": contents.get("config"),
        "settings": contents.get("settings") if old is None else settings(old),
        "averaged": contents.get("averaged"),
        "parts": contents.get("parts"),
        "vocabulary": vocabulary and {"words": len(vocabulary), **facts},
        "versions": contents.get("versions"),
        "stats": contents.get("stats"),
        "beam_size": contents.get("beam_size"),
        "length_penalty": contents.get("length_penalty"),
        "no_repeat_words": contents.get("no_repeat_words"),
        "calibration": contents.get("calibration"),
        "training_state": "training" in contents or bool(old and old.get("optimizer")),
        "history": command_history(contents),
        "tensors": {name: [str(value.dtype).removeprefix("torch."), *value.shape] for name, value in state.items()},
    }
    return {name: value for name, value in info.items() if value is not None}, vocabulary


def count_weights(state: dict) -> dict[str, int]:
    """Numbers of weights by part of the model and in all; a matrix that two layers share counts once."""
    from captioning.checkpoint import first_names

    counts, first = {"total": 0}, first_names(state)
    for name, value in state.items():
        if not value.is_floating_point() or first[name] != name:
            continue
        part = ".".join(name.split(".")[:2])
        counts[part] = counts.get(part, 0) + value.numel()
        counts["total"] += value.numel()
    return counts


def settings(old: dict) -> dict:
    """What DeepCaption noted beside weights and vocabulary, in types that JSON knows."""
    found = {}
    for name, value in old.items():
        if name not in NO_SETTINGS:
            value = value._asdict() if hasattr(value, "_asdict") else value
            known = isinstance(value, str | int | float | bool | list | tuple | dict | None)
            found[name] = value if known else f"({type(value).__name__})"
    return found


def lines(info: dict, verbose: bool) -> list[str]:
    """`info` for people."""
    rows = [("file", f"{info['file']}, {info['bytes'] / 1e6:,.2f} MB"), ("sha256", info["sha256"])]
    rows.append(("made by", info["made_by"] + (f", epoch {info['epoch']}" if info.get("epoch") else "")))
    if "converted_from" in info:
        rows.append(("converted from", "{file}, sha256 {sha256}".format(**info["converted_from"])))
    if "problem" in info:
        rows.append(("problem", info["problem"]))
    parts = ", ".join(f"{name} {count:,}" for name, count in info["weights"].items() if name != "total")
    rows.append(("weights", f"{info['weights']['total']:,} ({parts})"))
    if "config" in info:
        config = dict(info["config"])
        for name in ("features", "persist_features"):
            for spec in config.pop(name):
                rows.append((name.replace("_", " "), spec_line(spec)))
        idle = ModelConfig.from_dict(info["config"]).idle()
        rows += [(name.replace("_", " "), value) for name, value in config.items() if value and name not in idle]
    else:
        rows += [(name.replace("_", " "), value) for name, value in info["settings"].items()]
    if "vocabulary" in info:
        facts = info["vocabulary"]
        source = f" from {facts['dataset']}, threshold {facts['threshold']}" if facts["dataset"] else ""
        rows.append(("vocabulary", f"{facts['words']:,} words{source}, tokenizer {facts['tokenizer']}"))
    if "versions" in info:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in info["versions"].items())))
    if info.get("stats"):
        figures = ((name, value) for name, value in info["stats"].items() if value is not None)
        rows.append(("statistics", ", ".join(f"{name} {value:.4g}" for name, value in figures)))
    if beams := info.get("beam_size"):
        rows.append(("beams", str(beams)))
    if penalty := info.get("length_penalty"):
        rows.append(("length penalty", f"{penalty:g}"))
    if info.get("no_repeat_words"):
        rows.append(("repeated words", "no word of content comes twice in a sentence"))
    if "calibration" in info:
        rows.append(("calibration", calibration_line(info["calibration"], info["file"])))
    if "config" in info:
        rows += settings_rows(info, verbose)
    rows.append(("training state", "yes: optimizer and position" if info["training_state"] else "no"))
    rows += [("command", command) for command in info["history"]]
    rows += [(name, f"{kind} {tuple(shape)}") for name, (kind, *shape) in info["tensors"].items()] if verbose else []
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {shown(value)}" for name, value in rows]


def settings_rows(info: dict, verbose: bool) -> list[tuple[str, str]]:
    """The settings of the run that made the model: those that are no defaults, or with `verbose` all.

    Of a mean those that its parts share; then each part, with the settings in which they differ.
    """
    from training.settings import default_settings

    defaults = {f"--{name}": value for name, value in default_settings().items()}

    def line(settings: dict) -> str:
        wanted = [(k, v) for k, v in settings.items() if verbose or (k in defaults and v not in (defaults[k], None))]
        return " ".join(k if v is True else f"{k} {shown_value(v)}" for k, v in wanted)

    rows = [("settings", text)] if (text := line(info.get("settings") or {})) else []
    averaged = info.get("averaged") or []
    parts = info.get("parts") or [{}] * len(averaged)
    for (path, weight), own in zip(averaged if len(averaged) > 1 else (), parts):
        rows.append(("mean of", f"{path}, weight {weight:g}: {line(own)}".rstrip(": ")))
    return rows


def shown_value(value) -> str:
    """The value of a setting as it would be typed."""
    return shlex.join(map(str, value if isinstance(value, list) else [value]))


def calibration_line(state: dict, path: str) -> str:
    from captioning.scoring.calibration import Calibration

    found = Calibration.from_dict(state, path)
    good = f"{found.good:.0%} of {found.images:,} captions have a CIDEr of {found.threshold:g} or more"
    return f"{good}; confidences are off by {found.error:.3f}; {found.beam_size} beams"


def spec_line(spec: dict) -> str:
    provenance = (spec.get("maker") or {}).get("extractor")
    origin = "a file" if spec["external"] else "within the model"
    origin += f", made by {provenance}" if spec["external"] and provenance else ""
    size, *grid = spec["shape"]
    shape = "x".join(map(str, spec["shape"])) if size else "counted with the one before"
    if grid == [0, 1]:
        shape = f"regions of {size}, as many as an image has"
    return f"{spec['name']}: {shape} ({origin})"


def main(args) -> int:
    found = []
    for path in args.models:
        info, vocabulary = describe(path)
        found.append(info)
        if args.dump_vocabulary:
            if vocabulary is None:
                raise UserError(f"--dump_vocabulary: {path} holds no vocabulary that can be read")
            if args.dump_vocabulary == "-":
                print("\n".join(vocabulary.words))
                return 0
            vocabulary.save(args.dump_vocabulary)
            print(f"{len(vocabulary)} words written to {args.dump_vocabulary}", file=sys.stderr)
    if args.json:
        for info in found if not args.verbose else ():
            del info["tensors"]
        print(json.dumps(found, indent=2))
    else:
        print("\n\n".join("\n".join(lines(info, args.verbose)) for info in found))
    return 0


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
