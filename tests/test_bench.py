"""benchmarks/bench.py: it runs, its JSON is whole, and the arithmetic of its limits is that of torch's own counter."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from running import ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from captioning.encoder.factory import build_encoder
from captioning.text.tokens import END, START

sys.path.insert(0, str(ROOT / "benchmarks"))
limits, models, data, machine, bench_rows = (
    importlib.import_module(f"bench_{name}") for name in ("limits", "models", "data", "machine", "rows")
)

SMALL = {"embed_size": 24, "hidden_size": 40, "value_size": 32, "attention_size": 16}


MAP, UPDOWN = (30, 3, 3), {"attention": "updown"}
TRANSFORMER = {"decoder": "transformer", "num_layers": 2}
KINDS = {"pooled": ((50,), {}), "map": (MAP, {}), "updown": (MAP, UPDOWN), "transformer": (MAP, TRANSFORMER)}
every_kind = pytest.mark.parametrize(("shape", "settings"), KINDS.values(), ids=KINDS)


def small(shape: tuple[int, ...], **settings):
    return models.from_file("x.npy", shape, **SMALL, **settings)


def plain_pass(captioner, features, n_tokens: int):
    """Teacher forcing by step(): captions of n_tokens tokens each, one per image; the sum of all logits."""
    decoder = captioner.model.decoder
    memory = captioner.model.encode(None, [features])
    state = decoder.start(memory)
    total = 0.0
    for t in range(n_tokens):
        logits, state, _ = decoder.step(torch.full((len(features),), START + t % 2), state, memory)
        total = total + logits.square().sum()
    return total


@every_kind
@pytest.mark.parametrize("training", [False, True], ids=["decoding", "training"])
@pytest.mark.filterwarnings("ignore:TF32")
def test_operations_are_those_that_torch_counts(shape, settings, training):
    """Step by step without oneDNN's own LSTM, every product goes through matrix functions that torch's counter sees.

    It passes over the linear layers with a single output (a product of a matrix and a vector), which are added here.
    """
    captioner = small(shape, **settings)
    B, T = 5, 7
    rows = torch.rand(B, *shape)
    features = rows.flatten(2).transpose(1, 2).contiguous() if len(shape) == 3 else rows
    captioner.model.train(training)
    counter = FlopCounterMode(display=False)
    with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), counter:
        with torch.set_grad_enabled(training):
            total = plain_pass(captioner, features, T)
        if training:
            total.backward()
    terms = limits.decoder_terms(limits.Sizes.of(captioner))
    counts = {limits.IMAGE: B, limits.CAPTION: B, limits.TOKEN: B * T}
    expected = limits.operations(terms, counts, training)
    for term in terms:
        if term.name == "mean region in the attention LSTM":  # which a plain step multiplies again
            expected += term.operations(training) * B * (T - 1)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_the_terms_of_a_known_model_by_hand():
    """Worked out on paper: 2 m k n each."""
    sizes = limits.Sizes(vocab=2933, embed=256, hidden=512, pooled=1280)
    by_name = {term.name: term for term in limits.decoder_terms(sizes)}
    assert by_name["LSTM step"].operations(False) == 2 * (256 + 512) * 2048
    assert by_name["hidden state to words"].operations(True) == 3 * 2 * 512 * 2933
    assert by_name["pooled image to embedding"].operations(True) == 2 * 2 * 1280 * 256
    counts = {limits.IMAGE: 1, limits.CAPTION: 5, limits.TOKEN: 64}
    total = 4 * 1280 * 256 + 5 * 6 * 768 * 2048 + 64 * 6 * (768 * 2048 + 512 * 2933)
    assert limits.operations(list(by_name.values()), counts, training=True) == total


@pytest.mark.parametrize("name", ["efficientnet_lite0-conv", "resnet18", "vgg11"])
def test_operations_of_encoders_are_those_that_torch_counts(name):
    extractor = build_encoder(name, pretrained=False)
    size = extractor.transform["size"]
    terms = limits.encoder_terms(name, limits.convolutions_of(extractor.network, torch.empty(1, 3, size, size)))
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        extractor.network.to("meta")(torch.empty(2, 3, size, size, device="meta"))
    assert limits.operations(terms, {limits.IMAGE: 2}, training=False) == counter.get_total_flops()


def test_beam_rows_that_cannot_be_spared():
    assert limits.beam_tokens([[7]], beams=1) == 7
    assert limits.beam_tokens([[4, 6, 5]], beams=3) == 1 + 3 * 5
    assert limits.beam_tokens([[1, 1], [2, 3]], beams=2) == 1 + 1 + 2 * 2


@every_kind
def test_planted_endings_give_captions_of_natural_lengths(shape, settings):
    from captioning.decoder.search import Search

    captioner = small(shape, **settings)
    rows = torch.rand(200, *shape)
    features = rows.flatten(2).transpose(1, 2) if len(shape) == 3 else rows
    models.plant_ending(captioner.model, None, [features[:100]])
    found = captioner.caption(captioner.encode(None, [features]), Search())
    lengths = np.array([len(image[0].tokens) for image in found])
    assert 8 < lengths.mean() < 13 and lengths.std() > 0.5 and lengths.max() <= 20
    assert all(END not in image[0].tokens for image in found)


def test_captions_are_distinct_and_as_long_as_flickr8ks(tmp_path):
    from vocabulary import build_vocabulary

    texts = data.captions(4000, data.words(2928))
    assert len(set(texts)) == 4000
    vocabulary = models.vocabulary()
    assert len(vocabulary) == 2933
    lengths = [len(vocabulary.encode(text)) for text in texts]
    assert 11.4 < np.mean(lengths) < 12.4 and min(lengths) >= 3 and max(lengths) <= 29
    assert len(set(data.words(25_000))) == 25_000
    words = build_vocabulary(texts, 1).words
    assert len(set(words) - set(vocabulary.words)) <= 1  # 's, which is not among the made-up ones


def test_a_probe_measures_rates_of_this_machine():
    probe = machine.Probe(torch.device("cpu"), size=256, seconds=0.01)
    speed = probe()
    assert speed.gflops > 0.1 and speed.gbytes > 0.05 and probe.samples == [speed]
    assert machine.Speed(1, 2, 3).mean(machine.Speed(3, 6, 7)) == machine.Speed(2, 4, 5)


def test_memory_of_a_script_counts_all_its_processes(tmp_path):
    """200 MB in the child of a child."""
    inner = "x = b'1' * 200_000_000; import time; time.sleep(0.6)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    ran = machine.run_script([sys.executable, "-c", outer], tmp_path, watch=True)
    assert 200e6 < ran.peak < 300e6 and ran.seconds > 0.6
    with pytest.raises(RuntimeError, match="no good"):
        machine.run_script([sys.executable, "-c", "import sys; sys.exit('no good')"], tmp_path)


def test_fractions_of_rates_and_of_times():
    row = bench_rows.Row("a", "images/s", "something")
    row.add(50.0, 100.0)
    assert row.fractions == [0.5]
    row = bench_rows.Row("a", "s", "something", less_is_better=True)
    row.add(10.0, 4.0)
    assert row.fractions == [0.4] and row.to_dict()["fraction"]["median"] == 0.4


def test_quick_run_of_some_rows(tmp_path, script_alone):
    names = ["train_lstm", "greedy_attention", "read_bin", "read_bin_struct"]
    file = tmp_path / "figures.json"
    flags = ["--quick", "--runs", 1, "--only", ",".join(names), "--json", file, "--explain", "--profile"]
    flags += ["--folder", tmp_path / "d"]
    done = script_alone("benchmarks/bench.py", *flags)
    assert done.status == 0, done.err
    found = json.loads(file.read_text())
    assert list(found["rows"]) == names and not found["skipped"] and not list((tmp_path / "d").iterdir())
    assert found["products_gflops"]["min"] > 0 and found["machine"]["cores"] >= 1
    for name, row in found["rows"].items():
        assert {"title", "unit", "limit_name", "rate", "limit", "fraction", "explain", "peak_bytes"} <= set(row)
        assert name in done.out
        for key in ("rate", "limit", "fraction"):
            assert 0 < row[key]["min"] <= row[key]["median"] <= row[key]["max"]
        pairs = zip(row["rate"]["runs"], row["limit"]["runs"])
        assert row["fraction"]["runs"] == pytest.approx([rate / limit for rate, limit in pairs])
    for name in names[:2]:
        row = found["rows"][name]
        parts = row["parts"]
        limit = parts["gflops_of_the_machine"][0] * 1e9 / parts["operations_per_unit"]
        assert row["limit"]["runs"][0] == pytest.approx(limit)
    assert "train_lstm: " in done.out.split("torch's operators")[1]
    assert 0 < sum(found["rows"]["greedy_attention"]["parts"]["operators"].values()) <= 1
    assert "2 x (E+H) x 4H = 2 x 768 x 2048 x 3 (training) = 9.437 M" in done.out
    assert found["rows"]["train_lstm"]["parts"]["tokens_per_caption"] == pytest.approx(12.8, abs=0.6)  # of few captions


HELP = """
import runpy, sys
sys.argv = ["bench.py", "--help"]
try:
    runpy.run_path("benchmarks/bench.py", run_name="__main__")
finally:
    print(sorted({"torch", "numpy", "PIL"} & set(sys.modules)))
"""


def test_help_needs_no_heavy_imports():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("usage:") and done.stdout.endswith("[]\n")


def test_mistakes_are_one_line(script_alone):
    done = script_alone("benchmarks/bench.py", "--only", "nothing")
    assert done.status == 2 and "train_lstm" in done.err and "Traceback" not in done.err
    done = script_alone("benchmarks/bench.py", "--quick", "--only", "read_npy", "--device", "warp9")
    assert done.status == 2 and "--device warp9" in done.err and "Traceback" not in done.err


def test_every_row_has_its_function():
    bench = importlib.import_module("bench")
    for name, (module, *_) in bench.ROWS.items():
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.slow
def test_the_start_with_many_captions_is_measured(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/bench_start.py", "--captions", "28000", "--images", "5600"]
    command += ["--steps", "210", "--json", tmp_path / "start.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "start.json").read_text())
    assert figures["first_start_seconds"] >= sum(figures["first_start_parts"].values()) - 0.5
    assert list(figures["second_start_parts"])[-1] == "the first step"
    assert {"100", "200"} & set(figures["bytes_after_steps"])
    assert "memory, after steps 100 to" in done.stdout
