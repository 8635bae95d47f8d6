"""infer.py --scoring and score.py give the same numbers for the same captions and annotations, odd ones too."""

import json

import pytest

import infer
from captioning.datasets.factory import open_dataset
from inference.results.files import ResultsFile
from inference.results.result import Result, Style

TEXTS = [
    "A dog runs on the grass.",
    "Two children don't play.",
    "A red bus, parked.",
    "Someone \U0001f600 near the sea",
]
WRITTEN = ["a dog on grass", "children play", "a red bus", "someone near the sea"]


def annotations(*more) -> list[dict]:
    plain = [{"image_id": n, "caption": text} for n, text in enumerate(TEXTS)]
    return [*plain, *({"image_id": n, "caption": text} for n, text in more)]


IMAGES = [{"id": n, "file_name": f"{n}.jpg"} for n in range(6)]
COCO_FILES = {
    "plain": annotations(),
    "images without captions": annotations((4, "a boat")),
    "blank references": annotations((0, ""), (1, " \n"), (4, "\t"), (5, "\u2028")),
    "captions of unknown images": annotations((77, "a plane"), ("x", "a plane")),
    "ids as texts": [entry | {"image_id": str(entry["image_id"])} for entry in annotations((2, "a bus"))],
    "ids of both kinds": annotations(("0", "a dog"), (0, "the dog"), ("4", "a boat")),
    "the same caption twice": annotations((0, TEXTS[0]), (0, TEXTS[0])),
    "half characters": annotations((0, "a dog \ud83d"), (1, "\udc00"), (2, "a\0bus")),
    "marks of other programs": annotations((0, "<start> a dog <end> <pad>"), (1, "<start> <end>")),
    "separators of lines": annotations((0, "a dog\u2028runs\x85fast\ttoday\r\n"), (3, "\ufeffthe sea")),
    "references of no words": annotations((0, "..."), (1, "!")),
}
PARAGRAPHS = [{"image_id": n, "paragraph": f"{text} It is seen.A cat sits."} for n, text in enumerate(TEXTS)]


def score_both(script, root, section: str, truth) -> tuple[list[str], list[str]]:
    """The scores that infer.py prints for captions of the images in `section`, and the lines of score.py."""
    items = open_dataset(section, str(root / "d.conf")).items
    results, style = root / "results.json", Style()
    with ResultsFile(results, "json") as file:
        for number, item in enumerate(items):
            caption = WRITTEN[number % len(WRITTEN)]
            file.add(Result(style.id_of(item), [(caption, -1.0)], item.path, item.captions))
    lines, _ = infer.report_scores(("bleu", "rouge", "cider"), file.results)
    done = script("score.py", results, "--ground_truth", truth, "--scoring", "bleu,rouge,cider")
    assert done.status == 0, done.err
    return [line for line in lines if line[:4] in done.out and ":" not in line][:6], done.out.splitlines()


@pytest.mark.parametrize("name", COCO_FILES)
def test_coco(tmp_path, script, no_java, name):
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"images": IMAGES, "annotations": COCO_FILES[name]}))
    (tmp_path / "d.conf").write_text("[c]\ndataset_class = CocoDataset\ncaption_path = truth.json\n")
    ours, theirs = score_both(script, tmp_path, "c", truth)
    assert len(ours) == 6 and set(ours) <= set(theirs)


@pytest.mark.parametrize("more", [[], [{"image_id": "0", "paragraph": "A dog."}, {"image_id": 9, "paragraph": " "}]])
def test_paragraphs(tmp_path, script, no_java, more):
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps([*PARAGRAPHS, *more]))
    (tmp_path / "d.conf").write_text("[p]\ndataset_class = VisualGenomeIM2PDataset\ncaption_path = truth.json\n")
    ours, theirs = score_both(script, tmp_path, "p", truth)
    assert len(ours) == 6 and set(ours) <= set(theirs)


def test_images_without_references_are_counted(tmp_path, script, no_java):
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps({"images": IMAGES, "annotations": annotations((4, ""))}))
    results.write_text(json.dumps([{"image_id": str(n), "caption": WRITTEN[n % 4]} for n in (0, 1, 4, 5)]))
    done = script("score.py", results, "--ground_truth", truth, "--scoring", "bleu")
    assert "2 captions of images without references are not scored" in done.err
    assert "2 captions, 1.0 references each" in done.out
    assert "2 of 4 images of the ground truth have no result" in done.out
    results.write_text(json.dumps([{"image_id": 5, "caption": "a dog"}]))
    done = script("score.py", results, "--ground_truth", truth, "--scoring", "bleu")
    assert done.status == 2 and "none of its 1 images has a reference" in done.err


def test_the_plain_captions_are_scored_where_words_stand_alone(tmp_path, script, no_java):
    """infer.py --probabilities writes the words under "caption" and the caption under "text"."""
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps({"annotations": annotations()}))
    entries = [{"image_id": n, "caption": WRITTEN[n]} for n in range(4)]
    results.write_text(json.dumps(entries))
    plain = script("score.py", results, "--ground_truth", truth, "--scoring", "bleu").out
    results.write_text(json.dumps([{**entry, "caption": "a=0.5", "text": entry["caption"]} for entry in entries]))
    done = script("score.py", results, "--ground_truth", truth, "--scoring", "bleu")
    assert done.out == plain and "the captions under 'text' are scored" in done.err
