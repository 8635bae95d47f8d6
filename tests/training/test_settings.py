"""train.py's flags and the dataclasses that hold their defaults."""

from dataclasses import fields

import pytest

from captioning.checkpoint import are_settings
from captioning.config import FeatureSpec, ModelConfig, ParagraphConfig
from training.flags import FIRST_USE, SETTINGS, parse_args
from training.settings import (
    FIXED,
    MAY_CHANGE,
    DataSettings,
    RunSettings,
    TrainSettings,
    changes,
    lasting_settings,
    model_settings,
)


def test_what_is_not_typed_has_the_default_of_its_setting():
    args = parse_args("", ["--dataset", "toy:train", "--hidden_size", "512"])
    assert args.typed_flags == {"dataset": "toy:train", "hidden_size": 512}
    for kind in SETTINGS:
        own = {"dataset": "toy:train"} if kind is DataSettings else {}
        others = {"features": [], "persist_features": []} if kind is ModelConfig else {}
        assert kind.of(vars(args), **others) == kind(**own)


def test_every_setting_has_a_flag():
    flags = vars(parse_args("", ["--dataset", "toy:train"]))
    made_of_others = {"projection", "encoder_in_file", "paragraphs", "of_decoder"}
    for kind in SETTINGS:
        assert {field.name for field in fields(kind)} - made_of_others <= flags.keys()
    assert set(FIRST_USE) <= flags.keys()


def test_mix_is_numbers_for_the_parts_of_a_dataset(capsys):
    assert DataSettings().times == () and DataSettings.of(
        vars(parse_args("", ["--mix", "1,2.5", "--dataset", "a+b"]))
    ).times == (1.0, 2.5)
    for typed in ("1,", "0,1", "a", "1,nan", "1001"):
        with pytest.raises(SystemExit):
            parse_args("", ["--dataset", "a+b", "--mix", typed])
        assert "numbers above 0 and up to 1,000 with commas" in capsys.readouterr().err
    assert are_settings(lasting("--mix", "1,2")) and lasting("--mix", "1,2")["--mix"] == "1,2"


# ---- what must be the same when a run goes on ----


def lasting(*typed: str) -> dict:
    flags = vars(parse_args("", ["--dataset", "toy:train", *typed]))
    return lasting_settings(*(kind.of(flags) for kind in (DataSettings, TrainSettings, RunSettings)))


COMPARED = (
    "batch_size 9, captions_per_image 2, num_batches 3, no_augment, cache_features x, learning_rate 0.5, seed 1, "
)
COMPARED += "encoder_learning_rate 0.5, encoder_lr_decay 0.5 --finetune_encoder, lr_word_decoder 0, weight_decay 0, "
COMPARED += "grad_clip 1, grad_clip_norm 1, lr_scheduler StepLR, optimizer sgd, lr_step_size 9, warmup_steps 9, "
COMPARED += "amp bf16, label_smoothing 0.1, regularize_attn 1, teacher_forcing sampled, teacher_forcing_k 9, ema 0.9, "
COMPARED += "validation_step 9, validation_scoring none, validation_beam_size 3, deterministic, distill_weight 0.9, "
COMPARED += "self_critical_from_epoch 2, trigram_penalty_alpha 1"


@pytest.mark.parametrize("typed", COMPARED.split(", "))
def test_settings_that_a_number_depends_on_are_compared(typed):
    name = f"--{typed.split()[0]}"
    found = changes(lasting(), lasting(name, *typed.split()[1:]), begun=2, self_critical=False)
    assert list(found) == [name] and found[name].startswith(f"{name} was ")


def test_each_setting_is_compared_or_may_change():
    """A new one is compared, unless somebody has thought about it."""
    names = {field.name for kind in SETTINGS for field in fields(kind)}
    assert set(MAY_CHANGE.split()) <= names
    assert not changes(lasting(), lasting("--num_workers", "3", "--num_epochs", "99", "--keep", "2"), 2, False)
    longer = changes(
        lasting("--lr_scheduler", "cosine"), lasting("--lr_scheduler", "cosine", "--num_epochs", "9"), 2, False
    )
    assert longer == {"--num_epochs": "--num_epochs was 5, now 9"}


def test_settings_of_self_critical_training_count_once_it_has_begun():
    was, now = lasting("--self_critical_from_epoch", "4"), lasting("--gamma_ml_rl", "0.5")
    assert not changes(was, now, begun=3, self_critical=False)
    assert list(changes(was, now, begun=4, self_critical=True)) == ["--gamma_ml_rl", "--self_critical_from_epoch"]
    assert not changes(lasting("--self_critical_from_epoch", "0"), lasting("--self_critical_from_epoch", "1"), 4, True)


def test_what_a_model_is_made_of():
    def config(name="a.npy", **settings) -> dict:
        return model_settings(ModelConfig([FeatureSpec(name, (7,), True)], **settings))

    assert config() == config("elsewhere/b.lmdb") == config(attention_size=99)  # without attention it means nothing
    found = changes(config(), config(num_layers=2, dropout=0.5, paragraphs=ParagraphConfig()), 1, False)
    assert found.keys() & FIXED == {"--num_layers", "--hierarchical_model"} and "--dropout" in found
    other = model_settings(ModelConfig([FeatureSpec("a.npy", (7, 3, 3), True, {"extractor": "resnet152-conv"})]))
    told = "--features was file 7, now file 7x3x3 (resnet152-conv)"
    assert changes(config(), other, 1, False) == {"--features": told}


@pytest.mark.parametrize(
    "vocab, folder", [("AUTO", "kept"), ("REGEN", "kept"), ("words/v.json", "words"), ("v.pkl", ".")]
)
def test_word_ids_are_kept_beside_the_vocabulary(vocab, folder):
    assert DataSettings(vocab=vocab, vocab_root="kept").ids_folder == folder
