"""Files of DeepCaption: numbers against its networks written with torch's modules, and against its own where at hand.

The environment variable DEEPCAPTION_ARTIFACTS names a folder of files that DeepCaption itself made.
"""

import functools
import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from deepcaption_toy import WORDS, Features, OldModel, Vocabulary, save
from toy import make_coco, write_config, write_features

from captioning import tensor_files
from captioning.decoder.search import Search
from captioning.deepcaption import models as deepcaption_files
from captioning.errors import UserError
from model import load_captioner, save_captioner

GREEDY = Search(allow_unk=True)
KINDS = {
    "lstm": {},
    "gru": {"arch": "GRU"},
    "selu": {"non_lin": True, "layers": 2},
    "skip_start": {"skip_start": True},
    "persist": {"persist": 5, "persist_features": (["p.lmdb"], [])},
    "init": {"init": True, "layers": 2, "persist": 5, "persist_features": (["p.lmdb"], []), "non_lin": True},
    "shared": {"shared": True},
    "shared_apart": {"shared": "apart", "persist": 5, "persist_features": (["p.lmdb"], [])},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_captions_are_those_of_deepcaption(tmp_path, kind, legacy):
    old = OldModel(**KINDS[kind])
    path = tmp_path / "ep4.model"
    save(old.contents, path, legacy)
    captioner = load_captioner(path, photos=False)
    assert captioner.info["epoch"] == 4 and captioner.info["made_by"] == "DeepCaption"
    assert captioner.vocabulary.words == WORDS and captioner.vocabulary.threshold == 4
    torch.manual_seed(5)
    features, persist = torch.randn(6, 16), torch.randn(6, 5) if KINDS[kind].get("persist") else None
    inputs = [features] + ([] if persist is None else [persist])
    captions = torch.randint(4, len(WORDS), (6, 7))
    captions[:, 0] = 1
    with torch.no_grad():
        memory = captioner.encode(None, inputs)
        whole = torch.cat([captions, torch.full((6, 1), 2)], 1)
        logits, _, _, row = captioner.model.decode(memory, whole, torch.full((6,), 8), torch.arange(6))
    expected = old.logits(features, captions, persist)
    for n in range(6):
        torch.testing.assert_close(logits[row == n], expected[n], rtol=0, atol=1e-5)
    found = captioner.caption(memory, GREEDY)
    assert [caption[0].tokens for caption in found] == old.greedy(features, persist)
    config = captioner.config
    assert config.share_embedding_weights == config.projection == (kind == "shared")
    if kind == "shared":
        assert captioner.model.decoder.linear.weight is captioner.model.decoder.embed.weight


def test_older_names_and_missing_settings(tmp_path):
    """Before 2019: lstm. instead of rnn., features as text, no settings beyond the sizes, no counts of batches."""
    old = OldModel()
    contents = {name: old.contents[name] for name in ("encoder", "decoder", "embed_size", "hidden_size", "vocab")}
    contents["decoder"] = {name.replace("rnn.", "lstm."): value for name, value in contents["decoder"].items()}
    contents["encoder"] = {k: v for k, v in contents["encoder"].items() if "num_batches" not in k}
    save({**contents, "features": "pooled.lmdb", "epoch": np.int64(7)}, tmp_path / "ep7.model")
    captioner = load_captioner(tmp_path / "ep7.model", photos=False)
    features = torch.randn(3, 16)
    found = captioner.caption(captioner.encode(None, [features]), GREEDY)
    assert [caption[0].tokens for caption in found] == old.greedy(features)
    assert captioner.info["epoch"] == 7 and captioner.config.features[0].name == "pooled.lmdb"


def test_a_file_without_vocabulary_takes_one(tmp_path, script):
    old = OldModel()
    save({**old.contents, "vocab": None}, tmp_path / "old.model")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(UserError, match=r"old.model of DeepCaption holds no vocabulary.*--vocab"):
        load_captioner(tmp_path / "old.model", photos=False)
    make_coco(tmp_path, {"val": 4})
    write_config(tmp_path, ["val"])
    write_features(tmp_path, "pooled.lmdb")
    run = ["--model", tmp_path / "old.model", "--dataset", "toy:val", "--dataset_config_file"]
    run += [tmp_path / "datasets.conf", "--print_results", "--cpu", "--output_file", tmp_path / "o.json"]
    assert script("infer.py", *run).status == 2
    done = script("infer.py", *run, "--vocab", tmp_path / "vocab.txt")
    assert done.status == 0 and "a model of DeepCaption" in done.err, done.err
    assert (
        "a model of DeepCaption"
        not in script("infer.py", *run, "--vocab", tmp_path / "vocab.txt", "--beam_size", 2).err
    )


# ---- encoders within the model ----


@functools.lru_cache(1)
def networks(name: str):
    """The part of torchvision's network, with random weights, that DeepCaption kept, and the size of its features."""
    from torchvision import models

    if name == "vgg16":
        model = models.vgg16(weights=None)
        model.classifier[6] = torch.nn.Linear(4096, 4096)
        return model.eval(), 4096, 224
    if name == "inceptionv3":
        return models.inception_v3(weights=None, init_weights=False, transform_input=True).eval(), 1000, 299
    model = getattr(models, name)(weights=None).eval()
    sizes = {"resnet152": 2048, "alexnet": 9216, "densenet201": 94080}
    return torch.nn.Sequential(*list(model.children())[:-1]), sizes[name], 224


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "resnet152",
        pytest.param("inceptionv3", marks=pytest.mark.slow),
        pytest.param("vgg16", marks=pytest.mark.slow),
        pytest.param("densenet201", marks=pytest.mark.slow),
    ],
)
def test_encoders_in_the_file(tmp_path, name):
    """Initial features from an encoder and a file behind it; persistent ones too where it is small."""
    torch.manual_seed(1)
    both = name == "alexnet"
    network, size, pixels = networks(name)
    with torch.no_grad():
        for module in network.modules():  # random batch norms, so that none could be forgotten
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
    old = OldModel(
        size=size + 16, persist=size if both else 0, features=(["pooled.lmdb"], [name]),
        persist_features=([], [name] if both else []), networks=[network], persist_networks=[network] if both else [],
    )  # fmt: skip
    with torch.no_grad():  # so many random numbers would drown the words
        old.encoder.linear.weight.mul_(size**-0.5)
        old.decoder.rnn.weight_ih_l0[:, 6:].mul_(size**-0.5)
    path = tmp_path / "old.model"
    save(old.contents, path)
    captioner = load_captioner(path, photos=False)
    assert captioner.config.encoder_in_file and captioner.size == pixels
    assert [spec.from_file for spec in captioner.config.specs] == ([False, True, False] if both else [False, True])
    images, external = torch.randint(0, 256, (1, 3, pixels, pixels), dtype=torch.uint8), torch.randn(1, 16)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        made = network((images / 255 - mean) / std).flatten(1)
        inputs = [None, external, None] if both else [None, external]
        memory = captioner.encode(images, inputs)
        captions = torch.tensor([[1, 5, 9, 7, 2]])
        logits, _, _, _ = captioner.model.decode(memory, captions, torch.tensor([5]), torch.tensor([0]))
    expected = old.logits(torch.cat([made, external], 1), captions[:, :-1], made if both else None)
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
    if both:  # what goes on from here is a file of ours, with these weights
        from model import save_captioner

        save_captioner(captioner, tmp_path / "new.model")
        again = load_captioner(tmp_path / "new.model", photos=False)
        assert torch.equal(again.encode(images, inputs).first, memory.first)


