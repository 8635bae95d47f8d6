"""infer.py's flags of DeepCaption's: words with probabilities, lemma rules, feature files by hand, paths for ids."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import draw

from captioning.config import FeatureSpec, ModelConfig
from captioning.decoder.search import Search
from captioning.encoder.factory import build_encoder
from captioning.encoder.transforms import TenCrops
from captioning.errors import UserError
from captioning.features.writer import FeatureWriter
from captioning.images.image_file import open_image
from captioning.text.function_words import content_words
from captioning.text.tokens import END, PAD, START
from inference.lemmas import LemmaRules
from inference.results.files import ResultsFile
from inference.results.reading import read_results
from inference.results.result import Result, word_text
from inference.words import word_probabilities
from model import Captioner, build_model, caption_features, load_captioner, save_captioner
from vocabulary import Vocabulary

WORDS = ["<pad>", "<start>", "<end>", "<unk>", *["a", "the", "red", "ball_nn", "dog/nns", "run", "vbz", "on", ",", "."]]
NAMES = [f"p{i}.png" for i in range(4)]


def captioner_for(*specs: FeatureSpec, persist: tuple = ()) -> Captioner:
    """Untrained, with weights large enough that images and words make a difference."""
    config = ModelConfig(features=list(specs), persist_features=list(persist), embed_size=16, hidden_size=24)
    built = build_model(config, Vocabulary(WORDS))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in built.decoder.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.6 if "weight" in name else 0.1))
        built.decoder.linear.bias[END] -= 1.0
    return Captioner(built.eval(), Vocabulary(WORDS))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """vec.model reads vec.npy, two.model vec.npy and the persistent more.lmdb; other files beside them."""
    root = tmp_path_factory.mktemp("words")
    save_captioner(captioner_for(FeatureSpec("vec.npy", (6,), True)), root / "vec.model")
    more = FeatureSpec("more.lmdb", (3,), True, {"extractor": "alexnet"})
    save_captioner(captioner_for(FeatureSpec("vec.npy", (6,), True), persist=(more,)), root / "two.model")
    (root / "images").mkdir()
    (root / "features").mkdir()
    generator = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        draw(index).save(root / "images" / name)
    np.save(root / "features/vec.npy", generator.normal(size=(4, 6)).astype("f4"))
    provenances = {"more": {"extractor": "alexnet"}, "other": {"extractor": "vgg16"}, "wide": None}
    for file, provenance in provenances.items():
        with FeatureWriter(
            root / f"features/{file}.lmdb", (4 if file == "wide" else 3,), "float32", provenance
        ) as writer:
            for name in NAMES:
                writer.write(name, generator.normal(size=writer.shape))
    with FeatureWriter(root / "elsewhere.lmdb", (6,)) as writer:
        for name in NAMES:
            writer.write(name, generator.normal(size=6))
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(NAMES)]
    captions = [{"image_id": image["id"], "caption": "a red ball"} for image in images]
    (root / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (root / "data.conf").write_text(
        "[c]\ndataset_class=CocoDataset\nroot_dir=%(here)s\ncaption_path=captions.json\nfeatures_path=features\n"
        "[c:images]\nimage_dir=images\n"
    )
    return root


@pytest.fixture
def infer(world, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, weights="vec.model", dataset="c"):
        chosen = ("--model", world / weights, "--dataset_config_file", world / "data.conf")
        chosen += ("--dataset", dataset) if dataset else ()
        return script("infer.py", *chosen, *arguments)

    return call


def stepwise(captioner: Captioner, memory, tokens: list[int]) -> list[np.ndarray]:
    """Probabilities (V,) of every next word by the decoder's own step."""
    state, out = captioner.model.decoder.start(memory), []
    with torch.no_grad():
        for token in [START, *tokens]:
            logits, state, _ = captioner.model.decoder.step(torch.tensor([token]), state, memory)
            out.append(logits.double().softmax(1)[0].numpy())
    return out


# ---- probabilities and alternatives ----


