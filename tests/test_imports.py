"""Who may import whom, and that scripts answer before anything heavy is imported."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCRIPTS = {"resize", "build_vocab", "extract_features", "train", "infer", "score", "plot_stats", "show_attention"}
SCRIPTS |= {"datasets_compare", "model_info"}
SCRIPTS |= {"build_cached_words", "average_models"}

# Module -> the project's modules that it may import, lowest first; all may import common, scripts any module.
MAY_IMPORT = {
    "common": "",
    "image_zips": "",
    "images": "image_zips",
    "tensor_resize": "",
    "vocabulary": "",
    "dataset_config": "",
    "picsom_files": "",
    "feature_handles": "",
    "feature_readers": "feature_handles picsom_files",
    "features": "feature_handles feature_readers",
    "encoder_weights": "",
    "flat_encoders": "encoder_weights",
    "folding": "",
    "fusing": "",
    "side_by_side": "",
    "caffe_resnet": "",
    "encoder": "caffe_resnet encoder_weights flat_encoders folding fusing",
    "photo_views": "encoder",
    "products": "",
    "recurrence": "products",
    "fast_steps": "products recurrence vocabulary",
    "decoder": "fast_steps products recurrence vocabulary",
    "paragraph_text": "",
    "model_config": "",
    "hierarchical": "decoder model_config recurrence",
    "decoding": "vocabulary",
    "paragraphs": "decoder decoding hierarchical paragraph_text recurrence vocabulary",
    "feature_captions": "decoding",
    "word_probabilities": "vocabulary",
    "lemma_rules": "",
    "losses": "products recurrence",
    "ptb_tokenizer": "",
    "coco_scorers": "",
    "scoring": "coco_scorers ptb_tokenizer",
    "cached_words": "ptb_tokenizer scoring",
    "cider_reward": "cached_words ptb_tokenizer vocabulary",
    "self_critical": "cider_reward decoding recurrence vocabulary",
    "self_critical_losses": "",
    "checkpoint": "",
    "teacher_forcing": "decoder",
    "dataset_items": "dataset_config images image_zips",
    "picsom_dataset": "dataset_config dataset_items picsom_files",
    "story_dataset": "dataset_config dataset_items",
    "video_datasets": "dataset_config dataset_items images",
    "visual_genome_regions": "dataset_config dataset_items",
    "visual_genome_paragraphs": "dataset_config dataset_items paragraph_text",
    "caption_datasets": "dataset_config dataset_items images picsom_dataset story_dataset video_datasets "
    "visual_genome_paragraphs visual_genome_regions",
    "photo_loading": "dataset_items images image_zips",
    "batch_sampler": "",
    "data_loader": "vocabulary feature_readers features caption_datasets batch_sampler photo_loading paragraph_text",
    "devices": "",
    "deepcaption_files": "checkpoint encoder encoder_weights flat_encoders model_config vocabulary",
    "loaded_model": "features model_config",
    "model": "deepcaption_files model_config encoder decoder hierarchical decoding checkpoint photo_loading recurrence "
    "side_by_side teacher_forcing vocabulary feature_captions paragraphs photo_views",
    "paragraph_training": "decoder losses model paragraph_text teacher_forcing",
    "model_inputs": "caption_datasets data_loader features model_config",
    "self_critical_training": "cider_reward dataset_items decoding losses model self_critical self_critical_losses",
    "distillation": "loaded_model model model_config",
    "compiling": "model vocabulary",
    "training_log": "",
    "feature_cache": "caption_datasets data_loader devices encoder feature_handles feature_readers model photo_loading",
    "validation": "data_loader feature_cache loaded_model model",
    "model_average": "checkpoint encoder vocabulary",
    "training": "decoding devices distillation losses model paragraph_training scoring self_critical_training "
    "teacher_forcing",
    "result_files": "images",
    "attention_figures": "",
    "train_flags": "",
    "infer_flags": "",
    "run_folder": "checkpoint model training",
    "reports": "model_config model run_folder vocabulary",
}
HEAVY = {"torch", "torchvision", "timm", "numpy", "PIL", "matplotlib", "nltk", "lmdb", "pycocotools", "pycocoevalcap"}
FILES = {path.stem: path for path in ROOT.glob("*.py")}


def imports(path: Path) -> set[str]:
    """The first part of every name imported anywhere in a file, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import, but the toolkit is a folder of scripts"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("name", sorted(FILES))
def test_modules_import_what_the_table_allows(name):
    project = imports(FILES[name]) & set(FILES)
    if name in SCRIPTS:
        assert not project & SCRIPTS, "a script imports modules, never scripts"
        return
    assert name in MAY_IMPORT, f"{name}.py is neither among the scripts nor in the table of modules: add it"
    extra = project - set(MAY_IMPORT[name].split()) - {"common"}
    assert not extra, f"{name}.py imports {', '.join(sorted(extra))}, which the table does not allow"


def test_the_table_has_no_circles():
    order = list(MAY_IMPORT)
    for name, allowed in MAY_IMPORT.items():
        later = [other for other in allowed.split() if order.index(other) >= order.index(name)]
        assert not later, f"{name} may import {later}, which stand above it"


@pytest.mark.parametrize(
    "name",
    ["images", "vocabulary", "dataset_config", "common", "caption_datasets", "dataset_items", "batch_sampler"]
    + ["image_zips", "picsom_files", "picsom_dataset", "story_dataset", "video_datasets", "visual_genome_regions"]
    + ["paragraph_text", "visual_genome_paragraphs"],
)
def test_modules_that_need_no_torch(name):
    assert not imports(FILES[name]) & {"torch", "torchvision", "timm"}


ASK = """
import json, runpy, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
heavy, found = set(sys.argv[1].split(",")), {}
for script in sys.argv[2:]:
    for flag in ("--help", "--no_such_flag"):
        sys.argv, out, status = [script, flag], StringIO(), None
        try:
            with redirect_stdout(out), redirect_stderr(out):
                runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        found[f"{script} {flag}"] = (status, out.getvalue(), sorted(heavy & set(sys.modules)))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers():
    scripts = [FILES[name].name for name in sorted(SCRIPTS & set(FILES))]
    command = [sys.executable, "-c", ASK, ",".join(sorted(HEAVY)), *scripts]
    return json.loads(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True).stdout)


@pytest.mark.parametrize("name", sorted(SCRIPTS & set(FILES)))
def test_a_script_answers_before_anything_heavy_is_imported(answers, name):
    status, text, heavy = answers[f"{name}.py --help"]
    assert status == 0 and text.startswith("usage:") and heavy == []
    status, text, heavy = answers[f"{name}.py --no_such_flag"]
    assert status == 2 and "usage:" in text and "error:" in text and heavy == []


@pytest.mark.parametrize("name", sorted(SCRIPTS & set(FILES)))
def test_a_script_can_be_run_as_the_readme_types_it(name):
    path = FILES[name]
    assert path.read_text(encoding="utf-8").startswith('#!/usr/bin/env python3\n"""')
    assert path.stat().st_mode & 0o111, f"chmod +x {path.name}"