def test_the_first_name_of_resnet(tmp_path):
    """In the oldest files its tensors stand right in the encoder, under resnet."""
    renamed = deepcaption_files.renamed({"resnet.0.weight": torch.zeros(1)}, deepcaption_files.ENCODER_NAMES)
    assert list(renamed) == ["extractors.0.extractor.0.weight"]


# ---- what cannot be read ----


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Call:
    def __init__(self, function, *arguments):
        self.pair = function, arguments

    def __reduce__(self):
        return self.pair


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["vocab", "epoch", "encoder", "optimizer"])
def test_nothing_in_a_file_can_run(tmp_path, place, legacy, script):
    path, mark = tmp_path / "evil.model", tmp_path / "it_ran"
    save({**OldModel().contents, place: Bomb(mark)}, path, legacy)
    with pytest.raises(UserError, match=r"evil.model is damaged or no file of DeepCaption: it asks for posix.mkdir"):
        load_captioner(path)
    assert script("model_info.py", path).status == 2
    assert not mark.exists()


@pytest.mark.parametrize(
    "function", [eval, exec, __import__, getattr, pickle.loads, np.load, torch.load], ids=lambda f: f.__name__
)
def test_no_function_is_called(tmp_path, function):
    save({**OldModel().contents, "epoch": Call(function, "1")}, tmp_path / "evil.model")
    with pytest.raises(UserError, match="evil.model is damaged or no file of DeepCaption: it asks for"):
        load_captioner(tmp_path / "evil.model")


