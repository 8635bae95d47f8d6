"""Mistakes that need no torch to be seen are answered before torch is imported: one line, status 2."""

import json
import os
import subprocess
import sys

import pytest
from running import ROOT

ASK = """
import json, runpy, sys
from contextlib import redirect_stderr
from io import StringIO
found = []
for command in json.loads(sys.argv[1]):
    sys.argv, err, status = command, StringIO(), None
    try:
        with redirect_stderr(err):
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    found.append((status, err.getvalue(), sorted({"torch", "torchvision", "timm", "pycocoevalcap"} & set(sys.modules))))
print(json.dumps(found))
"""
COMMANDS = {
    "infer.py gone.jpg": "no such image: gone.jpg",
    "infer.py --image_dir gone": "no such image folder: gone",
    "infer.py --dataset gone:x": "unknown dataset",
    "infer.py photo.png --model gone.model": "no such model file: gone.model",
    "infer.py photo.png --weights gone.pth": "--weights: no such file: gone.pth",
    "infer.py photo.png --ext_features gone.npy": "no such feature file: gone.npy",
    "infer.py photo.png --ext_persist_features gone.lmdb": "no such feature file: gone.lmdb",
    "infer.py photo.png --output_file photo.png/x.json": "--output_file",
    "infer.py photo.png --html photo.png/x.html": "--html",
    "infer.py photo.png --vocab gone.json": "gone.json",
    "infer.py photo.png --lemma_pos_rules gone.txt": "gone.txt",
    "infer.py photo.png --output_file x.csv --model damaged --resume --attention_output x.npz": "cannot be resumed",
    "show_attention.py gone.jpg": "no such image: gone.jpg",
    "show_attention.py photo.png --model gone.model": "no such model file: gone.model",
    "show_attention.py photo.png --output photo.png/x.png": "--output",
    "show_attention.py photo.png --weights gone.pth": "--weights: no such file: gone.pth",
    "extract_features.py --image_dir gone": "no such image folder: gone",
    "extract_features.py --dataset gone:x": "unknown dataset",
    "extract_features.py --image_dir . --weights gone.pth": "no such file: gone.pth",
    "extract_features.py --image_dir . --output_file photo.png/x.npy": "--output_file",
    "extract_features.py --image_dir . --output_file photo.png": "photo.png exists: --force replaces it",
    "train.py --dataset gone:x": "unknown dataset 'gone:x'",
    "train.py --dataset generic --validate gone:x": "--validate: unknown dataset 'gone:x'",
    "train.py --dataset generic --validate +": "--validate '+': empty name",
    "train.py --dataset generic --weights gone.pth": "--weights: no such file: gone.pth",
    "train.py --dataset generic --weights .": "--weights: is a folder, not a file: .",
    "train.py --dataset generic --self_critical_from_epoch 1 --cached_words gone.npz": "--cached_words: no such file",
    "train.py --dataset generic --features resnet152,gone.npy": "--dataset generic: no such feature file: gone.npy",
    "train.py --dataset generic --features vgg16 --persist_features gone.h5": "no such feature file: gone.h5",
    "train.py --dataset generic --dataset_config_file gone.conf": "--dataset_config_file: no such file: gone.conf",
    "train.py --dataset generic --load_model gone.model": "no such model file: gone.model",
    "train.py --dataset generic --distill gone.model": "no such model file: gone.model",
    "train.py --validate generic --validate_only --load_model gone.model": "no such model file: gone.model",
    "train.py --dataset generic --vocab gone.json": "gone.json",
    "train.py --dataset generic --model_path photo.png/models": "--model_path: cannot make the folder photo.png/models",
    "train.py --dataset generic --output_root photo.png": "--model_path: cannot make the folder photo.png/models",
    "train.py --dataset generic --dropout 1": "--dropout 1.0: from 0 to below 1",
    "score.py gone.json --ground_truth captions.json": "results: no such file: gone.json",
    "score.py results.json --ground_truth gone.json": "--ground_truth: no such file: gone.json",
    "score.py results.json --ground_truth captions.json --output photo.png/x.json": "--output",
    "score.py results.json --ground_truth captions.json --scoring ciderd --cached_words gone.npz": "--cached_words: no",
    "average_models.py photo.png --output n.model --greedy --dataset gone:x": "--dataset: unknown dataset 'gone:x'",
    "average_models.py photo.png --output n.model --encoder_weights gone.pth": "--encoder_weights: no such file",
    "average_models.py gone.model --output new.model": "no such model file: gone.model",
    "average_models.py gone.model --output photo.png": "photo.png exists",
    "model_info.py gone.model": "no such model file: gone.model",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("early")
    Image.new("RGB", (20, 20)).save(folder / "photo.png")
    (folder / "captions.json").write_text('{"annotations": [{"image_id": 1, "caption": "a dog"}]}')
    (folder / "results.json").write_text('[{"image_id": 1, "caption": "a dog"}]')
    commands = [[str(ROOT / name), *words] for name, *words in map(str.split, COMMANDS)]
    command, env = [sys.executable, "-c", ASK, json.dumps(commands)], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(zip(COMMANDS, json.loads(done.stdout.splitlines()[-1])))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_is_answered_before_torch_is_imported(answers, command):
    status, text, imported = answers[command]
    assert status == 2 and COMMANDS[command] in text and text.count("\n") == 1
    assert imported == []