def test_probabilities_against_single_steps(world):
    captioner = load_captioner(world / "two.model", photos=False)
    torch.manual_seed(2)
    memory = captioner.encode(None, [torch.randn(3, 6), torch.randn(3, 3)])
    captions = captioner.caption(memory, Search(beam_size=3, n_best=2))
    for image, several in enumerate(word_probabilities(captioner, memory, captions, 4)):
        assert len(several) == len(captions[image])
        for steps, caption in zip(several, captions[image]):
            expected = stepwise(captioner, memory.select(torch.tensor([image])), caption.tokens)
            assert len(steps) == len(expected) == len(caption.tokens) + 1
            for step, p, token in zip(steps, expected, [*caption.tokens, END]):
                assert step[0] == (WORDS[token], pytest.approx(p[token], abs=1e-5))
                others = [i for i in p.argsort()[::-1] if i not in (token, PAD, START)][:3]
                assert [word for word, _ in step[1:]] == [WORDS[i] for i in others]
                assert [q for _, q in step[1:]] == pytest.approx([p[i] for i in others], abs=1e-5)
            total = math.prod(step[0][1] for step in steps)
            assert total == pytest.approx(math.exp(caption.log_prob), rel=1e-3)


def test_more_alternatives_than_words(world):
    captioner = load_captioner(world / "vec.model", photos=False)
    memory = captioner.encode(None, [torch.randn(1, 6)])
    steps = word_probabilities(captioner, memory, captioner.caption(memory, Search()), 100)[0][0]
    assert all(sorted(word for word, _ in step) == sorted(set(WORDS) - {"<pad>", "<start>"}) for step in steps)
    assert sum(p for _, p in steps[0]) == pytest.approx(1, abs=0.2)


def parse(text: str) -> list[list[tuple[str, float]]]:
    """As a script of DeepCaption's users reads `A=0.69/two=0.08 man=0.15/...`; no word here has = in it."""
    out: list = []
    for step in text.split(" "):
        parts, words = step.split("/"), []
        for part in parts:  # dog/nns has a slash of its own
            words = [*words[:-1], f"{words[-1]}/{part}"] if words and "=" not in words[-1] else [*words, part]
        out.append([(word.split("=")[0], float(word.split("=")[1])) for word in words])
    return out


def test_every_format_carries_the_words(world, infer, tmp_path):
    flags = ("--probabilities", "--alternatives", 3, "--allow_unk", "--beam_size", 1)
    for form in ("json", "txt", "jsonl", "csv"):
        done = infer(*flags, "--output_file", tmp_path / f"o.{form}", "--print_results")
        assert done.status == 0, done.err
    plain = infer("--allow_unk", "--beam_size", 1, "--output_file", tmp_path / "plain.json")
    assert plain.status == 0
    texts = [entry["caption"] for entry in json.loads((tmp_path / "plain.json").read_text())]
    entries = json.loads((tmp_path / "o.json").read_text())
    assert [entry["text"] for entry in entries] == texts
    exact = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [entry["caption"] for entry in exact] == texts
    with open(tmp_path / "o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (tmp_path / "o.txt").read_text().splitlines()
    for entry, full, row, line, said in zip(entries, exact, rows, lines, done.out.splitlines()):
        steps = full["words"]
        assert steps[-1][0][0] == "<end>" and all(len(step) == 3 for step in steps)
        assert math.log(math.prod(step[0][1] for step in steps)) == pytest.approx(full["log_prob"], abs=1e-3)
        shown = parse(entry["caption"])
        assert [[word.lower() for word, _ in step] for step in shown] == [[w for w, _ in step] for step in steps[:-1]]
        assert shown[0][0][0][0].isupper() or not shown[0][0][0][0].isalpha()
        assert [p for step in shown for _, p in step] == [p for step in steps[:-1] for _, p in step]
        assert row["words"] == entry["caption"] and row["caption"] == entry["text"]
        assert line == f"{entry['image_id']} {entry['caption']}" and said.endswith(f": {entry['caption']}")


def test_alternatives_without_probabilities_and_the_other_way_round(infer, tmp_path):
    assert infer("--alternatives", 2, "--no_capitalize", "--output_file", tmp_path / "a.jsonl").status == 0
    entry = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert all(len(step) == 2 and all(isinstance(word, str) for word in step) for step in entry["words"])
    done = infer("--probabilities", "--no_capitalize", "--print_results")
    first = done.out.splitlines()[0].split(": ", 1)[1]
    assert all(part.count("=") == 1 for part in first.split(" "))


def test_words_are_scored_as_captions(infer, tmp_path):
    plain = infer("--scoring", "bleu", "--output_file", tmp_path / "a.json")
    told = infer("--scoring", "bleu", "--output_file", tmp_path / "b.json", "--probabilities")
    assert plain.out == told.out and "BLEU-1" in plain.out


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_words_are_resumed(infer, tmp_path, form):
    whole, out = tmp_path / f"whole.{form}", tmp_path / f"out.{form}"
    flags = ("--probabilities", "--alternatives", 2, "--n_best", 2, "--batch_size", 1)
    assert infer(*flags, "--output_file", whole).status == 0
    lines = whole.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[: 3 if form == "csv" else 1]))
    done = infer(*flags, "--output_file", out, "--resume")
    assert done.status == 0 and "1 of 4 images" in done.err
    assert out.read_text() == whole.read_text()
    done = infer("--n_best", 2, "--output_file", out, "--resume")  # the other flags are missing
    assert done.status == 2 and "words" in done.err and done.err.count("\n") == 1


