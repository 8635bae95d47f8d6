"""train.py on toy data, for the tests of the scripts."""

import pytest
from toy import FAST, feature_map, make_coco, write_config, write_features


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 training and 12 validation images with pooled features in three formats and a map."""
    root = tmp_path_factory.mktemp("toy")
    make_coco(root, {"train": 24, "val": 12})
    write_config(root, ["train", "val"])
    for name in ("pooled.npy", "pooled2.lmdb", "pooled3.bin"):
        write_features(root, name)
    write_features(root, "map.lmdb", feature_map, "float16")
    return root


@pytest.fixture
def train(data, tmp_path, script):
    def call(*arguments, name="run"):
        common = ["--dataset_config_file", data / "datasets.conf", "--model_path", tmp_path / "models"]
        common += ["--vocab_root", tmp_path / "vocab", "--cpu", "--model_name", name, *FAST]
        dataset = [] if "--dataset" in arguments else ["--dataset", "toy:train"]
        return script("train.py", *dataset, *common, *arguments)

    call.folder, call.data = tmp_path / "models", data
    return call
