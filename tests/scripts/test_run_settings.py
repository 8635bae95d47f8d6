"""The settings of a run: kept beside its models and in them, read from a file again; which epoch is best."""

import json

import pytest
from toy import differences, stats

from captioning import checkpoint
from captioning.errors import UserError
from training.flags import parse_args
from training.run_folder import RunFolder
from training.settings import ACTIONS, all_settings, default_settings
from training.validation.measuring import criterion_of

FLAGS = ("--features", "pooled.npy", "--num_epochs", 2)


@pytest.fixture
def settings(tmp_path):
    """Writes a file of settings and gives its path."""

    def write(content, name="c.json"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return str(tmp_path / name)

    return write


# ---- kept ----


def test_a_run_can_be_repeated_from_its_settings(train, script):
    assert train(*FLAGS, "--validate", "toy:val", "--dropout", 0.3, "--seed", 7, name="a").status == 0
    kept = json.loads((train.folder / "a" / "config.json").read_text())
    assert kept.keys() == default_settings().keys() and not kept.keys() & set(ACTIONS)
    assert (kept["dropout"], kept["seed"], kept["features"], kept["attention"]) == (0.3, 7, "pooled.npy", None)
    done = script("train.py", "--config", train.folder / "a" / "config.json", "--model_name", "b", "--save_every", 2)
    assert done.status == 0, done.err
    assert differences(train.folder / "a", train.folder / "b") == ""
    for name in ("ep2", "best", "last"):
        contents = checkpoint.load(train.folder / "b" / f"{name}.model")
        assert contents["settings"].items() >= {f"--{k}": v for k, v in kept.items() if k != "model_name"}.items() - {
            ("--save_every", 0), ("--cache_features", None)
        }  # fmt: skip


def test_model_info_and_averages_tell_settings(train, script, tmp_path):
    assert train(*FLAGS, "--seed", 7, name="a").status == 0
    models = [train.folder / "a" / f"ep{n}.model" for n in (1, 2)]
    told = script("model_info.py", models[0]).out
    (line,) = [line for line in told.splitlines() if line.startswith("settings ")]
    assert "--seed 7" in line and "--features pooled.npy" in line and "--hidden_size 32" in line
    assert "--dropout " not in line and "checksum" not in line
    (info,) = json.loads(script("model_info.py", models[0], "--json").out)
    assert info["settings"]["--seed"] == 7 and info["settings"]["--lr_step_size"] == 5

    done = train(*FLAGS, "--seed", 8, "--load_model", models[1], "--num_epochs", 3, name="b")
    assert done.status == 0, done.err
    mean = tmp_path / "mean.model"
    assert script("average_models.py", models[1], train.folder / "b" / "ep3.model", "--output", mean).status == 0
    contents = checkpoint.load(mean)
    assert contents["settings"]["--features"] == "pooled.npy" and "--seed" not in contents["settings"]
    assert [part["--seed"] for part in contents["parts"]] == [7, 8]
    assert contents["parts"][1]["--load_model"] == [str(models[1])]
    told = script("model_info.py", mean).out
    assert f"{models[1]}, weight 1: " in told and "--seed 8" in told


# ---- read ----


@pytest.mark.parametrize("name", ["c.json", "c.yaml"])
def test_the_command_line_goes_before_the_file_and_that_before_defaults(settings, name):
    pytest.importorskip("yaml")
    table = {"dataset": "toy:train", "batch_size": 64, "attention": "soft", "learning_rate": 1e-05, "cpu": True}
    table |= {"load_model": ["a b.model", "c.model"], "finetune_encoder": True, "lr_scheduler": "StepLR"}
    table |= {"hidden_size": 512, "grad_clip": None, "no_augment": False, "model_basename": "model"}
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in table.items())
    path = settings(lines if name.endswith("yaml") else table, name)
    args = parse_args("", ["--config", path, "--batch_size", "9", "--load_model", "x.model"])
    assert (args.batch_size, args.attention, args.cpu, args.load_model) == (9, "soft", True, ["x.model"])
    assert (args.learning_rate, args.finetune_encoder, args.lr_scheduler) == (1e-05, -1, "StepLR")
    untouched = {"hidden_size", "grad_clip", "no_augment", "model_basename"}  # as by default: not given
    assert args.typed_flags.keys() == {*table, "config"} - untouched
    assert parse_args("", ["--config", path]).load_model == ["a b.model", "c.model"]


