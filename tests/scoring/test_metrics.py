"""Scores: numbers against the formulas, metrics that fail alone, life without Java.

METEOR takes half a minute to start; its test runs with `-m slow` only.
"""

import math
from collections import Counter

import pytest
from pycocoevalcap.rouge.rouge import Rouge
from toy import CANDIDATES, REFERENCES, document_frequencies

from captioning.errors import UserError
from captioning.scoring.metrics import (
    CiderD,
    java_missing,
    java_note,
    parse_metrics,
    score_captions,
    tokenize,
)
from captioning.text.ptb import ptb_tokens

needs_java = pytest.mark.skipif(java_missing(), reason="needs Java")


@pytest.fixture
def broken_java(monkeypatch, tmp_path):
    """A `java` that exists but cannot start its machine."""
    java = tmp_path / "java"
    java.write_text(
        "#!/bin/sh\n[ \"$1\" = -version ] && exit 0\necho 'Error occurred during initialization' >&2\n"
        "echo 'Could not reserve enough space for object heap' >&2\nexit 1\n"
    )
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.parametrize("tokenizer", ["python", pytest.param("ptb", marks=needs_java)])
def test_blank_and_broken_lines_do_not_shift_the_others(tokenizer):
    captions = ["", "A dog", "  ", "...", "One\nline\u2028with\rbreaks", "A cat", ""]
    assert tokenize(captions, tokenizer)[0] == ["", "a dog", "", "", "one line with breaks", "a cat", ""]


def test_auto_without_java_is_python_and_says_so(no_java):
    assert tokenize(["A dog's bone"]) == (["a dog 's bone"], "python")
    assert "Python tokenizer" in java_note(["bleu"]) and "METEOR and SPICE left out" in java_note(["meteor", "spice"])
    assert java_note(["bleu"], "python") is None
    with pytest.raises(UserError, match="needs Java"):
        tokenize(["A dog"], "ptb")


def test_java_that_cannot_start(broken_java, capfd):
    assert tokenize(["A dog's bone"]) == (["a dog 's bone"], "python")
    assert "Could not reserve enough space" in capfd.readouterr().err
    with pytest.raises(UserError, match="Could not reserve"):
        tokenize(["A dog"], "ptb")
    scores = score_captions(CANDIDATES, REFERENCES, ("meteor", "rouge"), "python")
    assert scores.left_out == {"meteor": "Could not reserve enough space for object heap"}
    assert set(scores.values) == {"rouge_l"}
    assert capfd.readouterr() == ("", "")


def test_unknown_tokenizer():
    with pytest.raises(UserError, match="unknown tokenizer 'nltk'; known are auto, ptb, python"):
        tokenize([], "nltk")


def cooked(text):
    """n-gram counts, n = 1..4, of a tokenised text."""
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def cider_by_the_paper(candidates, references, frequency, images):
    """CIDEr-D as Vedantam et al. 2015 write it (sigma 6, clipped counts, mean over n and references, times 10).

    The length in the Gaussian penalty is that of the reference code, which counts bigrams.
    """

    def vector(counts, n):
        return {g: c * (math.log(images) - math.log(max(1, frequency[g]))) for g, c in counts.items() if len(g) == n}

    def norm(v):
        return math.sqrt(sum(x * x for x in v.values()))

    total = 0
    for key, candidate in candidates.items():
        for reference in references[key]:
            c, r = cooked(candidate), cooked(reference)
            delta = max(0, len(candidate.split()) - 1) - max(0, len(reference.split()) - 1)
            for n in range(1, 5):
                a, b = vector(c, n), vector(r, n)
                dot = sum(min(x, b.get(g, 0)) * b.get(g, 0) for g, x in a.items())
                length = norm(a) * norm(b)
                total += 10 / 4 / len(references[key]) * math.exp(-(delta**2) / 72) * (dot / length if length else 0)
    return total / len(candidates)


def tokenised(references):
    return {key: [" ".join(ptb_tokens(caption)) for caption in group] for key, group in references.items()}


def test_cider_and_ciderd_against_the_formula():
    references = tokenised(REFERENCES)
    frequency = Counter(g for group in references.values() for g in set().union(*map(cooked, group)))
    table = document_frequencies(REFERENCES.values())
    assert table == {"document_frequency": dict(frequency), "ref_len": 4}
    scores = score_captions(CANDIDATES, REFERENCES, ("cider", "ciderd"), "python", table)
    assert scores.values["cider"] == pytest.approx(cider_by_the_paper(CANDIDATES, references, frequency, 4), abs=1e-9)
    assert scores.values["ciderd"] == pytest.approx(scores.values["cider"], abs=1e-9)

    other = {"document_frequency": {("a",): 900, ("dog",): 30, ("on", "the"): 200}, "ref_len": 1000}
    expected = cider_by_the_paper(CANDIDATES, references, Counter(other["document_frequency"]), 1000)
    for ref_len in (1000, 1000.0, math.log(1000)):  # tables in use hold the number or its logarithm
        found = score_captions(CANDIDATES, REFERENCES, ("ciderd",), "python", other | {"ref_len": ref_len})
        assert found.values["ciderd"] == pytest.approx(expected, abs=1e-9)
    assert len(other["document_frequency"]) == 3  # asking for unknown n-grams does not fill the table