def test_a_plain_pickle_that_pretends(tmp_path):
    """Neither of torch's formats, but with its first bytes."""
    mark = tmp_path / "it_ran"
    start = tensor_files.LEGACY_START
    (tmp_path / "evil.model").write_bytes(start + b"".join(pickle.dumps(x, 2) for x in (1001, {}, Bomb(mark))))
    with pytest.raises(UserError, match="evil.model"):
        load_captioner(tmp_path / "evil.model")
    assert not mark.exists()


def changed(**changes):
    return {**OldModel().contents, **changes}


def test_one_line_for_what_cannot_be_read(tmp_path):
    path = tmp_path / "old.model"
    decoder = OldModel().contents["decoder"]
    without = {name: value for name, value in decoder.items() if name != "rnn.weight_ih_l0"}
    strange = {**decoder, "transformer.weight": torch.zeros(3)}
    for contents, message in (
        (changed(attention="SoftAttention"), "old.model: it is a DeepCaption model with attention"),
        (changed(hierarchical_model=True), "tensor 'embed.weight', which is not known"),
        (changed(vocab=Vocabulary(WORDS[:-1])), "vocabulary has 17 words, its weights are for 18"),
        (changed(vocab=Vocabulary(WORDS[1:])), "the first words must be <pad>"),
        (changed(decoder=without), "cannot be read: it lacks 'rnn.weight_ih_l0'"),
        (changed(decoder=strange), "tensor 'transformer.weight', which is not known"),
        (changed(decoder={**decoder, "linear.bias": 3}), "linear.bias is no tensor"),
        (changed(features=Features([], [])), "features .nothing. do not have the 16 numbers"),
        (changed(features=Features([], ["resnet152-conv"])), "model with attention"),
        (changed(features=Features([], ["nonet99"])), "unknown encoder 'nonet99'"),
        (changed(features=Features([5], [])), "names of features are no text"),
        (changed(features=7), "cannot be read"),
    ):
        save(contents, path)
        with pytest.raises(UserError, match=message) as caught:
            load_captioner(path, photos=False)
        assert "old.model" in str(caught.value)


def test_a_damaged_file(tmp_path):
    path = tmp_path / "old.model"
    save(OldModel().contents, path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    place = whole.index(OldModel().decoder.rnn.weight_ih_l0.detach().numpy().tobytes())
    damaged[place + 5] ^= 1
    for data in (bytes(damaged), whole[:-3000], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"old.model is damaged"):
            load_captioner(path)
    save(OldModel().contents, path, legacy=True)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"old.model is damaged"):
        load_captioner(path)
    save({"encoder": 1, "decoder": {}}, path)
    with pytest.raises(UserError, match=r"old.model is not a model file of this toolkit or of DeepCaption"):
        load_captioner(path)


