"""plan_inputs: where each input of a model comes from, and what is told of files that do not fit."""

from dataclasses import replace

import pytest
import torch
from toy import feature_map, feature_vector, make_coco, write_config, write_features

from captioning.batches.features import FeatureFiles
from captioning.batches.inputs import Pixels, file_spec, keep_sizes, plan_inputs
from captioning.config import FeatureSpec, ModelConfig
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError

MADE = {"extractor": "resnet18", "weights_sha256": "aa", "feature_type": "plain"}


@pytest.fixture
def root(tmp_path):
    """toy:train with pooled.npy (16), wide.npy (24) and map.lmdb (16, 3, 3)."""
    make_coco(tmp_path, {"train": 3})
    write_config(tmp_path, ["train"])
    write_features(tmp_path, "pooled.npy", provenance=MADE)
    write_features(tmp_path, "wide.npy", lambda number: feature_vector(number, 24))
    write_features(tmp_path, "map.lmdb", feature_map)
    return tmp_path


@pytest.fixture
def dataset(root):
    return open_dataset("toy:train", str(root / "datasets.conf"))


def external(name, *shape):
    return FeatureSpec(name, shape, True, MADE)


def test_inputs_are_in_the_order_of_the_specs(dataset):
    internal = FeatureSpec("resnet18", (512,), False, MADE)
    config = ModelConfig([external("pooled.npy", 16), internal], [external("map.lmdb", 16, 3, 3), *[internal] * 2])
    inputs = plan_inputs(config, dataset)
    assert [one.spec for one in inputs] == config.specs
    assert [type(one.source) for one in inputs] == [FeatureFiles, Pixels, FeatureFiles, Pixels, Pixels]
    assert file_spec(dataset, "map.lmdb") == FeatureSpec("map.lmdb", (16, 3, 3), True, None)
    # what another model has opened, or a cache of an encoder, is taken by its name
    shared = {"pooled.npy": inputs[0].source, "resnet18": object()}  # a cache, in earnest
    again = plan_inputs(config, dataset, sources=shared)
    assert again[0].source is inputs[0].source and again[2].source is not inputs[2].source
    assert all(again[i].source is shared["resnet18"] for i in (1, 3, 4))


def test_regions_count_as_a_map_and_nothing_larger_does(root, dataset):
    """Bottom-up features: R vectors for an image, (R, D); a video's map has a dimension more than is read."""
    write_features(root, "regions.npy", lambda number: feature_map(number).reshape(16, 9).T)
    spec = file_spec(dataset, "regions.npy")
    assert spec.shape == (16, 9, 1) and spec.spatial
    source = plan_inputs(ModelConfig([spec], attention="soft"), dataset)[0].source
    as_maps = plan_inputs(ModelConfig([external("map.lmdb", 16, 3, 3)]), dataset)[0].source
    assert torch.equal(source.get(dataset.items), as_maps.get(dataset.items))
    write_features(root, "video.npy", lambda number: feature_map(number)[None])
    with pytest.raises(
        UserError, match=r"--persist_features video.npy: the records of .*\(1, 16, 3, 3\); use a vector"
    ):
        file_spec(dataset, "video.npy", "--persist_features")


def test_photos_in_place_of_files(root, dataset, capsys):
    config = ModelConfig([external("pooled.npy", 16), external("gone.npy", 16)])
    with pytest.raises(UserError, match=r"no such feature file: .*gone\.npy"):
        plan_inputs(config, dataset)
    assert all(one.from_pixels for one in plan_inputs(config, dataset, photos="instead"))
    assert capsys.readouterr().err == (
        f"toy:train has no feature file {root}/features/gone.npy: its photos are captioned instead\n"
    )
    (root / "features/pooled.npy").rename(root / "features/gone-mean.npy")  # as good as gone.npy, if it had one record
    with pytest.raises(UserError, match="should hold one record"):
        plan_inputs(ModelConfig([external("gone.npy", 16)]), dataset, photos="instead")
    assert all(one.from_pixels for one in plan_inputs(config, dataset, photos="always"))
    assert capsys.readouterr().err == ""
    for part in dataset.parts:
        part.items = [replace(item, path=None) for item in part.items]
    with pytest.raises(UserError, match=r"no such feature file: .*pooled\.npy, and image_dir is not set either"):
        plan_inputs(config, dataset, photos="instead")


def test_files_in_place_of_those_that_the_model_names(dataset):
    config = ModelConfig([external("old.npy", 16)], [external("old.lmdb", 16, 3, 3)])
    replaced = {"features": "pooled.npy", "persist_features": "map.lmdb"}
    for photos in ("never", "always", "instead"):
        inputs = plan_inputs(config, dataset, replaced=replaced, photos=photos)
        assert [one.spec.name for one in inputs] == ["pooled.npy", "map.lmdb"]
        assert not any(one.from_pixels for one in inputs)
    assert [spec.name for spec in config.specs] == ["old.npy", "old.lmdb"]  # the model stays what it was
    for files, told in (
        ("pooled.npy,wide.npy", r"\(1: old.npy\)"),
        ("resnet18", "is no feature file"),
        ("", "is no fe"),
    ):
        with pytest.raises(UserError, match=f"--ext_features {files}: .*{told}"):
            plan_inputs(config, dataset, replaced={"features": files, "persist_features": None})


def test_shapes_are_checked(dataset):
    with pytest.raises(UserError, match=r"wide\.npy has features of shape \(24,\), but the model reads \(16,\)"):
        plan_inputs(ModelConfig([external("wide.npy", 16)]), dataset)


def test_files_that_something_else_made(dataset, capsys):
    other = ModelConfig([FeatureSpec("pooled.npy", (16,), True, MADE | {"weights_sha256": "bb"})])
    told = "pooled.npy was made with weights_sha256 aa, but the model was trained with weights_sha256 bb"
    with pytest.raises(UserError, match=told):
        plan_inputs(other, dataset, strict=True)
    for arguments in ({}, {"replaced": {"features": "pooled.npy"}, "strict": True}):
        assert not plan_inputs(other, dataset, **arguments)[0].from_pixels
        said = capsys.readouterr().err
        assert said.startswith("warning: ") and told in said
    unknown = ModelConfig([FeatureSpec("pooled.npy", (16,), True)])
    plan_inputs(unknown, dataset, strict=True)
    assert capsys.readouterr().err == ""


def test_joint_sizes_of_deepcaption(dataset):
    config = ModelConfig([external("pooled.npy", 40), external("wide.npy", 0)])
    inputs = plan_inputs(config, dataset)
    assert [one.spec.shape for one in inputs] == [(16,), (24,)]
    keep_sizes(config, inputs)
    assert [spec.shape for spec in config.specs] == [(16,), (24,)]
    with pytest.raises(UserError, match="pooled.npy, wide.npy have 40 numbers together, but the model reads 41"):
        plan_inputs(ModelConfig([external("pooled.npy", 41), external("wide.npy", 0)]), dataset)
