"""People's own captions: recognised in any layout, the same images and captions from each; what is said of others."""

import json

import pytest
from own_data import data, karpathy, picture, write_layouts, write_table

from captioning.datasets.factory import open_dataset
from captioning.errors import UserError

CAPTIONS = data(6)


def read(spec, **options) -> dict[str, list[str]]:
    return {item.key: item.captions for item in open_dataset(str(spec), **options).items}


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("layouts"), CAPTIONS)


LAYOUTS = ["coco", "csv", "bare", "tsv", "lines", "imagefolder", "imagefolder_csv", "karpathy", "flickr", "beside"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same(specs, layout, capsys):
    dataset = open_dataset(specs[layout])
    assert {item.key.removeprefix("images/"): item.captions for item in dataset.items} == CAPTIONS
    assert [item.key for item in dataset.items] == sorted(item.key for item in dataset.items)
    assert all(picture(0).size and item.path and item.path.endswith(item.key) for item in dataset.items)
    dataset.require_images()
    said = capsys.readouterr().err
    assert said.startswith(f"{specs[layout]}: ") and said.count("\n") == 1
    assert "6 images, 12 captions" in said and "images in " in said


def test_a_folder_stands_for_the_one_file_of_captions_in_it(specs):
    for layout in ("coco", "csv", "lines", "karpathy", "tsv"):
        assert len(read(specs[layout].rsplit("/", 1)[0])) == 6


def test_a_section_of_datasets_conf(specs, tmp_path):
    own = specs["csv"]
    (tmp_path / "d.conf").write_text(
        f"[own]\ndataset_class = CaptionFile\ncaptions_path = {own}\n[own:train]\nsubset = train\n"
        f"[other]\ndataset_class = CaptionFile\ncaption_path = {own}\n"
    )
    whole = read("own", config_file=str(tmp_path / "d.conf"))
    assert whole == read("other", config_file=str(tmp_path / "d.conf")) == CAPTIONS
    assert read("own:train", config_file=str(tmp_path / "d.conf")) == read(f"{own}:train")


# ---- tables ----

TABLES = {
    "no header, semicolons": "a.jpg;ein Hund; braun\nb.jpg;eine Katze\n",
    "header in another language": "foto,beschreibung\na.jpg,ein Hund; braun\nb.jpg,eine Katze\n",
    "columns in another order, CRLF": 'caption,split,image_path\r\n"ein Hund; braun",x,a.jpg\r\neine Katze,x,b.jpg\r\n',
    "blank lines": "\n\nimage,text\n\na.jpg,ein Hund; braun\n,\n\nb.jpg,eine Katze\n\n",
    "bars": "image_name| comment_number| comment\na.jpg| 0| ein Hund; braun\nb.jpg| 0| eine Katze\n",
    "names without extensions": "id,caption\na,ein Hund; braun\nb,eine Katze\n",
    "two columns with names of images": "id,name,caption\n7,a.jpg,ein Hund; braun\n8,b.jpg,eine Katze\n",
    "more columns": "file_name,width,caption,url\na.jpg,3,ein Hund; braun,x\nb.jpg,3,eine Katze,x\n",
    "JSON list": '[{"image": "a.jpg", "caption": "ein Hund; braun"}, {"image": "b.jpg", "caption": ["eine Katze"]}]',
    "JSON object": json.dumps({"a.jpg": "ein Hund; braun", "b.jpg": ["eine Katze"]}),
    "JSON Lines": '{"file_name": "a.jpg", "text": "ein Hund; braun"}\n\n{"file_name": "b.jpg", "text": "eine Katze"}',
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    (tmp_path / "captions").write_text(TABLES[name])
    picture(1).save(tmp_path / "a.jpg")
    found = [item.captions for item in open_dataset(str(tmp_path / "captions")).items]
    assert found == [["ein Hund; braun"], ["eine Katze"]]


def test_quotation_marks_and_several_captions_of_a_row(tmp_path):
    rows = [("caption_1", "image", "caption_2"), ('a "red" ball,\nbig', "a.jpg", "a ball"), ("a box", "b.jpg", "")]
    write_table(tmp_path / "c.csv", rows)
    assert read(tmp_path / "c.csv") == {"a.jpg": ['a "red" ball,\nbig', "a ball"], "b.jpg": ["a box"]}
    (tmp_path / "c.tsv").write_text('a.jpg\t"stop" it says\nb.jpg\ta 5" pipe\n')
    assert read(tmp_path / "c.tsv") == {"a.jpg": ['"stop" it says'], "b.jpg": ['a 5" pipe']}
    (tmp_path / "open.csv").write_text('image,caption\na.jpg,"a ball\nb.jpg,a box\n')
    (tmp_path / "plain.csv").write_text("image,caption\na.jpg,a ball, red\nb.jpg,  a box,,\n")
    assert read(tmp_path / "plain.csv") == {"a.jpg": ["a ball, red"], "b.jpg": ["a box,,"]}
    (tmp_path / "spaced.csv").write_text('image, caption\na.jpg, "a ball, red"\nb.jpg, "a ""box"""\n')
    assert read(tmp_path / "spaced.csv") == {"a.jpg": ["a ball, red"], "b.jpg": ['a "box"']}
    with pytest.raises(UserError, match=r"open.csv: row 2 \(line 3\): unexpected end of data: a caption with quot"):
        read(tmp_path / "open.csv")


def test_unicode_text_of_a_spreadsheet(tmp_path):
    write_table(tmp_path / "c.txt", [("image", "caption"), ("a.jpg", "犬が走る")], "\t", "utf-16")
    assert read(tmp_path / "c.txt") == {"a.jpg": ["犬が走る"]}
    (tmp_path / "old.csv").write_bytes("image,caption\na.jpg,Café\n".encode("latin-1"))
    with pytest.raises(UserError, match="old.csv, line 2 is not UTF-8 text: save the file as UTF-8"):
        read(tmp_path / "old.csv")


def test_bad_rows_are_counted(tmp_path, capsys):
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,a ball\n,a box\nb.jpg,\n")
    assert read(tmp_path / "c.csv") == {"a.jpg": ["a ball"], "b.jpg": []}
    said = capsys.readouterr().err
    assert "c.csv: 1 blank captions left out, of images b.jpg" in said
    assert "c.csv: 1 entries left out: row 3: no image is named" in said
    (tmp_path / "c.jsonl").write_text(
        '{"image": "a.jpg", "caption": 3}\n{"image"\n[]\n{"image": "b.jpg", "text": "x"}\n'
    )
    assert read(tmp_path / "c.jsonl") == {"a.jpg": [], "b.jpg": ["x"]}
    said = capsys.readouterr().err
    assert "3 entries left out: line 1: the caption is no text but '3', line 2: it is not JSON" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b"one,two\n1,2\n"),
        ("x.json", b'{"a": 1}'),
        ("x.txt", b"some text\n"),
        ("x.bin", b"\0\1"),
        ("e.csv", b""),
    ],
)
def test_others_are_told_what_is_known(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for spec in (tmp_path / name, tmp_path):
        with pytest.raises(
            UserError, match="is no captions that are known. These are: CSV or TSV .*COCO's, Karpathy's"
        ):
            read(spec)


def test_mistakes_name_the_place(tmp_path):
    picture(0).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="has images, but no captions: write x.txt beside x.jpg"):
        read(tmp_path)
    (tmp_path / "x.json").write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1}]}')
    with pytest.raises(UserError, match=r"annotations\[0\] has no 'caption'"):
        read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"images": [')
    with pytest.raises(UserError, match="x.json is not valid JSON: Expecting value at line 1"):
        read(tmp_path / "x.json")
    for name in ("y.csv", "z.csv"):
        write_table(tmp_path / name, [("a.jpg", "a ball")])
    with pytest.raises(UserError, match=r"has 2 files of captions \(y.csv, z.csv\): name one of them"):
        read(tmp_path)


# ---- folders ----


def test_tags_beside_images(tmp_path, capsys):
    for number, text in enumerate(["1girl, solo, smile", "dog, grass, running fast", "tree, sky, blue"]):
        (tmp_path / "10_own").mkdir(exist_ok=True)
        picture(number).save(tmp_path / f"10_own/{number}.webp")
        (tmp_path / f"10_own/{number}.caption").write_text(text)
    picture(7).save(tmp_path / "alone.png")
    (tmp_path / "gone.txt").write_text("a dog")
    (tmp_path / "README.txt").write_text("about these")
    found = read(tmp_path)
    assert found["10_own/0.webp"] == ["1girl, solo, smile"] and found["alone.png"] == []
    said = capsys.readouterr().err
    assert "of tags, kept as text: 4 images, 3 captions; 1 images have no text file" in said
    assert "1 entries left out: gone.txt: there is no image beside it" in said


def test_splits_of_folders(tmp_path):
    for number, split in enumerate(("train", "validation", "test")):
        (tmp_path / split).mkdir()
        picture(number).save(tmp_path / split / "1.jpg")
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps({"file_name": "1.jpg", "text": split}))
    assert read(f"{tmp_path}:val") == read(f"{tmp_path}:validation") == {"validation/1.jpg": ["validation"]}
    assert list(read(tmp_path)) == ["test/1.jpg", "train/1.jpg", "validation/1.jpg"]
    with pytest.raises(UserError, match="has no split 'dev2'; it has test 1, train 1, val 1"):
        read(f"{tmp_path}:dev2")


