"""Averages of models against torch's own arithmetic, the greedy soup, float16 files, through the command line."""

import pytest
import torch
from running import ROOT, run_here
from toy import feature_map, make_coco, write_config, write_features

from captioning import checkpoint
from captioning.errors import UserError
from captioning.text.function_words import content_words
from infer import parse_args
from inference.run.search import SearchFlags
from model import load_captioner
from training.averages import Average, greedy_soup, half_precision


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three epochs with shared embeddings and attention, and one of another size."""
    root = tmp_path_factory.mktemp("average")
    make_coco(root, {"train": 12, "val": 6})
    config = write_config(root, ["train", "val"])
    write_features(root, "map.lmdb", feature_map)
    common = ["--dataset", "toy:train", "--dataset_config_file", config, "--model_path", root / "models", "--cpu"]
    common += ["--vocab_root", root / "vocab", "--batch_size", 20, "--vocab_threshold", 1, "--features", "map.lmdb"]
    common += ["--attention", "soft", "--share_embedding_weights", "--optimizer", "adam", "--learning_rate", 0.01]
    common += ["--hidden_size", 32, "--attention_size", 16, "--value_size", 24]
    for name, flags in (("a", ["--embed_size", 24]), ("b", ["--embed_size", 20, "--num_epochs", 1])):
        assert run_here("train.py", *common, "--num_epochs", 3, "--model_name", name, *flags).status == 0
    return root


@pytest.fixture
def models(run):
    return [run / "models" / "a" / f"ep{n}.model" for n in (1, 2, 3)]


@pytest.mark.parametrize("weights", [None, [1, 0, 3]])
def test_mean_is_torchs(models, tmp_path, script, weights):
    flags = [] if weights is None else ["--weights", *weights]
    done = script("average_models.py", *models, "--output", tmp_path / "mean.model", *flags)
    assert done.status == 0 and "3 models" in done.out, done.err
    w = torch.tensor(weights or [1, 1, 1], dtype=torch.float64)
    states = [checkpoint.load(path)["state"] for path in models]
    mean = checkpoint.load(tmp_path / "mean.model")
    for name, value in mean["state"].items():
        stacked = torch.stack([state[name].double() for state in states])
        if value.is_floating_point():
            expected = torch.tensordot(w / w.sum(), stacked, 1)
            assert torch.allclose(value.double(), expected, atol=1e-6), name
        else:
            assert torch.equal(value, states[0][name]), name
    assert [x for _, x in mean["averaged"]] == [float(x) for x in w]
    assert "training" not in mean
    captioner = load_captioner(tmp_path / "mean.model", photos=False)
    decoder = captioner.model.decoder
    assert decoder.linear.weight is decoder.embed.weight  # shared embeddings stay shared
    assert (tmp_path / "mean.model").stat().st_size < 1.1 * models[0].stat().st_size  # and are written once


def test_half_is_half_and_loads_in_full(models, tmp_path, script, run):
    for name, flags in (("full.model", []), ("half.model", ["--half"])):
        assert script("average_models.py", *models, "--output", tmp_path / name, *flags).status == 0
    half, full = (checkpoint.load(tmp_path / name)["state"] for name in ("half.model", "full.model"))
    assert all(value.dtype in (torch.float16, torch.int64) for value in half.values())
    shared = half["decoder.linear.weight"].data_ptr() == half["decoder.embed.weight"].data_ptr()
    assert shared and half["decoder.embed.weight"].numel() > 100
    captioner = load_captioner(tmp_path / "half.model", photos=False)
    for name, value in captioner.model.state_dict().items():
        assert value.dtype != torch.float16
        assert torch.allclose(value.float(), full[name].float(), rtol=1e-3, atol=1e-4)
    data = ["--dataset", "toy:val", "--dataset_config_file", run / "datasets.conf", "--cpu"]
    done = script("infer.py", "--model", tmp_path / "half.model", *data, "--print_results", "--results_path", tmp_path)
    assert done.status == 0 and len(done.out.splitlines()) >= 6, done.err


def test_half_refuses_what_it_cannot_hold():
    with pytest.raises(UserError, match="--half"):
        half_precision({"weight": torch.tensor([1.0, 1e6])})


def test_greedy_soup_takes_what_helps(models):
    """Scores made up for each set of models: the second best hurts, the third helps."""
    a, b, c = map(str, models)
    values = {(a,): 0.3, (b,): 0.5, (c,): 0.4, (b, c): 0.45, (b, a): 0.6}
    told = []
    soup = greedy_soup([a, b, c, a], lambda name, average: values[tuple(average.paths)], told.append)
    assert soup.paths == [b, a] and "left out" in told[3] and "taken" in told[4] and told[-1].startswith("2 of 3")
    first, second = (checkpoint.load(path)["state"]["decoder.linear.bias"] for path in (a, b))
    assert torch.allclose(soup.state()["decoder.linear.bias"], (first + second) / 2, atol=1e-7)


def test_greedy_soup_by_cider(models, run, tmp_path, script):
    flags = ["--greedy", "--dataset", "toy:val", "--dataset_config_file", run / "datasets.conf", "--cpu"]
    done = script("average_models.py", *models, *flags, "--output", tmp_path / "soup.model")
    assert done.status == 0, done.err
    assert done.out.count(" models, ") >= 1 and checkpoint.load(tmp_path / "soup.model")["averaged"]
    scores = [float(line.split()[-1]) for line in done.out.splitlines()[:3]]
    assert float(done.out.split(" models, ")[1].split()[0]) >= max(scores) - 1e-4


def test_a_single_model_keeps_its_epoch(models, tmp_path, script):
    assert script("average_models.py", models[1], "--half", "--output", tmp_path / "one.model").status == 0
    assert checkpoint.load(tmp_path / "one.model")["epoch"] == 2
    again = script("average_models.py", models[1], "--output", tmp_path / "one.model")
    assert again.status == 2 and "--force" in again.err


def test_a_length_penalty_in_the_file_is_infers_default(models, tmp_path):
    kept = tmp_path / "kept.model"
    assert run_here("average_models.py", models[1], "--length_penalty", 0.7, "--output", kept).status == 0
    captioner = load_captioner(kept, photos=False)
    asked = [SearchFlags.of(vars(parse_args(flags))).search(captioner) for flags in ([], ["--length_penalty", "0"])]
    assert [search.length_penalty for search in asked] == [0.7, 0.0]
    plain = load_captioner(models[1], photos=False)
    assert SearchFlags.of(vars(parse_args([]))).search(plain).length_penalty == 0.0


def test_words_that_come_once_in_the_file_are_infers_default(models, tmp_path):
    kept = tmp_path / "kept.model"
    assert run_here("average_models.py", models[1], "--no_repeat_words", "--beams", 5, "--output", kept).status == 0
    captioner = load_captioner(kept, photos=False)
    beams = [SearchFlags.of(vars(parse_args(one))).search(captioner).beam_size for one in ([], ["--beam_size", "2"])]
    assert beams == [5, 2]
    content = content_words(captioner.vocabulary.words)
    assert captioner.default_search().once == content
    flags = ([], ["--repeat_words"], ["--no_repeat_words"], ["--no_repeat_words", "--may_repeat", "red"])
    once = [SearchFlags.of(vars(parse_args(one))).search(captioner).once for one in flags]
    assert once == [content, (), content, content_words(captioner.vocabulary.words, ["red"])] and once[3] != content
    plain = load_captioner(models[1], photos=False)
    assert SearchFlags.of(vars(parse_args([]))).search(plain).once == plain.default_search().once == ()
    again = tmp_path / "again.model"
    assert run_here("average_models.py", kept, "--half", "--output", again).status == 0
    assert load_captioner(again, photos=False).once == content


def test_another_image_size(tmp_path, models):
    """A model from pixels then sees larger images, as with infer.py --resize; one from feature files cannot."""
    size = ["--image_size", 160, "--half", "--output", tmp_path / "large.model"]
    bundled = ROOT / "models" / "photos.model"
    assert run_here("average_models.py", bundled, *size).status == 0
    captioner = load_captioner(tmp_path / "large.model")
    assert (captioner.size, captioner.transform.size, captioner.config.specs[0].shape) == (160, 160, (1280, 5, 5))
    pixels = torch.randint(0, 256, (1, 3, 160, 160), dtype=torch.uint8)
    nothing = [None] * len(captioner.config.specs)
    memory = captioner.encode(pixels, nothing)
    assert memory.values.shape[1] == 25
    expected = load_captioner(bundled).encode(pixels, nothing)
    assert torch.allclose(memory.values, expected.values)
    done = run_here("average_models.py", models[0], "--image_size", 160, "--output", tmp_path / "x.model")
    assert done.status == 2 and "map.lmdb" in done.err


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--weights", 1, 2], "2 numbers for 3 models"),
        (["--weights", 1, -2, 1], "--weights"),
        (["--greedy"], "--dataset"),
        (["--dataset", "toy:val"], "--greedy"),
        (["--greedy", "--dataset", "toy:val", "--weights", 1, 1, 1], "exclude"),
    ],
)
def test_mistakes_are_one_line(models, tmp_path, script, flags, told):
    done = script("average_models.py", *models, "--output", tmp_path / "x.model", *flags)
    assert done.status == 2 and told in done.err and "Traceback" not in done.err


def test_unlike_models_are_told(models, run, tmp_path, script):
    other = run / "models" / "b" / "ep1.model"
    done = script("average_models.py", models[0], other, "--output", tmp_path / "x.model")
    assert done.status == 2 and "embed_size" in done.err and str(other) in done.err
    (tmp_path / "text.model").write_text("no model")
    done = script("average_models.py", models[0], tmp_path / "text.model", "--output", tmp_path / "x.model")
    assert done.status == 2 and "text.model" in done.err
    assert not (tmp_path / "x.model").exists()


def test_running_mean_in_double_precision(models):
    """A hundred times the same model is that model."""
    average = Average([models[0]] * 100)
    for name, value in checkpoint.load(models[0])["state"].items():
        assert torch.equal(average.state()[name], value)