def test_word_text():
    steps = [[("a", 0.123456789), ("the", 1e-5)], [("dog", 1.0), ("=", 0.5)], [("<end>", 0.5), (".", 0.25)]]
    assert word_text(steps) == "A=0.123457/the=1e-05 dog=1/==0.5"
    assert word_text([[(w, None) for w, _ in step] for step in steps], capitalize=False) == "a/the dog/="


def test_results_with_words_come_back(tmp_path):
    words = [[[("a", 0.5), ("/", 0.25)], [("<end>", 0.5), ("<unk>", 0.125)]]]
    result = Result("x", [("A.", -1.5)], words=words)
    for form in ("csv", "jsonl"):
        with ResultsFile(tmp_path / f"r.{form}", form, words=True) as file:
            file.add(result)
        back = read_results(tmp_path / f"r.{form}", form, words=True)
        assert back[0].captions == result.captions
        assert back[0].words == words if form == "jsonl" else back[0].shown == ["A=0.5//=0.25"]


# ---- lemmas ----


def test_lemma_rules(tmp_path):
    (tmp_path / "r.txt").write_text("# lemma POS word\nride VBZ rides\nhorse NNS horses\nman NN man\nbe VBZ is\n\n")
    rules = LemmaRules.load(tmp_path / "r.txt")
    for joint in "_/|#":
        assert rules.words([f"man{joint}nn", "be" + joint + "VBZ", f"ride{joint}VBZ"]) == ["man", "is", "rides"]
    assert rules.words(["man", "nn", "ride", "vbz", "two", "horse", "nns", "."]) == [
        "man",
        "rides",
        "two",
        "horses",
        ".",
    ]
    assert rules.report() is None
    assert rules.words(["dog_nns", "snow_white", "well/known", "_", "nn"]) == ["dog", "snow_white", "well/known", "_"]
    assert "2 lemmas" in rules.report() and "dog nns" in rules.report()