def test_ciderd_of_one_image_and_per_image_scores():
    scorer = CiderD({"document_frequency": {("a",): 5.0}, "ref_len": 10})
    scorer += ("a dog runs now", ["a dog runs now"])
    scorer += ("a cat", ["two birds"])
    mean, each = scorer.compute_score()
    assert each == pytest.approx([10, 0]) and mean == pytest.approx(5)


def test_bleu_against_the_formula():
    values = score_captions({1: "the the cat sat"}, {1: ["The cat sat down here."]}, ("bleu",), "python").values
    # clipped unigrams 3/4, bigrams 2/3, trigrams 1/2; brevity penalty exp(1 - 5/4)
    assert values["bleu_1"] == pytest.approx(math.exp(-0.25) * 3 / 4, abs=1e-6)
    assert values["bleu_3"] == pytest.approx(math.exp(-0.25) * (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3), abs=1e-6)


def test_rouge_against_the_formula():
    values = score_captions({1: "a dog runs"}, {1: ["A big dog runs far."]}, ("rouge",), "python").values
    precision, recall = 3 / 3, 3 / 5
    assert values["rouge_l"] == pytest.approx((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))


def test_metrics_stand_alone(monkeypatch, no_java, capfd):
    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Rouge, "compute_score", fails)
    metrics = ("bleu", "meteor", "rouge", "cider", "ciderd", "spice")
    scores = score_captions(CANDIDATES, REFERENCES, metrics)
    assert set(scores.values) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"}
    assert scores.left_out == {
        "meteor": "needs Java, which is not installed",
        "rouge": "MemoryError",
        "ciderd": "needs document frequencies from a file (--cached_words)",
        "spice": "needs Java, which is not installed",
    }
    assert scores.tokenizer == "python"
    assert "METEOR   left out: needs Java, which is not installed" in scores.lines()
    assert capfd.readouterr() == ("", "")


def test_spice_that_cannot_download_or_crashes(monkeypatch, broken_java, capfd):
    import subprocess

    from pycocoevalcap.spice import spice

    def offline():
        print("Downloading ...")
        raise OSError("no route to host")

    monkeypatch.setattr(spice, "get_stanford_models", offline)
    scores = score_captions(CANDIDATES, REFERENCES, ("spice",), "python")
    assert scores.left_out == {"spice": "its models could not be downloaded (no route to host)"}

    monkeypatch.setattr(spice, "get_stanford_models", lambda: None)
    monkeypatch.setattr(spice.Spice, "compute_score", lambda *_: subprocess.check_call(["java", "-jar", "spice.jar"]))
    scores = score_captions(CANDIDATES, REFERENCES, ("spice",), "python")
    assert scores.left_out == {"spice": "Could not reserve enough space for object heap"}
    out, err = capfd.readouterr()
    assert out == "" and set(err.splitlines()) <= {"SPICE: downloading Stanford's models at first use (about 500 MB)"}


@needs_java
@pytest.mark.slow
def test_meteor(request):
    if "slow" not in (request.config.getoption("-m") or ""):
        pytest.skip("starting METEOR takes half a minute; run with -m slow")
    scores = score_captions({1: "a dog runs", 2: ""}, {1: ["A dog runs."], 2: ["A cat sits."]}, ("meteor",))
    assert 0 < scores.values["meteor"] < 1


def test_cider_of_a_single_image_is_left_out_and_not_zero():
    scores = score_captions({1: "a dog"}, {1: ["a dog"], 2: ["a cat"]}, ("cider",), "python")
    assert scores.values == {} and "two images" in scores.left_out["cider"]


def test_empty_captions_score_zero_where_the_metric_ran():
    scores = score_captions({1: "", 2: ""}, {1: ["a dog"], 2: ["a cat"]}, ("bleu", "rouge", "cider"), "python")
    assert set(scores.values.values()) == {0.0} and not scores.left_out


def test_bad_input():
    with pytest.raises(UserError, match="no captions to score"):
        score_captions({}, REFERENCES)
    with pytest.raises(UserError, match="1 of 2 captioned images have no reference, the first is 9"):
        score_captions({1: "a", 9: "b"}, REFERENCES)
    with pytest.raises(UserError, match="unknown metric 'wer'; known are bleu"):
        score_captions(CANDIDATES, REFERENCES, ("wer",))


def test_parse_metrics():
    assert parse_metrics("cider,bleu") == ("cider", "bleu")
    assert parse_metrics("CIDEr, BLEU ,Bleu_4,ROUGE_L,CIDEr-D,Meteor") == ("cider", "bleu", "rouge", "ciderd", "meteor")
    for wrong in ("", "cider,", "blue", "cider;bleu"):
        with pytest.raises(UserError, match="known are bleu, meteor, rouge, cider, ciderd, spice"):
            parse_metrics(wrong)
