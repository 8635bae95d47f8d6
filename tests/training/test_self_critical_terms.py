"""The self-critical family, each term against a plain re-computation from its definition, and through train.py."""

import json
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from toy import make_coco, write_config, write_features
from toy_decoders import Keys, TableDecoder, config_of

from captioning import checkpoint
from captioning.decoder.search import Search, generate, generate_rows
from captioning.rows import Packing
from captioning.text.tokens import END, PAD, START, UNK
from model import Captioner, build_model
from training.cider_reward import CiderReward
from training.losses import Objective
from training.self_critical import SelfCritical, policy_logits, self_critical_loss
from training.self_critical_terms import WordCounts, extra_term, face_loss, sentence_bleu
from training.settings import SelfCriticalLoss, TrainSettings
from training.trainer import Trainer
from vocabulary import build_vocabulary

SAMPLES = [[5, 6, 7, 5, 6, 7, 5, 6], [5, 5, 5, 5], [9], [5, 6, 7, 8], []]
REFERENCES = [[[5, 6, 7, 8], [5, 6]], [[5, 5]], [[9], [9, 9]], [[5, 6, 7, 8, 9]], [[5]]]


def grams(tokens, n):
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def diversity(samples) -> float:
    tokens = sum(map(len, samples))
    return -sum(len({g for s in samples for g in grams(s, n)}) / tokens for n in (1, 2, 3, 4))


def test_diversity_by_definition():
    term = extra_term("sc_with_diversity", SAMPLES, REFERENCES)
    assert term.value == pytest.approx(diversity(SAMPLES))
    for i, cost in enumerate(term.costs):  # what leaving the caption out would change
        assert cost == pytest.approx(len(SAMPLES) * (diversity(SAMPLES) - diversity(SAMPLES[:i] + SAMPLES[i + 1 :])))


