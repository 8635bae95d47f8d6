"""The README's COCO walk-through, typed word for word on a small made-up COCO, with the paths put in.

Photos cannot be had here and neither can ResNet-152's weights: a file of random ones lies where a download would go.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from running import ROOT
from toy import draw, make_coco


def walkthrough() -> list[tuple[str, str]]:
    """(language, text) of the code blocks in the README's section on COCO."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Walk-through: COCO")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The toolkit in a folder of its own, beside a COCO of a dozen pictures and a cache with ResNet-152's weights."""
    root = tmp_path_factory.mktemp("walkthrough")
    folders = [file for name in ("captioning", "training", "inference") for file in ROOT.glob(f"{name}/**/*.py")]
    for file in [*ROOT.glob("*.py"), *folders, ROOT / "datasets" / "datasets.conf"]:
        target = root / "clone" / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    make_coco(root / "coco", {"train2014": 8, "val2014": 4}, size=320)
    draw(3).save(root / "clone" / "random_image.jpg")
    (root / "clone" / "random_image_dir").mkdir()
    for n in range(2):
        draw(n).save(root / "clone" / "random_image_dir" / f"photo{n}.JPG", format="JPEG")
    from torchvision.models import ResNet152_Weights, resnet152

    checkpoints = root / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(resnet152().state_dict(), checkpoints / ResNet152_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    return root


def type_it(clone, line: str) -> subprocess.CompletedProcess:
    env = {
        **os.environ,
        "TORCH_HOME": str(clone / "torch"),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    env = {key: value for key, value in env.items() if key != "DISPLAY"}
    done = subprocess.run(line, shell=True, cwd=clone / "clone", env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done


def test_walkthrough_as_it_stands(clone):
    outputs = {}
    for language, block in walkthrough():
        block = block.replace("/path/to/coco", str(clone / "coco"))
        if language == "ini":
            with open(clone / "clone" / "datasets" / "datasets.conf", "a", encoding="utf-8") as file:
                file.write("\n" + block)
            continue
        for line in block.strip().splitlines():
            outputs[line] = type_it(clone, line)
    here = clone / "clone"
    assert (clone / "coco" / "images" / "train2014_256x256" / "COCO_train2014_000000000001.jpg").exists()
    assert (here / "vocab.pkl").exists()
    assert {"ep5.model", "best.model", "last.model", "train_stats.json", "train_stats.png"} <= {
        file.name for file in (here / "models" / "mymodel").iterdir()
    }
    captioned_err = [done.stderr for line, done in outputs.items() if "infer.py" in line]
    captioned = [done.stdout for line, done in outputs.items() if "infer.py" in line]
    assert re.match(r"random_image\.jpg: [A-Z].*\.\n", captioned[0])
    assert "photo0.JPG: " in captioned[1] and "photo1.JPG: " in captioned[1]
    assert "4 images" in captioned[2] + captioned_err[2]
    assert "CIDEr" in captioned[3]


def test_training_with_the_defaults_alone(clone):
    """Without validation, as the walk-through of DeepCaption has it; --watch of plot_stats is tested elsewhere."""
    conf = clone / "clone" / "datasets" / "datasets.conf"
    if "[coco:train2014]" not in conf.read_text():
        pytest.skip("the walk-through did not get this far")
    type_it(clone, "./train.py --dataset coco:train2014 --vocab vocab.pkl --model_name plain --num_epochs 1")
    assert (clone / "clone" / "models" / "plain" / "ep1.model").exists()
