"""The gallery without a browser: cards, compared captions, the page and its folder of thumbnails."""

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image

from captioning.errors import UserError
from captioning.locks import FileLock
from inference.caption_files import read_results
from inference.gallery import page
from inference.gallery.cards import Card, WordMaps, link_to, names_of, with_words, word_places
from inference.gallery.comparison import Comparison, difference, differing
from inference.gallery.page import Gallery, write_gallery
from inference.results.files import ResultsFile
from inference.results.result import Result


def photos(folder: Path, count: int) -> list[Result]:
    """Results of small pictures in `folder`/in, with ids from 1."""
    (folder / "in").mkdir(exist_ok=True)
    results = []
    for number in range(1, count + 1):
        path = folder / "in" / f"p{number}.png"
        Image.new("RGB", (32, 24), (number * 20 % 256, 99, 50)).save(path)
        results.append(Result(number, [(f"Caption {number}.", -float(number))], str(path)))
    return results


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


# ---- words ----


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("A dog runs.", "A cat runs.", (["dog"], ["cat"])),
        ("A dog runs", "a Dog, runs.", ([], [])),  # case and punctuation do not count
        ("A dog runs on the grass.", "A dog on grass.", (["runs", "the"], [])),
        ("", "Two dogs.", ([], ["Two dogs."])),
        ("一只狗", "一只猫", (["狗"], ["猫"])),  # no blanks between words
        ("A red ball, a box.", "A green ball, a tall box.", (["red"], ["green", "tall"])),
    ],
)
def test_words_that_differ(first, second, words):
    ranges = differing(first, second)
    assert tuple([text[a:b] for a, b in found] for text, found in zip((first, second), ranges)) == words
    assert (difference(first, second) == 0) == (words == ([], []))


def test_the_models_tokens_are_found_in_its_caption():
    text = "The man doesn't hold a 2-year-old's dog."
    words = ["the", "man", "does", "n't", "hold", "a", "2-year-old", "'s", "dog", ".", "<end>"]
    assert [text[begin:end] for begin, end, _ in word_places(text, words)] == (
        ["The", "man", "does", "n't", "hold", "a", "2-year-old", "'s", "dog"]
    )
    assert [number for *_, number in word_places("A man rides.", ["a", "man", "ride_VBZ", ".", "<end>"])] == [0, 1]
    assert word_places("Two dogs. A cat.", ["two", "dogs", ".", "<end>", "a", "cat", ".", "<end>"])[2] == (10, 11, 4)
    assert word_places("İki köpek", ["iki"]) == []  # its small form is longer


def test_marks_and_words_nest():
    text = "A <b> dog's ball"
    places = word_places(text, ["a", "<b>", "dog", "'s", "ball"])
    assert with_words(text, places, [(6, 11)]) == (
        '<span data-word="0">A</span> <span data-word="1">&lt;b&gt;</span> <mark><span data-word="2">dog</span>'
        '<span data-word="3">&#x27;s</span></mark> <span data-word="4">ball</span>'
    )


# ---- cards ----


def test_how_sure_the_model_is():
    result = Result(1, [("A dog.", -2.0)])
    assert "log p -2.00" in Card(result).html() and "not sure" not in Card(result).html()
    for sure, told in ((0.29, True), (0.3, False)):
        result.confidences = [sure]
        card = Card(result, score=1.234, score_name="CIDEr").html()
        assert ("not sure" in card) == told and f'value="{sure:.2f}"' in card and "CIDEr 1.23" in card
        assert "log p" not in card
    assert "log p" not in Card(Result(1, [("A dog.", math.nan)])).html()


def test_a_caption_that_was_withheld():
    """The model was not sure enough of any: the card says so, also beside captions of another file."""
    result = Result(1, [("A dog.", -2.0)], confidences=[0.1])
    result.withhold(0.5)
    other = Comparison("a", "b", {"1": ["A cat."]})
    for card in (Card(result), Card(result, maps=WordMaps([], (1, 1), b"")), Card(result, other=other)):
        assert 'class="absent">no caption<' in card.html() and "not sure" in card.html()
    blank = Comparison("a", "b", {"1": [""]})
    assert Card(Result(1, [("A dog.", -2.0)]), other=blank).html().count("no caption") == 1