def test_a_file_without_checksums_is_told_of_and_its_own_is_kept(tmp_path, capsys):
    for legacy in (False, True):
        save(OldModel().contents, tmp_path / "old.model", legacy=legacy)
        captioner = load_captioner(tmp_path / "old.model", photos=False)
        assert ("has no checksums: damage to its weights cannot be noticed" in capsys.readouterr().err) == legacy
        save_captioner(captioner, tmp_path / "new.model")
        digest = hashlib.sha256((tmp_path / "old.model").read_bytes()).hexdigest()
        assert load_captioner(tmp_path / "new.model", photos=False).info["converted_from"] == {
            "file": "old.model",
            "sha256": digest,
        }


LIES = [None, True, -1, 2**70, 1e400, "x", b"x", [], ["x"], {}, {"x": 1}, (), torch.zeros(3), torch.zeros(())]


@pytest.mark.parametrize("key", OldModel().contents)
def test_no_setting_of_another_type_is_a_traceback(tmp_path, key):
    for lie in LIES:
        save(changed(**{key: lie}), tmp_path / "old.model")
        try:
            load_captioner(tmp_path / "old.model", photos=False)
        except UserError as error:
            assert "old.model" in str(error) and "\n" not in str(error), (key, lie)


def test_our_own_files_are_never_taken_for_old_ones(tmp_path):
    """Not even with a vocabulary full of DeepCaption's keys."""
    from captioning import checkpoint

    words = ["encoder", "decoder", "optimizer", "Features"]
    checkpoint.save({"kind": "captioner", "vocabulary": {"words": words}}, tmp_path / "ours.model")
    assert not deepcaption_files.is_deepcaption_file(tmp_path / "ours.model")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "encoder decoder")
    for name in ("other.zip", "nowhere.model", "."):
        assert not deepcaption_files.is_deepcaption_file(tmp_path / name)


# ---- through the scripts ----


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    make_coco(root, {"train": 12, "val": 6})
    write_config(root, ["train", "val"])
    for name in ("pooled.lmdb", "second.npy", "p.lmdb"):
        write_features(root, name)
    return root


def test_scripts_take_old_files_as_they_are(data, tmp_path, script):
    """Two feature files of which only the joint size is known; captions, validation, training, and what it leaves."""
    old = OldModel(size=32, features=(["pooled.lmdb", "second.npy"], []))
    path = tmp_path / "old.model"
    save(old.contents, path)
    common = ["--dataset_config_file", data / "datasets.conf", "--cpu"]
    done = script("infer.py", "--model", path, "--dataset", "toy:val", *common, "--output_file", tmp_path / "o.json")
    assert done.status == 0, done.err
    captioner = load_captioner(path, photos=False)
    from toy import feature_vector

    features = torch.stack([torch.from_numpy(feature_vector(n)).repeat(2) for n in range(13, 19)])
    expected = [captioner.vocabulary.sentence(tokens) for tokens in old.greedy(features)]
    assert [row["caption"] for row in json.loads((tmp_path / "o.json").read_text())] == expected
    done = script("train.py", "--validate", "toy:val", "--validate_only", "--load_model", path, *common)
    assert done.status == 0 and "loss" in done.out, done.err
    train = ["--dataset", "toy:train", "--load_model", path, *common, "--model_path", tmp_path, "--model_name", "on"]
    done = script("train.py", *train, "--num_epochs", 5, "--batch_size", 20)
    assert done.status == 0 and "epoch 5/5" in done.out, done.err
    on = load_captioner(tmp_path / "on" / "ep5.model", photos=False)
    assert [spec.shape for spec in on.config.specs] == [(16,), (16,)]
    assert on.info["history"] == old.contents["command_history"]
    done = script(
        "infer.py",
        "--model",
        tmp_path / "on" / "ep5.model",
        "--dataset",
        "toy:val",
        *common,
        "--results_path",
        tmp_path,
    )
    assert done.status == 0 and "DeepCaption" not in done.err