def test_captions_of_lemmas_become_words(world, infer, tmp_path):
    (tmp_path / "r.txt").write_text("ball NN sphere\nrun VBZ runs\n")
    drawn = ("--sample", "--temperature", 3, "--no_capitalize")
    plain = infer(*drawn, "--output_file", tmp_path / "a.jsonl")
    done = infer(*drawn, "--lemma_pos_rules", tmp_path / "r.txt", "--output_file", tmp_path / "b.jsonl")
    assert plain.status == done.status == 0
    before, after = (
        [json.loads(line)["caption"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in "ab"
    )
    assert any("ball_nn" in text or "run vbz" in text for text in before), "the toy model says none of them"
    expected = [text.replace("ball_nn", "sphere").replace("run vbz", "runs") for text in before]
    assert after == [" ".join(w for i, w in enumerate(t.split()) if w != "vbz" or i == 0) for t in expected]
    assert infer("--lemma_pos_rules", tmp_path / "r.txt", "--probabilities").status == 0  # words stay the model's own


@pytest.mark.parametrize("text, told", [("ride VBZ\n", "line 1"), ("", "no rules"), (None, "no such file")])
def test_lemma_rules_that_are_none(infer, tmp_path, text, told):
    if text is not None:
        (tmp_path / "r.txt").write_text(text)
    done = infer("--lemma_pos_rules", tmp_path / "r.txt")
    assert done.status == 2 and told in done.err and "r.txt" in done.err and done.err.count("\n") == 1


# ---- paths for ids ----


def test_paths_in_place_of_ids(world, infer, tmp_path):
    for form in ("json", "txt", "csv"):
        flags = ("--store_image_paths", "--output_file", tmp_path / f"o.{form}")
        assert infer(*flags, dataset="c:images").status == 0
    entries = json.loads((tmp_path / "o.json").read_text())
    paths = [str(world / "images" / name) for name in NAMES]
    assert [entry["image_id"] for entry in entries] == paths
    assert [line.split(" ")[0] for line in (tmp_path / "o.txt").read_text().splitlines()] == paths
    done = infer("--store_image_paths", "--output_file", tmp_path / "o.csv", "--resume", dataset="c:images")
    assert done.status == 0 and "4 of 4" in done.err
    assert infer("--store_image_paths", "--output_file", tmp_path / "k.json", "--scoring", "bleu").status == 0
    assert [entry["image_id"] for entry in json.loads((tmp_path / "k.json").read_text())] == NAMES  # no image_dir


# ---- feature files by hand ----


def captions_in(path) -> list[str]:
    return [json.loads(line)["caption"] for line in path.read_text().splitlines()]


def test_feature_files_by_hand(world, infer, tmp_path, monkeypatch):
    """In features_path, by a whole path, beside the working directory; also for photos without a dataset."""
    monkeypatch.chdir(world)
    vectors = np.stack([_record(world / "elsewhere.lmdb", name) for name in NAMES])
    captioner = load_captioner(world / "vec.model", photos=False)
    expected = [several[0].text for several in caption_features(captioner, vectors)]
    for number, name in enumerate((world / "elsewhere.lmdb", "elsewhere.lmdb")):
        out = tmp_path / f"{number}.jsonl"
        done = infer("--ext_features", name, "--output_file", out)
        assert done.status == 0 and captions_in(out) == expected, done.err
    out = tmp_path / "photos.jsonl"
    photos = ("--ext_features", "elsewhere.lmdb", "--image_dir", world / "images")
    assert infer(*photos, "--output_file", out, dataset=None).status == 0
    assert captions_in(out) == expected
    done = infer("--ext_persist_features", "other.lmdb", "--output_file", out, weights="two.model")
    assert done.status == 0 and "warning" in done.err and "vgg16" in done.err


def _record(path, key):
    from captioning.features.factory import open_features

    return open_features(path)[key]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--ext_features", "vec.npy,more.lmdb"], "name a file for each"),
        (["--ext_features", "resnet152"], "is no feature file"),
        (["--ext_features", "gone.lmdb"], "no such feature file"),
        (["--ext_features", "more.lmdb"], "shape (3,), but the model reads (6,)"),
        (["--ext_persist_features", "wide.lmdb"], "shape (4,), but the model reads (3,)"),
        (["--alternatives", "0"], "--alternatives 0"),
    ],
)
def test_mistakes_are_one_line(infer, arguments, told):
    done = infer(*arguments, weights="two.model")
    *notes, error = done.err.splitlines()
    assert done.status == 2 and told in error and done.out == ""
    assert all("rows have no names" in line for line in notes)


# ---- features in memory ----


def test_captions_of_features_in_memory(world, infer, tmp_path):
    vectors = np.load(world / "features/vec.npy")
    assert infer("--output_file", tmp_path / "o.jsonl").status == 0
    captioner = load_captioner(world / "vec.model", photos=False)
    expected = captions_in(tmp_path / "o.jsonl")
    for given in (vectors, torch.from_numpy(vectors), vectors.tolist(), [vectors], vectors.astype("f8")):
        assert [several[0].text for several in caption_features(captioner, given, batch_size=3)] == expected
    assert [several[0].text for several in caption_features(captioner, vectors[1])] == expected[1:2]
    rules = Search(beam_size=3, min_length=6, max_length=7, once=content_words(captioner.vocabulary.words))
    for (best,) in caption_features(captioner, vectors, search=rules):
        assert len(best.tokens) in (6, 7) and all(best.tokens.count(word) <= 1 for word in rules.once)
    greedy = caption_features(captioner, vectors, search=Search(sample=True, n_best=2))
    assert all(len(several) == 2 for several in greedy)
    two = load_captioner(world / "two.model", photos=False)
    more = np.stack([_record(world / "features/more.lmdb", name) for name in NAMES])
    assert infer("--output_file", tmp_path / "p.jsonl", weights="two.model").status == 0
    assert [s[0].text for s in caption_features(two, vectors, more)] == captions_in(tmp_path / "p.jsonl")


def test_maps_in_memory():
    config = ModelConfig(features=[FeatureSpec("m.lmdb", (5, 2, 3), True)], attention="soft", value_size=8)
    torch.manual_seed(0)
    captioner = Captioner(build_model(config, Vocabulary(WORDS)).eval(), Vocabulary(WORDS))
    maps = np.random.default_rng(1).normal(size=(3, 5, 2, 3)).astype("f4")
    regions = maps.reshape(3, 5, 6).transpose(0, 2, 1)
    expected = captioner.caption(captioner.encode(None, [torch.from_numpy(regions.copy())]), Search(beam_size=3))
    assert caption_features(captioner, maps) == caption_features(captioner, regions) == expected
    assert caption_features(captioner, maps[0]) == expected[:1]