def test_names_show_no_folders_of_others():
    assert names_of(Result("/home/me/a.jpg", [], "/home/me/a.jpg")) == ["a.jpg"]
    assert names_of(Result("../me/a.jpg", [], "../me/a.jpg")) == ["a.jpg"]
    assert names_of(Result("sub/a.jpg", [], "photos/sub/a.jpg")) == ["sub/a.jpg"]
    assert names_of(Result(42, [], "/coco/COCO_42.jpg")) == ["42", "COCO_42.jpg"]
    assert names_of(Result("in/\\udcff.jpg", [], "in/\udcff.jpg")) == ["in/\\udcff.jpg"]  # a byte that is no text
    assert names_of(Result(42, [])) == ["42"]


def test_links_are_relative_and_short(tmp_path):
    page = tmp_path / "one" / "two"
    assert link_to(str(page / "in/a b#1%.jpg"), page) == "in/a%20b%231%25.jpg"
    assert link_to(str(page / "javascript:1.jpg"), page) == "javascript%3A1.jpg"
    assert link_to(str(tmp_path / "photos/a.jpg"), page) == "../../photos/a.jpg"
    assert link_to(str(tmp_path.parent / "a.jpg"), page) is None  # through the folders of the person
    assert link_to("/a.jpg", Path("/home")) is None and link_to(None, page) is None
    (tmp_path / "p.zip").write_bytes(b"")
    assert link_to(str(tmp_path / "p.zip/a.jpg"), tmp_path) is None


# ---- the page ----


@pytest.mark.parametrize("embedded", [1000, 1])
def test_the_policy_allows_the_pages_own_script_and_style_alone(tmp_path, monkeypatch, embedded):
    monkeypatch.setattr(page, "EMBEDDED", embedded)
    monkeypatch.setattr(page, "PAGE", 1)
    hostile = [
        Result("/home/me/a&b.jpg", [('A "dog" <img src=x onerror=alert(1)>.', -1.0)]),
        Result("javascript:alert(1)#%?'\n.jpg", [("A \u202ecat\x1b[31m.", -1.0)], None, ["<script>1</script>"]),
    ]
    write_gallery(tmp_path / "g.html", hostile, Gallery("<b>", "x", ["</pre><script>2</script>"]))
    text = (tmp_path / "g.html").read_text()
    body = text.replace(page.SCRIPT, "").replace(page.STYLE, "")
    counts = [body.count(tag) for tag in ("<script", "<style", "<img", "<b>", " on", "\x1b", "\u202e", "style=")]
    assert counts == [2, 1, 0, 0, 1, 0, 0, 0]
    cards = body + "".join(data_of(text)["cards"])
    assert "/home/me" not in text and "<bdi>a&amp;b.jpg</bdi>" in cards
    assert "javascript:alert(1)#%?&#x27;\\n.jpg" in cards
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    for kind in ("script", "style"):
        (content,) = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy


def test_what_is_sorted_by(tmp_path):
    results = photos(tmp_path, 3)
    results[0].image_id, results[1].image_id, results[2].image_id = "p10", "p2", "P1"
    results[1].references = ["Seen."]
    other = Comparison("a", "b", {"p10": ["Caption 1."], "p2": ["Caption 3."]}, {"p2": 0.75})
    write_gallery(tmp_path / "g.html", results, Gallery("t", "a", (), "CIDEr", {"p2": 0.5}, {}, other))
    keys = data_of((tmp_path / "g.html").read_text())["keys"]
    assert keys == {
        "sure": [-1.0, -2.0, -3.0], "score": [None, 0.5, None], "name": [2, 1, 0], "length": [10, 10, 10],
        "references": [0, 1, 0], "difference": [0.0, 0.2, 1.0], "gain": [None, 0.25, None],
    }  # fmt: skip


def test_a_photo_without_a_caption_has_no_length_to_sort_by(tmp_path):
    results = photos(tmp_path, 2)
    results[0].captions = [("", -9.0)]
    write_gallery(tmp_path / "g.html", results, Gallery("t", "a"))
    assert data_of((tmp_path / "g.html").read_text())["keys"]["length"] == [None, 10]


def test_maps_of_words_stand_in_the_card(tmp_path):
    maps = {"1": WordMaps(["caption", "1", ".", "<end>"], (1, 2), bytes(range(8)))}
    write_gallery(tmp_path / "g.html", photos(tmp_path, 2), Gallery("t", "a", maps=maps))
    text = (tmp_path / "g.html").read_text()
    assert f'data-grid="1x2" data-maps="{base64.b64encode(bytes(range(8))).decode()}"' in text
    assert text.count("data-maps=") == 1 and text.count("<span data-word=") == 2


