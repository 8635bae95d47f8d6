"""The README, typed word for word on a small made-up COCO: its section on COCO with the paths put in, and its example.

Photos cannot be had here and neither can ResNet-152's weights: a file of random ones lies where a download would go.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from running import ROOT, Result, run_here
from toy import draw, make_coco
from toy_documents import blocks

README = blocks("README.md")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The toolkit in a folder of its own, beside a COCO of a few pictures and a cache with ResNet-152's weights."""
    root = tmp_path_factory.mktemp("walkthrough")
    folders = [
        file
        for name in ("captioning", "captioner", "training", "inference")
        for file in ROOT.glob(f"{name}/**/*.*")
        if file.suffix != ".pyc"
    ]
    data = [ROOT / "datasets/datasets.conf", ROOT / "models/photos.model"]
    for file in [*ROOT.glob("*.py"), *folders, *data]:
        target = root / "clone" / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    make_coco(root / "coco", {"train2014": 4, "val2014": 2}, size=320)
    for name in ("random_image.jpg", "photo.jpg"):
        draw(3).save(root / "clone" / name)
    (root / "clone" / "random_image_dir").mkdir()
    for n in range(2):
        draw(n).save(root / "clone" / "random_image_dir" / f"photo{n}.JPG", format="JPEG")
    from torchvision.models import ResNet152_Weights, resnet152

    checkpoints = root / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(resnet152().state_dict(), checkpoints / ResNet152_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "clone")
        patch.setenv("TORCH_HOME", str(root / "torch"))
        patch.setenv("HOME", str(root / "home"))  # holds the datasets.conf of what runs in this process
        patch.delenv("DISPLAY", raising=False)
        yield root


def type_it(clone, line, cwd=None, **variables) -> Result:
    """Run a line of the shell, or a list of words, in the clone or in `cwd`."""
    env = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "PYTHONPATH", "HOME")}
    env |= {"PATH": f"{os.path.dirname(sys.executable)}:{env['PATH']}", **variables}
    options = {"shell": isinstance(line, str), "cwd": cwd or clone / "clone", "env": env, "timeout": 400}
    done = subprocess.run(line, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return Result(done.returncode, done.stdout, done.stderr)


def run_words(line: str) -> Result:
    """Run the script of a line in this process, which has torch already."""
    words = line.split()
    done = run_here(words[0].removeprefix("./"), *words[1:])
    assert done.status == 0, f"{line}\n{done.out}\n{done.err}"
    return done


def quick(line: str) -> bool:
    """Whether a process of its own costs little, which is the better test; and one photo is captioned in one."""
    return not line.startswith(("./train.py", "./infer.py")) or line.endswith("random_image.jpg")


def test_walkthrough_as_it_stands(clone):
    described = next(number for number, block in enumerate(README) if block.language == "ini")
    outputs = {}
    for block in README[described - 1 : described + 3]:
        text = block.text.replace("/path/to/coco", str(clone / "coco"))
        if block.language == "ini":
            for conf in (clone / "clone/datasets/datasets.conf", clone / "home/.config/image_captioning/datasets.conf"):
                conf.parent.mkdir(parents=True, exist_ok=True)
                with open(conf, "a", encoding="utf-8") as file:
                    file.write("\n" + text)
            continue
        for line in text.strip().splitlines():
            outputs[line] = type_it(clone, line) if quick(line) else run_words(line)
    here = clone / "clone"
    assert (clone / "coco" / "images" / "train2014_256x256" / "COCO_train2014_000000000001.jpg").exists()
    assert (here / "vocab.pkl").exists()
    assert {"ep5.model", "best.model", "last.model", "train_stats.json", "train_stats.png"} <= {
        file.name for file in (here / "models" / "mymodel").iterdir()
    }
    captioned = [done for line, done in outputs.items() if "infer.py" in line]
    assert re.match(r"random_image\.jpg: [A-Z].*\.\n", captioned[0].out)
    assert "photo0.JPG: " in captioned[1].out and "photo1.JPG: " in captioned[1].out
    assert "2 images" in captioned[2].out + captioned[2].err
    assert "CIDEr" in captioned[3].out


def test_training_with_the_defaults_alone(clone):
    """Without validation, as the walk-through of DeepCaption has it; --watch of plot_stats is tested elsewhere."""
    if not (clone / "home").exists():
        pytest.skip("the walk-through did not get this far")
    run_words("./train.py --dataset coco:train2014 --vocab vocab.pkl --model_name plain --num_epochs 1")
    assert (clone / "clone" / "models" / "plain" / "ep1.model").exists()


def test_example_in_python(clone, tmp_path):
    """From another folder, as the README says: what infer.py prints."""
    example = next(block.text for block in README if block.language == "python")
    shutil.copy(clone / "clone" / "photo.jpg", tmp_path)
    (tmp_path / "my_program.py").write_text(example.replace("/path/to/toolkit", f"{clone}/clone"))
    done = type_it(clone, [sys.executable, "my_program.py"], tmp_path)
    assert re.fullmatch(r"[A-Z].*\.\n", done.out)
    assert run_words("./infer.py photo.jpg").out == f"photo.jpg: {done.out}"
