"""The CIDEr-D reward against the COCO scorer, baselines, and that self-critical training raises the reward."""

import json

import numpy as np
import pytest
import torch
from toy import SENTENCES, document_frequencies, make_coco, scene, write_config, write_features

from captioning.scoring.metrics import CiderD, tokenize
from captioning.text.tokens import END
from training.cider_reward import CiderReward
from training.self_critical import SelfCritical, self_critical_loss
from training.settings import TrainSettings
from vocabulary import build_vocabulary


@pytest.fixture(scope="module")
def references():
    return {n: [s.format(colour=scene(n)[0], shape=scene(n)[1]) for s in SENTENCES] for n in range(12)}


@pytest.fixture(scope="module")
def vocabulary(references):
    return build_vocabulary([c for group in references.values() for c in group], 1)


def test_reward_is_the_scorers_cider_d(references, vocabulary):
    """Without the <end> token the reward equals CIDEr-D of pycocoevalcap with the same frequencies to 1e-6."""
    reward = CiderReward(references, vocabulary, end_token=False)
    scorer = CiderD(document_frequencies(references.values()))
    said = [
        "a red ball on a grey floor .",
        "the box is blue",
        "one yellow roof , painted yellow",
        "ball ball ball",
        "a",
    ]
    keys = list(references)[: len(said)]
    for key, text in zip(keys, said):
        scorer += (tokenize([text], "python")[0][0], tokenize(references[key], "python")[0])
    expected = scorer.compute_score()[1]
    ours = [reward.score_ids(key, vocabulary.encode(text)) for key, text in zip(keys, said)]
    assert ours == pytest.approx(list(expected), abs=1e-6)


def test_end_token_punishes_a_caption_cut_off(references, vocabulary):
    reward = CiderReward(references, vocabulary)
    whole = [*vocabulary.encode(references[0][2]), END]
    assert reward.score_ids(0, whole) > reward.score_ids(0, whole[:-1])
    assert reward.score_ids(0, whole) > reward.score_ids(0, [*whole[:-2], END])


def test_advantages_by_hand(references, vocabulary):
    reward = CiderReward(references, vocabulary)
    rows = [
        [*vocabulary.encode(text), END] for text in ("a red ball", "the ball is red", "one roof", "the roof is blue")
    ]
    scores = [reward.score_ids(key, row) for key, row in zip((0, 0, 2, 2), rows)]
    values, _, _, mean = SelfCritical(TrainSettings(self_critical_samples=2), reward).advantages([0, 2], rows, None)
    by_hand = [scores[0] - scores[1], scores[1] - scores[0], scores[2] - scores[3], scores[3] - scores[2]]
    assert values.tolist() == pytest.approx(by_hand, abs=1e-5)
    assert mean == pytest.approx(np.mean(scores))
    objective = SelfCritical(TrainSettings(self_critical_samples=1), reward)
    values, *_ = objective.advantages([0, 2], [rows[0], rows[2]], [rows[1], rows[3]])
    assert values.tolist() == pytest.approx([scores[0] - scores[1], scores[2] - scores[3]], abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_loss_gradient_is_advantage_times_softmax_error(temperature):
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    targets, advantage = torch.tensor([1, 4, 0]), torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64)
    self_critical_loss(logits, targets, advantage, temperature).backward()
    error = (logits.detach().float() / temperature).softmax(1).double() - torch.eye(5, dtype=torch.float64)[targets]
    assert torch.allclose(logits.grad, error * advantage.unsqueeze(1) / 3 / temperature, atol=1e-6)


def test_training_raises_the_reward(tmp_path, script):
    make_coco(tmp_path, {"train": 24})
    config = write_config(tmp_path, ["train"])
    write_features(tmp_path, "pooled.npy")
    common = ["--dataset", "toy:train", "--dataset_config_file", config, "--model_path", tmp_path / "models", "--cpu"]
    common += ["--vocab_root", tmp_path / "vocab", "--embed_size", 24, "--hidden_size", 32, "--batch_size", 40]
    common += ["--optimizer", "adam", "--vocab_threshold", 1, "--features", "pooled.npy", "--learning_rate", 0.01]
    assert script("train.py", *common, "--num_epochs", 6, "--model_name", "xe").status == 0
    more = ["--load_model", tmp_path / "models" / "xe" / "ep6.model", "--self_critical_from_epoch", 7]
    done = script("train.py", *common, *more, "--num_epochs", 16, "--model_name", "sc", "--learning_rate", 0.003)
    assert done.status == 0, done.err
    rows = json.loads((tmp_path / "models" / "sc" / "train_stats.json").read_text())
    assert rows["16"]["training_reward"] > 1.2 * rows["7"]["training_reward"]
    assert "reward" in done.out
