"""The table of DeepCaption's flags in docs/deepcaption.md against the help of the scripts."""

import re

import pytest
from running import ROOT, flags_of

DEEPCAPTION = {
    "resize.py": "image_dir output_dir image_size subset create_zip",
    "build_vocab.py": "dataset dataset_config_file "
    "vocab_output_path vocab_threshold num_workers no_tokenize show_tokens "
    "keep_frequency create_vocab_stats_file create_leftovers_file leftovers_from_vocabulary "
    "leftovers_from_dataset dont_create_vocab verbose show_vocab_stats",
    "train.py": "dataset dataset_config_file validate validation_step validation_scoring validate_only "
    "skip_existing_validations num_workers batch_size num_batches crop_size vocab vocab_root no_tokenize "
    "show_tokens vocab_threshold skip_start_token show_vocab_stats features persist_features embed_size "
    "hidden_size num_layers dropout encoder_dropout encoder_non_lin rnn_arch rnn_hidden_init "
    "share_embedding_weights attention regularize_attn hierarchical_model lr_word_decoder pooling_size "
    "max_sentences weight_sentence_loss weight_word_loss dropout_stopping dropout_fc fc_size "
    "coherent_sentences coupling_alpha coupling_beta "
    "optimizer learning_rate weight_decay grad_clip lr_scheduler lr_step_size "
    "lr_cyclical_min lr_cyclical_max teacher_forcing teacher_forcing_k teacher_forcing_beta "
    "self_critical_from_epoch self_critical_loss cached_words trigram_penalty_alpha gamma_ml_rl "
    "model_name model_basename output_root model_path load_model optimizer_reset replace force_epoch "
    "num_epochs log_step verbose profiler cpu tensorboard tmp_dir_prefix",
    "infer.py": "image_dir dataset dataset_config_file model vocab print_results output_file output_format "
    "results_path scoring batch_size num_workers resize max_seq_length alternatives probabilities "
    "no_repeat_sentences only_complete_sentences no_capitalize lemma_pos_rules ext_features "
    "ext_persist_features store_image_paths cpu verbose",
    "extract_features.py": "dataset dataset_config_file "
    "extractor feature_type normalize crop_size image_size output_dir "
    "output_file batch_size num_workers num_crops log_step",
    "plot_stats.py": "labels smooth_cider watch",
}
ROW = re.compile(r"^\| (\w+\.py) \| `--(\w+)` \| ([^|]*) \| ([^|]*) \|$")


def table() -> dict[tuple[str, str], tuple[str, str]]:
    """(script, flag) -> (status, remark)."""
    rows = [ROW.match(line) for line in (ROOT / "docs/deepcaption.md").read_text(encoding="utf-8").splitlines()]
    found = {(row[1], row[2]): (row[3].strip(), row[4].strip()) for row in rows if row}
    assert len(found) == len([row for row in rows if row]), "a flag stands in the table twice"
    return found


TABLE = table()


def test_every_flag_of_deepcaption_is_in_the_table():
    assert set(TABLE) == {(script, flag) for script, flags in DEEPCAPTION.items() for flag in flags.split()}


@pytest.mark.parametrize("script", sorted(DEEPCAPTION))
def test_the_table_tells_what_the_parser_has(script):
    flags = flags_of(script)
    wrong = []
    for (name, flag), (status, remark) in TABLE.items():
        if name != script:
            continue
        if status == "same":
            wrong += [] if flag in flags else [f"--{flag} is not there"]
        elif status == "left out":
            wrong += [f"--{flag} is there, not left out"] if flag in flags else []
            wrong += [] if len(remark) > 15 else [f"--{flag} is left out without a reason"]
        else:
            new = re.fullmatch(r"renamed to `--(\w+)`", status)
            wrong += [] if new and new[1] in flags else [f"--{flag}: {status!r} names no flag of the script"]
            wrong += [] if remark else [f"--{flag} is renamed without a reason"]
    assert not wrong, f"{script}: {'; '.join(wrong)}"


@pytest.mark.parametrize("script", sorted(DEEPCAPTION))
def test_every_flag_has_a_help_text(script):
    bare = [flag for flag, text in flags_of(script).items() if not text]
    assert not bare, f"{script}: no help for {', '.join(bare)}"