# ---- splits of files ----


def test_splits_of_karpathy(tmp_path, capsys):
    path = tmp_path / "dataset_coco.json"
    order = ("train", "restval", "val", "test")
    path.write_text(json.dumps(karpathy(CAPTIONS, lambda number: order[number % 4])))
    names = list(CAPTIONS)
    assert list(read(f"{path}:train")) == [names[0], names[4]]
    assert "restval is not part of it, add +PATH:restval" in capsys.readouterr().err
    assert list(read(f"{path}:restval")) == [names[1], names[5]]
    assert list(read(f"{path}:train+{path}:restval")) == [names[0], names[4], names[1], names[5]]
    assert list(read(f"{path}:dev")) == [names[2]]
    assert len(read(path)) == 6
    assert "all splits together (train 2, restval 2, val 1, test 1)" in capsys.readouterr().err


def test_a_column_and_lists_of_splits(tmp_path):
    write_table(tmp_path / "c.csv", [("image", "caption", "split"), ("a.jpg", "x", "train"), ("b.jpg", "y", "Valid")])
    assert read(f"{tmp_path / 'c.csv'}:val") == {"b.jpg": ["y"]}
    write_table(tmp_path / "d.csv", [("a.jpg", "x"), ("b.jpg", "y"), ("c.jpg", "z")])
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("b.jpg\n\n")
    (tmp_path / "test.txt").write_text("something else\n")
    assert read(f"{tmp_path / 'd.csv'}:train") == {"a.jpg": ["x"]}
    assert read(f"{tmp_path / 'd.csv'}:dev") == {"b.jpg": ["y"]}
    with pytest.raises(UserError, match="has no split 'test'"):
        read(f"{tmp_path / 'd.csv'}:test")