# ---- thumbnails in a folder ----


@pytest.fixture
def many(monkeypatch):
    """More than four photos are many, and a page has three."""
    monkeypatch.setattr(page, "EMBEDDED", 4)
    monkeypatch.setattr(page, "PAGE", 3)


def test_thumbnails_of_many_photos_lie_beside_the_page(tmp_path, many):
    path, folder = tmp_path / "my page.html", tmp_path / "my page_files"
    write_gallery(path, photos(tmp_path, 7), Gallery("t", "a"))
    text = path.read_text()
    assert text.count("<figure") - text.count("<figure", text.index('id="data"')) == 3
    sources = re.findall(r'src=\\?"(my%20page_files/thumbnails-1/\d{5}\.jpg)', text)
    assert len(set(sources)) == 7 and "base64," not in text and str(tmp_path) not in text
    assert sorted(file.name for file in (folder / "thumbnails-1").iterdir()) == [f"{n:05d}.jpg" for n in range(1, 8)]
    assert len(data_of(text)["cards"]) == 4 and data_of(text)["size"] == 3

    (folder / "thumbnails-1" / "mine.txt").write_text("kept")
    write_gallery(path, photos(tmp_path, 6), Gallery("t", "a"))
    assert "thumbnails-2/00006.jpg" in path.read_text() and len(list((folder / "thumbnails-2").iterdir())) == 6
    assert [file.name for file in (folder / "thumbnails-1").iterdir()] == ["mine.txt"]  # no file of others goes
    (folder / "thumbnails-1" / "mine.txt").unlink()
    write_gallery(path, photos(tmp_path, 2), Gallery("t", "a"))
    assert not folder.exists() and "data:image" in path.read_text()


def test_a_gallery_that_fails_leaves_the_old_one(tmp_path, many, monkeypatch):
    path = tmp_path / "g.html"
    write_gallery(path, photos(tmp_path, 5), Gallery("old", "a"))
    before, files = path.read_text(), sorted(tmp_path.glob("g_files/**/*"))

    def full(*arguments):
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(page, "as_json", full)
    with pytest.raises(UserError, match="No space"):
        write_gallery(path, photos(tmp_path, 6), Gallery("new", "a"))
    assert path.read_text() == before and sorted(tmp_path.glob("g_files/**/*")) == files


def test_one_process_at_a_time_writes_the_folder(tmp_path, many):
    (tmp_path / "g_files").mkdir()
    with FileLock(tmp_path / "g_files" / ".lock", "x"), pytest.raises(UserError, match="another process is at work"):
        write_gallery(tmp_path / "g.html", photos(tmp_path, 5), Gallery("t", "a"))


# ---- results files of each format ----


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_captions_are_read_from_each_format(tmp_path, form):
    path = tmp_path / f"r.{form}"
    results = [Result(7, [("A dog.", -1.0), ('=Two, "dogs".', -2.0)]), Result("a,b.jpg", [("-A cat.", -3.0)])]
    with ResultsFile(path, form) as file:
        for result in results:
            file.add(result)
    assert read_results(str(path)) == {"7": ["A dog.", '=Two, "dogs".'], "a,b.jpg": ["-A cat."]}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '{"image_id": 1, "caption": "A."}\n{"image', "line 2 is not valid JSON"),
        ("a.jsonl", '{"image_id": 1}\n', "caption"),
        ("a.csv", "id,text\n1,a\n", "must name the columns image_id and caption"),
        ("a.csv", "image_id,rank,caption\n1,2,a\n", "rank 1 of the image is missing"),
        ("a.csv", "image_id,rank,caption\n1\n", "line 2 has no caption"),
        ("a.csv", 'image_id,rank,caption\n1,1,"a\n', "line"),
        ("a.csv", "image_id,caption\n1,a\n1,b\n", "two captions"),
        ("a.csv", "image_id,caption\n", "empty"),
        ("a.csv", b"image_id,caption\n1,\xff\n", "not UTF-8"),
    ],
)
def test_what_is_no_results_file(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=told):
        read_results(str(tmp_path / name))
