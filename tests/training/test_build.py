"""train.py --load_model: which flags act on the loaded model, and which contradict it."""

import pytest
from toy import feature_map, make_coco, write_config, write_features

from captioning import checkpoint
from model import load_captioner

SMALL = ["--embed_size", 12, "--hidden_size", 16, "--vocab_threshold", 1, "--num_batches", 1, "--batch_size", 10]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    make_coco(root, {"train": 8})
    write_config(root, ["train"])
    for name in ("pooled.npy", "moved.lmdb"):
        write_features(root, name)
    write_features(root, "map.lmdb", feature_map)
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    from running import run_here

    folder = tmp_path_factory.mktemp("models")

    def call(name, *arguments):
        common = ["--dataset", "toy:train", "--dataset_config_file", data / "datasets.conf", "--model_path", folder]
        common += ["--vocab_root", folder / "vocab", "--cpu", "--model_name", name, "--replace", "--num_workers", 0]
        return run_here("train.py", *common, *arguments)

    call.folder = folder
    return call


@pytest.fixture(scope="module")
def first(run):
    done = run("first", *SMALL, "--features", "pooled.npy", "--dropout", 0.1, "--num_epochs", 1)
    assert done.status == 0, done.err
    return run.folder / "first" / "ep1.model"


SHORT = ["--num_epochs", 2, "--num_batches", 1, "--batch_size", 10]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden_size", 17], "--hidden_size 17 contradicts --load_model, whose file has 16"),
        (["--hidden_size", 512], "--hidden_size 512 contradicts"),  # the default, but typed
        (["--embed_size", 13], "--embed_size 13"),
        (["--num_layers", 2], "--num_layers 2"),
        (["--rnn_arch", "GRU"], "--rnn_arch GRU contradicts --load_model, whose file has LSTM"),
        (["--rnn_hidden_init", "from_features"], "--rnn_hidden_init from_features"),
        (["--attention", "soft"], "--attention soft"),
        (["--encoder_non_lin"], "--encoder_non_lin contradicts"),
        (["--share_embedding_weights"], "--share_embedding_weights contradicts"),
        (["--regularize_projection", 0.1], "--regularize_projection 0.1 contradicts"),
        (["--skip_start_token"], "--skip_start_token contradicts"),
        (["--crop_size", 100], "--crop_size 100"),
        (["--features", "resnet152"], "--features resnet152 contradicts --load_model, whose file has pooled.npy"),
        (["--features", "pooled.npy,moved.lmdb"], "--features pooled.npy,moved.lmdb"),
        (["--features", "map.lmdb"], "map.lmdb has features of shape (16, 3, 3), but the model reads (16,)"),
        (["--persist_features", "pooled.npy"], "--persist_features pooled.npy"),
        (["--finetune_encoder"], "--finetune_encoder: no encoder runs within the model"),
    ],
)
def test_flags_that_contradict_the_file(run, first, flags, message):
    done = run("second", *SHORT, "--load_model", first, *flags)
    assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1, done.err


def test_flags_that_say_the_same_or_were_not_typed(run, first):
    same = [
        "--hidden_size",
        16,
        "--embed_size",
        12,
        "--rnn_arch",
        "LSTM",
        "--features",
        "pooled.npy",
        "--num_layers",
        1,
    ]
    same += ["--attention_size", 99, "--persist_features", ""]  # without attention its sizes mean nothing
    done = run("second", *SHORT, "--load_model", first, *same)
    assert done.status == 0 and "epoch 2/2" in done.out, done.err
    assert load_captioner(run.folder / "second" / "ep2.model", photos=False).config.hidden_size == 16


def test_dropout_and_moved_files(run, first):
    flags = ["--dropout", 0.4, "--encoder_dropout", 0.3, "--features", "moved.lmdb"]
    done = run("second", *SHORT, "--load_model", first, *flags)
    assert done.status == 0, done.err
    assert "--features: moved.lmdb in place of pooled.npy" in done.out
    model = load_captioner(run.folder / "second" / "ep2.model", photos=False).model
    assert (model.config.dropout, model.config.encoder_dropout) == (0.4, 0.3)
    assert (model.decoder.dropout.p, model.decoder.image.dropout.p) == (0.4, 0.3)
    assert model.config.features[0].name == "moved.lmdb"


def test_the_commands_of_a_model_are_kept(run, first):
    second = run.folder / "second" / "ep2.model"
    assert run("second", *SHORT, "--load_model", first).status == 0
    assert run("third", "--num_epochs", 3, *SHORT[2:], "--load_model", second).status == 0
    contents = checkpoint.load(run.folder / "third" / "last.model")
    assert len(contents["history"]) == 2
    assert "--model_name first" in contents["history"][0] and "--model_name second" in contents["history"][1]
    done = run("third", "--num_epochs", 4, *SHORT[2:], "--load_model", second, "--resume")
    assert done.status == 0, done.err
    assert checkpoint.load(run.folder / "third" / "ep4.model")["history"] == contents["history"]


def test_a_vocabulary_that_is_not_used_is_told(run, first, tmp_path):
    (tmp_path / "other.txt").write_text("red\ngreen\n")
    done = run("second", *SHORT, "--load_model", first, "--vocab", tmp_path / "other.txt")
    assert done.status == 0 and "other.txt: not used" in done.out


def test_a_fine_tuned_encoder_comes_along_at_another_size(run):
    encoders = ["--features", "efficientnet_lite0-conv", "--persist_features", "efficientnet_lite0-classes"]
    tuned = ["--finetune_encoder", 1, "--encoder_learning_rate", 0.1, "--optimizer", "sgd"]
    done = run("tuned", *SMALL, *encoders, "--attention", "soft", *tuned, "--crop_size", 64, "--num_epochs", 1)
    assert done.status == 0, done.err
    begin = ["--init_model", run.folder / "tuned" / "ep1.model", "--crop_size", 96, "--batch_size", 10]
    done = run("larger", *begin, "--vocab_threshold", 1, "--num_batches", 1, "--num_epochs", 1)
    assert done.status == 0, done.err
    small, large = (load_captioner(run.folder / name / "ep1.model") for name in ("tuned", "larger"))
    assert (small.size, large.size) == (64, 96)
    assert [one.grid for one in large.model.extractors] == [(3, 3), None]
    for before, after in zip(small.model.extractors, large.model.extractors):
        assert before.weights_sha256 == after.weights_sha256