def test_diversity_gradient_is_unbiased():
    """Two captions of one word each: the exact gradient of the expected value against that of its estimates."""
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    p = logits.softmax(0)
    expected = sum(p[a] * p[b] * diversity([[a], [b]]) for a in range(3) for b in range(3))
    (exact,) = torch.autograd.grad(expected, logits, retain_graph=True)
    estimate = torch.zeros(3, dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            costs = extra_term("sc_with_diversity", [[a], [b]], [[], []]).costs / 2  # they are N times the gain
            surrogate = costs[0] * p[a].log() + costs[1] * p[b].log()
            (gradient,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
            estimate += (p[a] * p[b]).detach() * gradient
    assert torch.allclose(exact, estimate, atol=1e-12)


def test_relative_diversity_by_definition():
    term = extra_term("sc_with_relative_diversity", SAMPLES, REFERENCES)
    for sample, references, cost in zip(SAMPLES, REFERENCES, term.costs):
        distance = 0.0
        for n in (1, 2, 3, 4):
            keys = {g for text in [sample, *references] for g in grams(text, n)}
            for key in keys:
                mean = sum(grams(reference, n).count(key) for reference in references) / len(references)
                distance += abs(grams(sample, n).count(key) - mean)
        assert cost == pytest.approx(0.1 * distance)
    assert term.value == pytest.approx(term.costs.mean())


def test_bleu_is_nltks():
    from nltk.translate.bleu_score import SmoothingFunction
    from nltk.translate.bleu_score import sentence_bleu as reference_bleu

    rng = np.random.default_rng(0)
    for _ in range(60):
        sample = rng.integers(0, 6, rng.integers(4, 9)).tolist()
        references = [rng.integers(0, 6, rng.integers(4, 9)).tolist() for _ in range(3)]
        expected = reference_bleu(references, sample, smoothing_function=SmoothingFunction().method2)
        assert sentence_bleu(sample, references) == pytest.approx(expected, abs=1e-12)
    assert sentence_bleu([5, 6, 7, 8], [[1], [5, 6, 7, 8]]) == pytest.approx(1)
    assert sentence_bleu([5], [[6]]) == 0 == sentence_bleu([], [[6]])
    term = extra_term("sc_with_bleu_diversity", SAMPLES, REFERENCES)
    assert term.value == pytest.approx(-0.15 * np.mean([sentence_bleu(*x) for x in zip(SAMPLES, REFERENCES)]))


def test_repetition_by_definition():
    term = extra_term("sc_with_repetition", SAMPLES, REFERENCES)
    d = [0.0] * 5
    for sample in SAMPLES:
        for n in (1, 2, 3, 4):
            if len(sample) >= n:
                counts = Counter(grams(sample, n)).values()
                d[n] += sum((count - 1) ** 2 for count in counts) / (len(sample) - n + 1)
    assert term.value == pytest.approx(0.1 * d[1] + d[2] + d[3] + d[4])
    assert term.costs.sum() == pytest.approx(term.value) and term.costs[3] == 0


def test_face_by_definition():
    """arXiv 1902.09191, equations 4 to 6: w = 1 - RF / max RF, normalised to a mean of 1."""
    counts = WordCounts(6)
    assert counts.weights().tolist() == [1.0] * 6
    counts.add(torch.tensor([4, 4, 4, 5, 5, 2]))
    frequency = [0, 0, 1 / 6, 0, 3 / 6, 2 / 6]
    raw = [1 - f / (3 / 6) for f in frequency]
    expected = [w / sum(raw) * 6 for w in raw]
    assert counts.weights().tolist() == pytest.approx(expected, rel=1e-6)
    logits, targets = torch.randn(4, 6), torch.tensor([4, 5, 0, 2])
    by_hand = 0.0
    for row, target in zip(logits.tolist(), targets.tolist()):
        by_hand += expected[target] * (math.log(sum(math.exp(x) for x in row)) - row[target]) / 4
    assert face_loss(logits, targets, counts.weights()).item() == pytest.approx(by_hand, rel=1e-5)


@pytest.fixture(scope="module")
def reward():
    references = {0: ["a red ball", "the ball is red"], 1: ["one blue roof", "the roof is blue"]}
    return CiderReward(references, build_vocabulary([c for texts in references.values() for c in texts], 1))


@pytest.mark.parametrize("name", get_args(SelfCriticalLoss)[:5])
@pytest.mark.parametrize("greedy", [False, True])
def test_advantages_take_the_costs_from_the_reward(reward, name, greedy):
    rows = [[4, 5, 6, END, PAD], [7, 6, 8, 5, END], [9, 10, 9, 10, 11], [11, END, PAD, PAD, PAD]]
    settings = TrainSettings(self_critical_loss=name, self_critical_samples=1 if greedy else 2)
    objective = SelfCritical(settings, reward)
    keys, owners = ([0, 0, 1, 1], [0, 0, 1, 1]) if greedy else ([0, 1], [0, 0, 1, 1])
    lines = [row[::-1] for row in rows] if greedy else None
    wanted, reported, value, mean = objective.advantages(keys, rows, lines)

    def cut(row):
        return row[: row.index(END) + 1] if END in row else row

    def words(row):
        return reward.tokens(cut(row))

    def costs(several):
        term = extra_term(name, [words(r) for r in several], [reward.reference_tokens(k) for k in owners])
        return [0.0] * 4 if term is None else term.costs.tolist()

    cider = [reward.score_ids(k, cut(row)) for k, row in zip(owners, rows)]
    base = [reward.score_ids(k, cut(row)) for k, row in zip(owners, lines)] if greedy else np.array(cider)[[1, 0, 3, 2]]
    assert reported.tolist() == pytest.approx([c - b for c, b in zip(cider, base)], abs=1e-5)
    assert mean == pytest.approx(np.mean(cider))
    cost = costs(rows)
    if name == "sc_with_diversity":
        cost_base = [0.0] * 4
    else:
        cost_base = costs(lines) if greedy else np.array(cost)[[1, 0, 3, 2]]
    total = [c - b - (x - y) for c, b, x, y in zip(cider, base, cost, cost_base)]
    assert wanted.tolist() == pytest.approx(total, abs=1e-5)
    assert (value is None) == (name == "sc")


# ---- the trigram penalty ----

ALPHA = 1.7


def earlier(words: list[int], t: int) -> int:
    """How often the trigram that ends in words[t] was written before."""
    return sum(words[p : p + 3] == words[t - 2 : t + 1] for p in range(t - 2)) if t >= 2 else 0


def penalised(decoder, key, words) -> float:
    total = 0.0
    for t, word in enumerate(words):
        total += decoder.after(key, words[:t])[word] - ALPHA * math.log(2) * earlier(words, t)
    return total


@pytest.mark.parametrize("beam", [1, 4])
def test_search_lowers_repeated_trigrams(beam):
    """A decoder of three words that would go round for ever: scores re-computed word by word."""
    decoder, keys = TableDecoder(3, seed=3, end_bias=-9.0, spread=0.3, rows=7), Keys(torch.arange(6))
    search = Search(beam_size=beam, max_length=14, length_penalty=1.0, trigram_penalty_alpha=ALPHA)
    found = generate(decoder, keys, search)
    repeats = 0
    for key, (tokens, log_prob) in enumerate(zip(found.tokens[:, 0].tolist(), found.log_prob[:, 0].tolist())):
        words = tokens[: tokens.index(END) + 1]
        assert log_prob == pytest.approx(penalised(decoder, key, words), abs=1e-4)
        repeats += sum(earlier(words, t) for t in range(len(words)))
        if beam == 1:  # each word is the best one under the penalty
            for t, word in enumerate(words[:-1]):
                scores = [penalised(decoder, key, [*words[:t], w]) for w in (END, 4, 5, 6)]
                assert max(scores) == pytest.approx(scores[[END, 4, 5, 6].index(word)], abs=1e-5)
    free = generate(decoder, keys, replace(search, trigram_penalty_alpha=0)).tokens[:, 0].tolist()
    assert repeats < sum(earlier(t[: t.index(END)], i) for t in free for i in range(t.index(END)))


def test_policy_has_the_penalty_of_the_sampler():
    """The log-probabilities that are differentiated are those that the sampler added up."""
    torch.manual_seed(1)
    decoder, keys = TableDecoder(3, seed=3, end_bias=-2.0, rows=7), Keys(torch.arange(40))
    decoder.table[:, [PAD, START, UNK]] = -40.0  # never drawn, or sampling would renormalise
    decoder.log_probs = decoder.table.log_softmax(1)
    drawn = generate_rows(decoder, keys, Search(sample=True, max_length=15, trigram_penalty_alpha=ALPHA))
    tokens = drawn.tokens[:, 0]
    captions = torch.cat([torch.full_like(tokens[:, :1], START), tokens], 1)
    lengths = (captions != PAD).sum(1)
    packing = Packing.of(lengths - 1, "cpu")
    rows = [tokens[row, :time].tolist() for row, time in zip(packing.row.tolist(), packing.time.tolist())]
    logits = torch.tensor([decoder.after(row, words) for row, words in zip(packing.row.tolist(), rows)])
    changed = policy_logits(logits, captions, lengths, ALPHA)
    assert not torch.equal(changed[:, 4:], logits[:, 4:])
    targets = tokens[packing.row, packing.time].unsqueeze(1)
    totals = torch.zeros(40).index_add(0, packing.row, changed.gather(1, targets).squeeze(1))
    assert torch.allclose(totals, drawn.log_prob[:, 0], atol=1e-4)
    free = policy_logits(logits, captions, lengths, 0.0)
    assert (free[:, [PAD, START, UNK]] == -math.inf).all()  # never drawn, so they have no part in the policy
    assert torch.equal(free[:, [END, 4, 5, 6]], logits[:, [END, 4, 5, 6]])


# ---- through train.py ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from running import run_here

    root = tmp_path_factory.mktemp("sc")
    make_coco(root, {"train": 24, "val": 6})
    config = write_config(root, ["train", "val"])
    write_features(root, "pooled.npy")
    common = ["--dataset", "toy:train", "--dataset_config_file", config, "--model_path", root / "models", "--cpu"]
    common += ["--vocab_root", root / "vocab", "--embed_size", 24, "--hidden_size", 32, "--batch_size", 40]
    common += ["--optimizer", "adam", "--vocab_threshold", 1, "--features", "pooled.npy", "--learning_rate", 0.01]
    assert run_here("train.py", *common, "--num_epochs", 5, "--model_name", "xe").status == 0
    return SimpleNamespace(root=root, common=common, start=root / "models" / "xe" / "ep5.model", run=run_here)


def rows_of(trained, name) -> dict:
    return json.loads((trained.root / "models" / name / "train_stats.json").read_text())


@pytest.mark.parametrize("name", get_args(SelfCriticalLoss))
def test_every_loss_trains(trained, name):
    more = ["--load_model", trained.start, "--self_critical_from_epoch", 6, "--self_critical_loss", name]
    more += ["--num_epochs", 7, "--learning_rate", 0.003, "--model_name", name, "--trigram_penalty_alpha", 1]
    more += ["--gamma_ml_rl", 0.7, "--self_critical_samples", 1 if name == "sc_with_repetition" else 3]
    done = trained.run("train.py", *trained.common, *more)
    assert done.status == 0, done.err
    rows = rows_of(trained, name)
    assert rows["7"]["training_reward"] > 0 and math.isfinite(rows["7"]["training_loss"])
    assert len(list((trained.root / "vocab").glob("*.words.npz"))) == 1  # counted once, then read


def test_mixed_loss_is_the_weighted_sum(trained):
    """One step by hand: the same random numbers give the drawn part, the true captions the other."""
    from toy import file_inputs

    from captioning.datasets.base import image_key
    from captioning.datasets.factory import open_dataset
    from data_loader import LoaderSettings, get_loader
    from model import load_captioner
    from training.losses import token_cross_entropy
    from training.trainer import Trainer

    dataset = open_dataset("toy:train", trained.common[3])
    inputs = file_inputs(dataset, "pooled.npy")

    def step(loss, gamma=0.3):
        captioner, other = (load_captioner(trained.start, photos=False) for _ in range(2))
        loader = get_loader(dataset, captioner.vocabulary, inputs, LoaderSettings(batch_size=40))
        references = {image_key(item): item.captions for item in loader.items}
        settings = TrainSettings(learning_rate=1e-9, self_critical_loss=loss, gamma_ml_rl=gamma)
        objective = SelfCritical(settings, CiderReward(references, captioner.vocabulary))
        trainer = Trainer(captioner, settings, objective)
        batch = next(iter(loader))
        other.model.train()  # as the step does it for the true captions
        memory = other.model.encode(None, batch.inputs)
        logits, targets, _, _ = other.model.decode(memory, batch.captions, batch.lengths, batch.row_image)
        truth = token_cross_entropy(logits, targets).item()
        return trainer.train_step(batch).reported.item(), truth, logits.detach(), targets, objective

    plain, truth, *_ = step("sc")
    mixed, *_ = step("mixed")
    assert mixed == pytest.approx(0.3 * plain + 0.7 * truth, abs=1e-5)
    face, _, logits, targets, objective = step("mixed_with_face")
    weights = objective.word_counts.weights()
    assert weights.min() == 0 and weights.mean().item() == pytest.approx(1, abs=1e-6)
    by_hand = (weights[targets] * -logits.log_softmax(1)[range(len(targets)), targets]).mean().item()
    assert face == pytest.approx(0.3 * plain + 0.7 * by_hand, abs=1e-5)


def test_turning_midway_goes_back_to_the_best_epoch(trained):
    """Epochs 1 to 4 by cross-entropy, then from the best of them: weights at the start of epoch 5, optimizer, rate."""
    more = ["--validate", "toy:val", "--self_critical_from_epoch", 5, "--num_epochs", 6, "--model_name", "midway"]
    more += ["--learning_rate", 0.05, "--optimizer", "rmsprop", "--self_critical_learning_rate", 1e-30]
    done = trained.run("train.py", *trained.common, *more)
    assert done.status == 0, done.err
    rows, folder = rows_of(trained, "midway"), trained.root / "models" / "midway"
    best = max("1234", key=lambda epoch: (rows[epoch]["validation_cider"], -int(epoch)))
    assert f"goes on from epoch {best}, the best so far" in done.out
    assert "training_reward" in rows["5"] and "training_reward" not in rows["4"]
    last = checkpoint.load(folder / "last.model")
    assert last["training"]["trainer"]["optimizer_name"] == "adam" and last["training"]["trainer"]["turned"] == 5
    assert last["training"]["trainer"]["optimizer"]["param_groups"][0]["weight_decay"] == 0
    started = checkpoint.load(folder / f"ep{best}.model")["state"]
    for name, value in checkpoint.load(folder / "ep5.model")["state"].items():  # nothing moves at a rate of 1e-30
        assert torch.allclose(value, started[name], atol=1e-12)
    assert rows["5"]["validation_cider"] == pytest.approx(rows[best]["validation_cider"], abs=1e-9)
    resumed = trained.run("train.py", *trained.common, *more[:4], "--num_epochs", 7, *more[6:], "--resume")
    assert resumed.status == 0 and "goes on from epoch" not in resumed.out, resumed.err
    assert "training_reward" in rows_of(trained, "midway")["7"]


def test_a_loaded_model_is_trained_by_adam_at_a_low_rate(trained):
    """Self-critical from the first epoch on. The optimizer's state of another objective stays behind."""
    at, flags = trained.common.index("--optimizer"), list(trained.common)
    flags[at : at + 2] = []
    flags[flags.index("--learning_rate") :] = []
    last = trained.start.parent / "last.model"
    more = ["--load_model", last, "--self_critical_from_epoch", 0, "--num_epochs", 6, "--model_name", "loaded"]
    done = trained.run("train.py", *flags, *more)
    assert done.status == 0, done.err
    assert "self-critical training by adam at a learning rate of 5e-05" in done.out
    state = checkpoint.load(trained.root / "models" / "loaded" / "last.model")["training"]["trainer"]
    assert (state["optimizer_name"], state["optimizer"]["param_groups"][0]["lr"]) == ("adam", 5e-5)
    assert max(int(one["step"]) for one in state["optimizer"]["state"].values()) == 3  # of this epoch
    resumed = trained.run("train.py", *flags, *more[:-4], "--num_epochs", 7, *more[-2:], "--resume")
    assert resumed.status == 0 and list(rows_of(trained, "loaded")) == ["6", "7"], resumed.err


def test_the_rates_of_a_cycle_are_told():
    settings = TrainSettings(optimizer="adam", lr_scheduler="CyclicalLR", lr_cyclical_min=1e-6, lr_cyclical_max=1e-4)
    words = build_vocabulary(["a"], 1)
    told = Trainer(Captioner(build_model(config_of(image=4), words), words), settings, Objective(settings)).method
    assert told == "adam at learning rates from 1e-06 to 0.0001 (CyclicalLR)"


def test_mixed_precision(trained):
    more = ["--load_model", trained.start, "--self_critical_from_epoch", 0, "--num_epochs", 6, "--amp", "bf16"]
    done = trained.run("train.py", *trained.common, *more, "--model_name", "bf16", "--self_critical_samples", 1)
    assert done.status == 0 and rows_of(trained, "bf16")["6"]["training_reward"] > 0, done.err


def test_turning_midway_without_validation_says_so(trained):
    more = ["--self_critical_from_epoch", 2, "--num_epochs", 2, "--model_name", "blind"]
    done = trained.run("train.py", *trained.common, *more)
    assert done.status == 0, done.err
    assert "goes on from epoch 1: nothing was validated" in done.out
    assert rows_of(trained, "blind")["2"]["learning_rate"] == 5e-5


@pytest.mark.parametrize("stopped_after", [2, 3])
def test_resumed_before_and_after_turning_equals_uninterrupted(trained, stopped_after):
    more = ["--validate", "toy:val", "--self_critical_from_epoch", 3, "--self_critical_loss", "mixed_with_face"]
    more += ["--lr_scheduler", "StepLR", "--ema", 0.9, "--gamma_ml_rl", 0.5]
    names = f"whole{stopped_after}", f"parts{stopped_after}"
    for name, parts in zip(names, ([4], [stopped_after, 4])):
        for epochs in parts:
            flags = ["--num_epochs", epochs, "--model_name", name, "--resume"]
            assert trained.run("train.py", *trained.common, *more, *flags).status == 0
    whole, parts = (checkpoint.load(trained.root / "models" / name / "ep4.model")["state"] for name in names)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert rows_of(trained, names[0])["4"] == rows_of(trained, names[1])["4"]


def test_cached_words_of_a_file_are_used(trained):
    words = trained.root / "other.npz"
    data = ["--dataset", "toy:val", "--dataset_config_file", trained.common[3]]
    assert trained.run("build_cached_words.py", *data, "--output", words).status == 0
    rewards = []
    for name, flags in (("own", []), ("other", ["--cached_words", words])):
        more = ["--load_model", trained.start, "--self_critical_from_epoch", 0, "--num_epochs", 6, *flags]
        assert trained.run("train.py", *trained.common, *more, "--model_name", name).status == 0
        rewards.append(rows_of(trained, name)["6"]["training_reward"])
    assert rewards[0] != rewards[1]


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--self_critical_loss", "sc_with_penalty"], "sc_with_repetition"),
        (["--gamma_ml_rl", 1.5], "--gamma_ml_rl"),
        (["--cached_words", "words.npz"], "--self_critical_from_epoch"),
        (["--self_critical_from_epoch", 0, "--cached_words", "nothing.npz"], "build_cached_words.py"),
        (["--self_critical_learning_rate", 0], "--self_critical_learning_rate"),
    ],
)
def test_mistakes_are_one_line(trained, flags, told):
    done = trained.run("train.py", *trained.common, "--model_name", "bad", "--replace", *flags)
    assert done.status == 2 and told in done.err and "Traceback" not in done.err


def test_self_critical_loss_with_greedy_baseline_is_the_papers(reward):
    """Rennie et al. 2017, equation 8: the gradient of the loss is (r(sample) - r(greedy)) (p - 1) per token."""
    logits = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    targets, advantage = torch.tensor([4, 5, END]), torch.full((3,), 0.7)
    self_critical_loss(logits, targets, advantage).backward()
    expected = 0.7 * (logits.detach().softmax(1) - torch.eye(12, dtype=torch.float64)[targets]) / 3
    assert torch.allclose(logits.grad, expected, atol=1e-6)