def test_a_wrong_feature_file_is_one_line(data, tmp_path, script):
    save(OldModel(size=40, features=(["pooled.lmdb", "second.npy"], [])).contents, tmp_path / "old.model")
    common = ["--dataset_config_file", data / "datasets.conf", "--cpu"]
    message = "pooled.lmdb, second.npy have 32 numbers together, but the model reads 40"
    done = script("infer.py", "--model", tmp_path / "old.model", "--dataset", "toy:val", *common)
    assert done.status == 2 and message in done.err and len(done.err.splitlines()) <= 2
    train = ["train.py", "--validate", "toy:val", "--validate_only", "--load_model", tmp_path / "old.model", *common]
    assert message in script(*train).err
    save(OldModel(size=24).contents, tmp_path / "old.model")
    assert "features of shape (16,), but the model reads (24,)" in script(*train).err


def test_an_encoder_of_an_old_file_is_trained_on(data, tmp_path, script):
    """It stays in the files of the new run, frozen as it was or fine-tuned; photos need no other flag."""
    torch.manual_seed(1)
    network, size, _ = networks("alexnet")
    old = OldModel(size=size, features=([], ["alexnet"]), networks=[network])
    with torch.no_grad():
        old.encoder.linear.weight.mul_(0.01)
    save(old.contents, tmp_path / "old.model")
    photo = next((data / "images" / "val").glob("*.jpg"))
    before = script("infer.py", "--model", tmp_path / "old.model", photo, "--cpu")
    assert before.status == 0 and photo.name in before.out, before.err
    train = ["--dataset", "toy:train", "--dataset_config_file", data / "datasets.conf", "--cpu", "--num_workers", 0]
    train += ["--load_model", tmp_path / "old.model", "--model_path", tmp_path, "--num_epochs", 5, "--num_batches", 1]
    saved = {}
    for name, flags in (("frozen", []), ("tuned", ["--finetune_encoder", 1])):
        done = script("train.py", *train, "--model_name", name, *flags)
        assert done.status == 0, done.err
        state = load_captioner(tmp_path / name / "ep5.model").model.extractors[0].network.state_dict()
        saved[name] = {key for key, value in state.items() if not value.equal(network.state_dict()[key])}
    assert saved == {"frozen": set(), "tuned": {"0.10.weight", "0.10.bias"}}


# ---- files that DeepCaption itself made ----

ARTIFACTS = Path(os.environ.get("DEEPCAPTION_ARTIFACTS", "nowhere"))
with_artifacts = pytest.mark.skipif(not ARTIFACTS.is_dir(), reason="DEEPCAPTION_ARTIFACTS names no folder")


def artifact_features(name: str, keys) -> torch.Tensor:
    from captioning.features.factory import open_features

    reader = open_features(ARTIFACTS / name)
    return torch.stack([torch.from_numpy(np.array(reader[key])) for key in keys])


@with_artifacts
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_captions_that_deepcaption_wrote(name, tmp_path, script):
    (tmp_path / "datasets.conf").write_text(
        f"[old]\ndataset_class = CocoDataset\ncaption_path = {ARTIFACTS}/captions_dev.json\n"
        f"image_dir = {ARTIFACTS}\nfeatures_path = {ARTIFACTS}\n"
    )
    run = ["--dataset", "old", "--dataset_config_file", tmp_path / "datasets.conf", "--cpu"]
    done = script("infer.py", "--model", ARTIFACTS / f"{name}.model", *run, "--output_file", tmp_path / "out.json")
    assert done.status == 0, done.err
    found = {row["image_id"]: row["caption"] for row in json.loads((tmp_path / "out.json").read_text())}
    expected = json.loads((ARTIFACTS / f"{name}.captions.json").read_text())
    expected = {row["image_id"]: row["caption"] for row in expected}
    assert found.keys() >= expected.keys() and len(expected) == 300
    assert {image_id: found[image_id] for image_id in expected} == expected