def test_features_in_memory_that_do_not_fit(world):
    captioner, vectors = load_captioner(world / "two.model", photos=False), np.zeros((4, 6))
    for arguments, told in (
        ((vectors,), "persist_features must be one array"),
        ((vectors, np.zeros((4, 5))), r"shape \(4, 5\), but the model reads \(B, 3\)"),
        ((vectors, np.zeros((3, 3))), "different numbers of images: 3, 4"),
        ((vectors * np.nan, np.zeros((4, 3))), "not finite"),
        (("words", np.zeros((4, 3))), "no array of numbers"),
        ((np.zeros((0, 6)), np.zeros((0, 3))), r"shape \(0, 6\)"),
    ):
        with pytest.raises(UserError, match=told):
            caption_features(captioner, *arguments)


# ---- photos for models of ten-crop features ----


def test_photos_for_features_of_ten_crops(world, script, tmp_path):
    """Extract, caption from the file; then the photo alone gives the same, also beside a plain feature."""
    (tmp_path / "in").mkdir()
    photos = [tmp_path / "in" / name for name in NAMES[:2]]
    for index, path in enumerate(photos):
        draw(index).save(path)
    lite0 = ("--extractor", "efficientnet_lite0", "--num_workers", 0, "--cpu", "--image_dir", tmp_path / "in")
    specs = []
    for kind in ("avg", "plain", "max"):
        out = tmp_path / f"{kind}.lmdb"
        size = ("--crop_size", 96) if kind == "plain" else ("--crop_size", 96, "--image_size", 120)
        assert script("extract_features.py", *lite0, *size, "--feature_type", kind, "--output_file", out).status == 0
        from captioning.features.factory import open_features

        specs.append(FeatureSpec(str(out), (1280,), True, open_features(out).provenance))
    for chosen in (specs[:1], specs):
        save_captioner(captioner_for(*chosen), tmp_path / "m.model")
        captioner = load_captioner(tmp_path / "m.model")
        photo = open_image(photos[1])
        views = captioner.transform(photo, None)
        assert views.shape == (10 if len(chosen) == 1 else 11, 3, 96, 96)
        records = [torch.from_numpy(_record(spec.name, NAMES[1]).copy())[None] for spec in chosen]
        from_file, from_photo = captioner.encode(None, records), captioner.encode(views[None], [None] * len(chosen))
        assert (from_file.first - from_photo.first).abs().max() < 1e-3 * from_file.first.abs().max()
        done = script("infer.py", "--model", tmp_path / "m.model", photos[1], "--cpu")
        assert done.status == 0, done.err
        assert done.out.strip().endswith(captioner.caption(from_file, Search(beam_size=3))[0][0].text)
    done = script("infer.py", "--model", tmp_path / "m.model", photos[0], "--resize", 64, "--cpu")
    assert done.status == 0, done.err
    extractor, crops = build_encoder("efficientnet_lite0"), TenCrops(96, 120, "bicubic")(photo)
    expected = extractor(crops).mean(0)
    assert (records[0][0] - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.skipif("DEEPCAPTION_ARTIFACTS" not in os.environ, reason="DEEPCAPTION_ARTIFACTS names no folder")
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_words_of_deepcaption_itself(script, tmp_path, name):
    """The files of its `infer.py --probabilities --alternatives 3`, to the word and to 1e-4."""
    folder = Path(os.environ["DEEPCAPTION_ARTIFACTS"])
    (tmp_path / "d.conf").write_text(
        f"[d]\ndataset_class=CocoDataset\ncaption_path={folder}/captions_dev.json\nfeatures_path={folder}\n"
    )
    source = ("--dataset", "d", "--dataset_config_file", tmp_path / "d.conf", "--model", folder / f"{name}.model")
    told = ("--probabilities", "--alternatives", 3, "--output_file", tmp_path / "o.json", "--cpu")
    done = script("infer.py", *source, *told)
    assert done.status == 0, done.err
    said = {entry["image_id"]: entry["caption"] for entry in json.loads((tmp_path / "o.json").read_text())}
    expected = json.loads((folder / f"{name}.probabilities.json").read_text())
    assert len(expected) > 100
    for entry in expected:
        for ours, theirs in zip(said[entry["image_id"]].split(" "), entry["caption"].split(" "), strict=True):
            ours, theirs = ([word.rsplit("=", 1) for word in step.split("/")] for step in (ours, theirs))
            assert [word for word, _ in ours] == [word for word, _ in theirs]
            assert [float(p) for _, p in ours] == pytest.approx([float(p) for _, p in theirs], abs=1e-4)