@pytest.mark.parametrize(
    "content, told",
    [
        ({"batch_sise": 64}, "unknown setting 'batch_sise'; did you mean batch_size?"),
        ({"nothing like it": 1}, "unknown setting 'nothing like it'"),
        ({"resume": True}, "resume is for the command line"),
        ({"config": "x.json"}, "config is for the command line"),
        ({"help": True}, "unknown setting 'help'"),
        ({"batch_size": "many"}, "--batch_size: 'many' is not a whole number"),
        ({"batch_size": 6.5}, "--batch_size: '6.5' is not a whole number"),
        ({"batch_size": True}, "batch_size is 'True', not a value that it takes"),
        ({"batch_size": [1]}, "batch_size takes one value, not a list"),
        ({"batch_size": {}}, "batch_size is '{}', not a value that it takes"),
        ({"batch_size": 0}, "--batch_size 0: at least 1"),
        ({"load_model": []}, "load_model is '[]'"),
        ({"load_model": [None]}, "load_model is '[None]'"),
        ({"cpu": "yes"}, "cpu is 'yes', not true or false"),
        ({"rnn_arch": "RNN"}, "--rnn_arch: invalid choice: 'RNN'"),
        ('{"dropout": NaN}', "--dropout: 'nan' is not a finite number"),
        ("[1]", "is a list, not an object"),
        ("{", "is not valid JSON"),
        ('{"seed": 1, "seed": 2}', "has the key 'seed' twice"),
    ],
)
def test_files_of_settings_that_cannot_be_read(settings, script, content, told):
    path = settings(content)
    done = script("train.py", "--dataset", "toy:train", "--config", path)
    assert done.status == 2 and done.err.count("\n") == 1 and told in done.err, done.err
    assert done.err.startswith("train.py: error: ") and ("--config" in done.err or "batch_size 0" in done.err)


