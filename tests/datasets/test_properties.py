"""Property-based tests of datasets.conf, PicSOM's files and COCO's annotations: written and read back, or one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.datasets.config import get_datasets
from captioning.datasets.factory import open_dataset
from captioning.errors import UserError
from captioning.features.picsom_labels import METACLASS, read_captions, read_class, read_label_map, read_labels
from captioning.text.cleaning import clean_caption, id_text

WORD = st.text("abc%()[]:=#;-_.5é", min_size=1, max_size=8)
NAME = st.text("abcé_-.", min_size=1, max_size=6).filter(lambda name: name != "generic")
# What people and programs may do to such a file.
LINE = st.one_of(
    WORD,
    st.builds("[{}]".format, WORD),
    st.builds("{} = {}".format, WORD, WORD),
    st.builds("{}: %({})s".format, WORD, WORD),
    st.builds("#{} <{}> name=[x]".format, st.integers(0, 9), WORD),
    st.builds("{} {} # {}".format, WORD, WORD, WORD),
    st.sampled_from(["", " ", "\t x", "\r", "[DEFAULT]", "dataset_class = GenericDataset", METACLASS, "\0", "\ufeff"]),
)
TEXT = st.lists(LINE, max_size=8).map("\n".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def one_line(path, read) -> None:
    """`read()` succeeds, or raises a UserError of one line that names the file."""
    try:
        read()
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


# ---------------------------------------------------------------- datasets.conf


@given(text=TEXT, name=WORD)
def test_any_text_as_datasets_conf(folder, text, name):
    path = folder / "any.conf"
    path.write_text("[a]\n" + text)
    for section in ("a", name.replace("+", "")):
        one_line(path, lambda section=section: get_datasets(section, str(path)))


@given(st.dictionaries(NAME, st.text("xyz/ é#;=%", max_size=10).map(str.strip), max_size=5))
def test_values_are_read_as_they_were_written(folder, values):
    values = {f"key_{name.lower()}": value for name, value in values.items()}
    path = folder / "written.conf"
    lines = [f"{key} = {value.replace('%', '%%')}" for key, value in values.items()]
    path.write_text("\n".join(["[a]", "dataset_class = C", *lines]) + "\n", encoding="utf-8")
    (params,) = get_datasets("a", str(path))
    assert params.extra == values
    assert params.dataset_class == "C" and params.name == "a"


@given(st.lists(st.sampled_from("abcde"), min_size=5, max_size=5), st.integers(1, 9))
def test_references_end_whatever_refers_to_what(folder, targets, times):
    """Circles are refused, what would grow without bounds too; else the value is what the chain ends in."""
    path = folder / "references.conf"
    lines = [f"{key} = {f'%({target})s' * times}" for key, target in zip("abcde", targets)]
    path.write_text("\n".join(["[s]", "dataset_class = C", "e = end", *lines[:4]]))
    try:
        (params,) = get_datasets("s", str(path))
    except UserError as error:
        assert "refers to itself" in str(error) or "more than" in str(error)
    else:
        assert set(params.extra["a"].split("end")) == {""}


# ---------------------------------------------------------------- PicSOM


@given(text=TEXT)
def test_any_text_as_picsoms_files(folder, text):
    path = folder / "any"
    path.write_text(text)
    for read in (read_labels, read_label_map, lambda path: list(read_captions(path))):
        one_line(path, lambda read=read: read(path))
    one_line(path, lambda: read_class(folder, "any"))


@given(st.dictionaries(st.text("abc 0.", min_size=1, max_size=6), st.integers(0, 10**6), max_size=6))
def test_labels_are_read_as_they_were_written(folder, labels):
    labels = {label: index for index, label in {index: label for label, index in labels.items()}.items()}
    path = folder / "labels.txt"
    path.write_text("".join(f"#{index} <{label}> file=[x]\n" for label, index in labels.items()))
    assert read_labels(path) == labels


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=8, max_size=8))
def test_classes_of_classes(folder, graph):
    """The objects of a class are those of all that it reaches; a circle is refused."""
    for number, others in enumerate(graph):
        lines = [METACLASS, *(f"class{other}" for other in others)] if others else [f"object{number}"]
        (folder / f"class{number}").write_text("\n".join(lines) + "\n")

    def reach(number: int, within: tuple) -> set | None:
        if number in within:
            return None
        if not graph[number]:
            return {f"object{number}"}
        found = [reach(other, (*within, number)) for other in graph[number]]
        return None if None in found else set().union(*found)

    expected = reach(0, ())
    if expected is None:
        with pytest.raises(UserError, match="lists itself"):
            read_class(folder, "class0")
    else:
        assert set(read_class(folder, "class0")) == expected


def test_classes_that_share_classes_are_read_once(tmp_path):
    """Two in each of forty layers, each with both of the next: read along every way it would take for ever."""
    for layer in range(40):
        for side in "ab":
            lines = (
                [METACLASS, f"{layer + 1}a", f"{layer + 1}b"] if layer < 39 else [f"object {side}".replace(" ", "-")]
            )
            (tmp_path / f"{layer}{side}").write_text("\n".join(lines))
    assert read_class(tmp_path, "0a") == ["object-a", "object-b"]
    for layer in range(200):
        (tmp_path / f"c{layer}").write_text(f"{METACLASS}\nc{layer + 1}\n")
    with pytest.raises(UserError, match="more than 100 deep"):
        read_class(tmp_path, "c0")


# ---------------------------------------------------------------- captions

IDS = st.one_of(st.integers(-5, 10**12), st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=5))
CAPTIONS = st.lists(st.text(max_size=20) | st.sampled_from(["<end>", " ", "\ud83d", "a\u2028b\x85c"]), max_size=3)


@given(st.dictionaries(IDS, CAPTIONS, min_size=1, max_size=5))
def test_coco_captions_are_read_as_they_were_written(folder, captions):
    captions = dict({id_text(key): (key, texts) for key, texts in captions.items()}.values())
    images = [{"id": key, "file_name": f"{number}.jpg"} for number, key in enumerate(captions)]
    annotations = [{"image_id": key, "caption": text} for key, texts in captions.items() for text in texts]
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (folder / "c.conf").write_text("[c]\ndataset_class = CocoDataset\ncaption_path = c.json\n")
    items = open_dataset("c", str(folder / "c.conf")).items
    assert [item.image_id for item in items] == list(captions)
    for item, texts in zip(items, captions.values()):
        assert item.captions == [clean for text in texts if (clean := clean_caption(text)).strip()]
