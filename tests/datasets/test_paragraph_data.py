"""Paragraphs as texts, the dataset that holds them, and batches of their sentences."""

import json

import numpy as np
import pytest
import torch
from paragraph_toy import make_paragraphs, sentences, write_features
from PIL import Image
from toy import file_inputs

from captioning.datasets.factory import open_dataset
from captioning.errors import UserError
from captioning.text.paragraphs import join_sentences, spaced_paragraph, split_sentences
from captioning.text.tokens import END, PAD, START
from data_loader import LoaderSettings, get_eval_loader, get_loader
from vocabulary import build_vocabulary


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog runs. It is brown.", ["A dog runs", "It is brown"]),
        ("A dog runs.It is brown", ["A dog runs", "It is brown"]),
        ("It is 3.5 feet long.. There are 2. Two", ["It is 3.5 feet long", "There are 2", "Two"]),
        (" \n . ", []),
        ("", []),
    ],
)
def test_sentences_end_at_periods(text, expected):
    assert split_sentences(text) == expected
    assert split_sentences(spaced_paragraph(text)) == expected


def test_sentences_are_put_together_again():
    assert join_sentences(["A dog runs", "", "Why?", "It is brown."]) == "A dog runs. Why? It is brown."
    assert spaced_paragraph("A dog  runs.It is\nbrown") == "A dog runs . It is brown ."


def dataset(root, paragraphs, subset=None, **keys):
    root.mkdir(exist_ok=True)
    text = paragraphs if isinstance(paragraphs, str) else json.dumps(paragraphs)
    (root / "p.json").write_text(text)
    lines = ["[x]", "dataset_class = VisualGenomeIM2PDataset", "root_dir = %(here)s", "caption_path = p.json"]
    lines += [f"{key} = {value}" for key, value in keys.items()]
    if subset is not None:
        (root / "s.json").write_text(subset if isinstance(subset, str) else json.dumps(subset))
        lines.append("subset = s.json")
    (root / "d.conf").write_text("\n".join(lines))
    return open_dataset("x", str(root / "d.conf"))


def test_visual_genome_paragraphs_and_their_subset(tmp_path, capsys):
    entries = [{"image_id": i, "url": "u", "paragraph": f"Number {i}. It is here."} for i in (5, 3, 9)]
    entries += [{"image_id": 3, "paragraph": "Again."}, {"image_id": 7, "paragraph": " . "}]
    found = dataset(tmp_path, entries, image_dir="pictures")
    assert [item.image_id for item in found.items] == [5, 3, 9, 7]
    item = found.items[1]
    assert item.key == "3.jpg" and item.path == str(tmp_path / "pictures" / "3.jpg")
    assert item.captions == ["Number 3 . It is here .", "Again ."]
    assert "1 blank paragraphs left out, of images 7" in capsys.readouterr().err
    found = dataset(tmp_path, entries, subset=["9", 5, 11])
    assert [item.image_id for item in found.items] == [5, 9] and found.items[0].path is None
    assert "have no paragraph: 11" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paragraphs", "subset", "told"),
    [
        ("[{", None, ["p.json", "line 1"]),
        ({"images": []}, None, ["p.json", "not a list"]),
        ([{"image_id": 1, "paragraph": "A."}, 4], None, ["p.json: [1]", "not an object"]),
        ([{"image_id": 1, "caption": "A."}], None, ["p.json: [0]", "'paragraph'"]),
        ([{"image_id": 1, "paragraph": ["A."]}], None, ["p.json: [0]", "paragraph", "not a text"]),
        ([{"image_id": 1.5, "paragraph": "A."}], None, ["p.json: [0]", "image_id 1.5"]),
        ([{"image_id": 1, "paragraph": "A."}], "[1", ["s.json", "line 1"]),
        ([{"image_id": 1, "paragraph": "A."}], {"train": [1]}, ["s.json", "not a list"]),
        ([{"image_id": 1, "paragraph": "A."}], [1, None], ["s.json: [1]", "None"]),
    ],
)
def test_malformed_paragraphs_are_named_with_their_place(tmp_path, paragraphs, subset, told):
    with pytest.raises(UserError) as caught:
        dataset(tmp_path, paragraphs, subset)
    assert all(text in str(caught.value) for text in told), caught.value


def test_batches_hold_the_sentences_of_whole_paragraphs(tmp_path):
    config = make_paragraphs(tmp_path, {"train": 11}, varied=True)
    write_features(tmp_path, "v.npy")
    found = open_dataset("im2p:train", config)
    items = list(found.items)
    items[3].captions.append("A second paragraph . Of two sentences .")
    found.items = items
    vocabulary = build_vocabulary(found.captions(), 1)
    inputs = file_inputs(found, "v.npy")
    loader = get_loader(found, vocabulary, inputs, LoaderSettings(4, captions_per_image=2, max_sentences=3, seed=1))
    seen = []
    for batch in loader:
        assert batch.sentences.sum() == len(batch.captions) == len(batch.lengths) == len(batch.row_image)
        assert batch.sentences.max() <= 3
        begins = torch.cat([torch.zeros(1, dtype=torch.long), batch.sentences.cumsum(0)])
        for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist()):
            image = batch.row_image[begin:end].unique()
            assert len(image) == 1
            item = batch.items[image]
            texts = [vocabulary.decode(row.tolist()) for row in batch.captions[begin:end]]
            wanted = [split_sentences(caption)[:3] for caption in item.captions]
            assert texts in [[sentence.lower() for sentence in several] for several in wanted]
            seen.append((item.image_id, texts[0]))
        for row, length in zip(batch.captions, batch.lengths):
            assert row[0] == START and row[length - 1] == END and (row[length:] == PAD).all()
    assert len(seen) == len(set(seen)) == 12
    whole = next(iter(get_eval_loader(found, inputs, vocabulary=vocabulary)))
    assert whole.sentences is None and len(whole.captions) == 12  # without max_sentences a paragraph is one caption
    np.testing.assert_array_equal(whole.row_image, [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10])


def test_missing_images_are_named_and_left_out(tmp_path, capsys):
    config = make_paragraphs(tmp_path, {"train": 3})
    (tmp_path / "images").mkdir()
    for i in (1, 3):
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / f"{i}.jpg")
    found = open_dataset("im2p:train", config)
    vocabulary = build_vocabulary(found.captions(), 1)

    def transform(image, seed):
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    loader = get_loader(found, vocabulary, (), LoaderSettings(num_workers=0, max_sentences=6), transform)
    (batch,) = loader
    assert sorted(item.image_id for item in batch.items) == [1, 3]
    assert [message.split("/")[-1] for message in loader.bad_items] == ["2.jpg"]
    assert "2.jpg" in capsys.readouterr().err


def test_the_toy_tells_what_the_scene_shows():
    assert len(sentences(1)) == 3
    assert {len(sentences(i, varied=True)) for i in range(20)} == {2, 3, 4}