@pytest.mark.parametrize(
    "content, told",
    [
        ("a: [", "is not valid YAML: while parsing"),
        ("- 1", "is a list, not an object"),
        ("1: 2", "a name is a number, not a text"),
        ("", "is null, not an object"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("a: &a [*a]", "unknown setting 'a'"),
        ("seed: 2020-01-01", "not a value that it takes"),
        ("seed: 1\nepochs: 2\nseed: 3", "is not valid YAML: it has the name 'seed' twice"),
    ],
)
def test_yaml_that_cannot_be_read(settings, script, content, told):
    pytest.importorskip("yaml")
    done = script("train.py", "--dataset", "toy:train", "--config", settings(content, "c.yml"))
    assert done.status == 2 and done.err.count("\n") == 1 and told in done.err, done.err


def test_captions_come_back_as_they_were_typed():
    kept = all_settings(vars(parse_args("", ["--captions", "c.csv"])))
    assert (kept["captions"], kept["dataset"]) == ("c.csv", None)


# ---- which epoch is best ----


def test_the_best_epoch_by_another_figure(tmp_path):
    folder = RunFolder(tmp_path, [])
    rows = [(3.0, 0.5, 0.2), (2.0, 0.4, 0.3), (2.5, 0.6, 0.1)]
    for epoch, (loss, cider, bleu) in enumerate(rows, 1):
        row = {"validation_loss": loss, "validation_cider": cider, "validation_bleu_4": bleu, "training_loss": 1.0}
        folder.add_epoch(epoch, row)
    best = {}
    for name in (None, "loss", "cider", "bleu_4"):
        folder.best_by = name
        best[name] = folder.best_epoch()
        assert folder.criterion_text() == f"validation_{name or 'cider'}"
    assert best == {None: 3, "loss": 2, "cider": 3, "bleu_4": 2}
    folder.best_by = "meteor"  # which could not be measured
    assert folder.best_epoch() == 3


def test_a_score_that_was_asked_for_counts_however_low_it_is(tmp_path):
    folder = RunFolder(tmp_path, [])
    folder.best_by = "cider"
    for epoch, (loss, cider) in enumerate([(4.0, 0.002), (3.0, 0.0)], 1):
        folder.add_epoch(epoch, {"validation_loss": loss, "validation_cider": cider})
    assert folder.best_epoch() == 1 and folder.criterion_text() == "validation_cider"


def test_names_of_figures(no_java):
    metrics = ("bleu", "cider", "rouge", "meteor", "ciderd")
    names = {"loss": "loss", "bleu": "bleu_4", "BLEU-1": "bleu_1", "validation_bleu_2": "bleu_2", "rouge": "rouge_l"}
    for name, figure in (names | {"CIDEr": "cider", "ciderd": "ciderd", "validation_loss": "loss"}).items():
        assert criterion_of(name, metrics, has_words=True) == figure
    for name, told in {
        "spice": "it is not measured: add spice to --validation_scoring",
        "meteor": "it needs Java",
        "bleu7": "it is none of loss",
        "cider,bleu": "it is none of loss",
        "": "it is none of loss",
        "ciderd": "it needs document frequencies",
    }.items():
        with pytest.raises(UserError, match=f"--best_by {name}: {told}"):
            criterion_of(name, metrics, has_words=False)


def test_a_run_stops_by_the_figure_that_is_named(train):
    """Captions stay as they are at so low a rate, while the loss still falls a little."""
    flags = ("--features", "pooled.npy", "--validate", "toy:val", "--num_epochs", 6, "--early_stopping", 2)
    slow = ("--learning_rate", 1e-6, "--optimizer", "adam")
    assert train(*flags, *slow, "--best_by", "loss", name="loss").status == 0
    done = train(*flags, *slow, "--best_by", "bleu1", name="bleu")
    assert "no better validation_bleu_1 for 2 epochs: stopped early" in done.out
    assert (len(stats(train.folder / "loss")), len(stats(train.folder / "bleu"))) == (6, 3)
    assert checkpoint.load(train.folder / "loss" / "best.model")["epoch"] == 6
    assert checkpoint.load(train.folder / "bleu" / "best.model")["epoch"] == 1
    # going on: the same figure decides, unless another one is asked for
    again = (*flags, *slow, "--early_stopping", 0)
    done = train(*again, "--resume", name="bleu")
    assert done.status == 2 and "--best_by was bleu1, now None" in done.err
    done = train(*again, "--resume_changed", "--best_by", "loss", "--num_epochs", 4, name="bleu")
    assert done.status == 0 and checkpoint.load(train.folder / "bleu" / "best.model")["epoch"] == 4


def test_a_new_figure_takes_the_best_model_along(train):
    flags = ("--features", "pooled.npy", "--validate", "toy:val", "--num_epochs", 2, "--learning_rate", 1e-6)
    assert train(*flags, "--best_by", "bleu1").status == 0
    assert checkpoint.load(train.folder / "run" / "best.model")["epoch"] == 1
    done = train(*flags, "--resume_changed", "--best_by", "loss")
    assert done.status == 0 and "nothing to do" in done.out
    assert checkpoint.load(train.folder / "run" / "best.model")["epoch"] == 2


@pytest.mark.parametrize(
    "flags, told",
    [
        (("--best_by", "loss"), "--best_by is for training with validation"),
        (("--validate", "toy:val", "--best_by", "meteor"), "it is not measured: add meteor to --validation_scoring"),
    ],
)
def test_figures_that_are_not_there(train, flags, told):
    done = train("--features", "pooled.npy", *flags)
    assert done.status == 2 and done.err.count("\n") == 1 and told in done.err