def test_splits_by_hash_do_not_depend_on_the_order(tmp_path):
    names = [f"{number}.jpg" for number in range(200)]
    write_table(tmp_path / "a.csv", [(name, "a ball") for name in names])
    write_table(tmp_path / "b.csv", [("caption", "image"), *(("a ball", f"else/{name}") for name in reversed(names))])
    parts = [list(read(f"{tmp_path / 'a.csv'}:{split}")) for split in ("train", "val", "test")]
    assert sorted(sum(parts, [])) == sorted(names)
    assert 140 <= len(parts[0]) <= 180 and all(10 <= len(part) <= 35 for part in parts[1:])
    assert [f"else/{name}" for name in parts[1]] == list(read(f"{tmp_path / 'b.csv'}:val"))
    with pytest.raises(UserError, match="has no splits, so there is no 'late'"):
        read(f"{tmp_path / 'a.csv'}:late")
    write_table(tmp_path / "few.csv", [("0.jpg", "x")])
    with pytest.raises(UserError, match="none of its 1 images falls to .* train with --val_fraction instead"):
        for split in ("val", "test", "train"):
            read(f"{tmp_path / 'few.csv'}:{split}")


# ---- where the images are ----


def places(spec, **options) -> list[str]:
    return [item.path for item in open_dataset(str(spec), **options).items]


def test_images_are_found(tmp_path):
    for folder in ("annotations", "images/one", "images/two", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    picture(0).save(tmp_path / "images/one/a.jpg")
    picture(1).save(tmp_path / "images/two/b.jpg")
    picture(2).save(tmp_path / "elsewhere/a.jpg")
    table = tmp_path / "annotations/c.csv"
    write_table(table, [("image", "caption"), ("a.jpg", "x"), ("b.jpg", "y")])
    one, two = str(tmp_path / "images/one/a.jpg"), str(tmp_path / "images/two/b.jpg")
    assert places(table, images=str(tmp_path / "images")) == [one, two]
    assert places(table) == [one, two]  # not those of another folder
    write_table(table, [("image", "caption"), ("one\\a.jpg", "x"), ("C:\\photos\\two\\b.jpg", "y")])
    assert set(places(table, images=str(tmp_path / "images"))) >= {two}
    write_table(table, [("image", "caption"), ("/gone/a.jpg", "x"), ("/gone/b.jpg", "y")])
    assert places(table, images=str(tmp_path / "images")) == [one, two]
    write_table(table, [("image", "caption"), (one, "x"), (two, "y")])
    assert places(table) == [one, two]


def test_images_in_a_zip_file_and_none_at_all(tmp_path):
    import zipfile

    picture(0).save(tmp_path / "a.jpg")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.write(tmp_path / "a.jpg", "photos/a.jpg")
    (tmp_path / "a.jpg").unlink()
    write_table(tmp_path / "c.csv", [("a.jpg", "x")])
    assert places(tmp_path / "c.csv") == [str(tmp_path / "photos.zip/a.jpg")]
    (tmp_path / "photos.zip").unlink()
    with pytest.raises(UserError, match="none of its 1 images is in .* say where they are with --images DIR"):
        open_dataset(str(tmp_path / "c.csv")).require_images()
    with pytest.raises(UserError, match="--images: no such folder: gone"):
        open_dataset(str(tmp_path / "c.csv"), images="gone")


@pytest.mark.parametrize("option", ["--dataset", "--captions", "--validate"])
def test_errors_name_the_flag_that_was_typed(tmp_path, option):
    (tmp_path / "notes.py").write_text("import this\n")
    with pytest.raises(UserError, match=f"^{option} .*notes.py: "):
        open_dataset(str(tmp_path / "notes.py"), option=option)