@with_artifacts
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_probabilities_that_deepcaption_gave(name):
    captioner = load_captioner(ARTIFACTS / f"{name}.model", photos=False)
    rows = json.loads((ARTIFACTS / f"{name}.probabilities.json").read_text())
    keys = {i["id"]: i["file_name"] for i in json.loads((ARTIFACTS / "captions_dev.json").read_text())["images"]}
    features = artifact_features("feat.lmdb", [keys[row["image_id"]] for row in rows])
    memory = captioner.encode(None, [features])
    ids = [[1, *caption[0].tokens, 2] for caption in captioner.caption(memory, GREEDY)]
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in ids], batch_first=True)
    with torch.no_grad():
        lengths = torch.tensor([len(i) for i in ids])
        logits, _, _, row_of = captioner.model.decode(memory, padded, lengths, torch.arange(len(ids)))
    probabilities = logits.softmax(1)
    for n, row in enumerate(rows):
        mine = probabilities[row_of == n]
        words = row["caption"].split(" ")
        assert len(words) == len(mine) - 1
        for position, word in zip(mine, words):
            best = position.topk(3)
            alternatives = [pair.rsplit("=", 1) for pair in word.split("/")]
            names = [captioner.vocabulary.words[i] for i in best.indices]
            assert names == [name.lower() for name, _ in alternatives]
            np.testing.assert_allclose(best.values, [float(value) for _, value in alternatives], atol=1e-4)


@with_artifacts
@pytest.mark.parametrize("name", ["lstm", "lstm2_persist_init"])
def test_teacher_forced_logits_of_deepcaption(name):
    captioner = load_captioner(ARTIFACTS / f"{name}.model", photos=False)
    file = np.load(ARTIFACTS / f"{name}.teacher_forced.npz")
    inputs = [artifact_features(spec.name, file["file_names"]) for spec in captioner.config.specs]
    memory, captions = captioner.encode(None, inputs), torch.from_numpy(file["captions"]).long()
    decoder = captioner.model.decoder
    with torch.no_grad():
        state = decoder.start(memory)
        outputs = [decoder.linear(state[0][-1])] if name == "lstm" else []  # after the image it expects <start>
        for token in captions.unbind(1):
            logits, state, _ = decoder.step(token, state, memory)
            outputs.append(logits)
    log_probs = torch.stack(outputs, 1).log_softmax(2).numpy()
    for n, length in enumerate(file["lengths"]):
        top = file["top_ids"][n, :length]
        found = np.take_along_axis(log_probs[n, :length], top.astype(int), 1)
        np.testing.assert_allclose(found, file["top_logprobs"][n, :length], rtol=0, atol=1e-4)


@with_artifacts
def test_its_statistics_are_drawn(tmp_path, script):
    files = sorted(ARTIFACTS.glob("*.train_stats.json"))
    done = script("plot_stats.py", *files, "--output", tmp_path / "curves.png")
    assert done.status == 0 and (tmp_path / "curves.png").stat().st_size > 5000, done.err


def test_statistics_as_deepcaption_writes_them_are_drawn(tmp_path, script):
    stats = {
        str(n): {"training_loss": 4.0 / n, "validation_loss": 4.1 / n, "validation_cider": n / 10} for n in (1, 2, 3)
    }
    (tmp_path / "train_stats.json").write_text(json.dumps(stats, indent=2))
    done = script("plot_stats.py", tmp_path / "train_stats.json", "--output", tmp_path / "curves.png")
    assert done.status == 0 and (tmp_path / "curves.png").exists(), done.err
