"""Folders and tables as people really write them. Readers look at names only, so most files here are empty."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet import datasets
from tubelet.datasets import folder, table
from tubelet.errors import ConfigError, DataError


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def rows(dataset):
    return [(example.id, example.label, example.split) for example in dataset.examples]


def test_every_format_has_matches_and_read_and_is_listed():
    assert datasets.formats() == [
        "activitynet_captions",
        "charades_sta",
        "didemo",
        "egoschema",
        "folder",
        "nextqa",
        "qvhighlights",
        "shards",
        "table",
    ]
    for name in datasets.formats():
        module = datasets.find.module("tubelet.datasets", name)
        assert callable(module.matches) and callable(module.read) and module.__doc__


def test_class_folders(tmp_path):
    files(tmp_path, "wave/b.mp4", "wave/a.MP4", "clap/deep/c.avi", "clap/notes.txt", ".hidden/x.mp4", "clap/.y.mp4")
    dataset = datasets.read(tmp_path)
    assert rows(dataset) == [
        ("clap/deep/c.avi", "clap", None),
        ("wave/a.MP4", "wave", None),
        ("wave/b.mp4", "wave", None),
    ]
    assert dataset.classes == ("clap", "wave") and dataset.may_flip
    assert all(Path(example.path).is_file() for example in dataset.examples)


def test_split_folders_with_and_without_classes(tmp_path):
    files(tmp_path / "a", "train/wave/1.mp4", "Val/wave/2.mp4", "train/clap/3.mp4")
    assert rows(datasets.read(tmp_path / "a")) == [
        ("Val/wave/2.mp4", "wave", "val"),
        ("train/clap/3.mp4", "clap", "train"),
        ("train/wave/1.mp4", "wave", "train"),
    ]
    files(tmp_path / "b", "train/1.mp4", "test/2.mp4")
    assert rows(datasets.read(tmp_path / "b")) == [("test/2.mp4", None, "test"), ("train/1.mp4", None, "train")]


def test_videos_beside_class_folders_have_no_label_and_take_none_away(tmp_path):
    files(tmp_path, "b 2.mp4", "a.webm")
    assert rows(datasets.read(tmp_path)) == [("a.webm", None, None), ("b 2.mp4", None, None)]
    files(tmp_path, "wave/c.mp4")
    dataset = datasets.read(tmp_path)
    assert dataset.classes == ("wave",) and [example.label for example in dataset.examples] == [None, None, "wave"]


@pytest.mark.parametrize("extra", ["more/wave/x.mp4", "x.mp4"])
def test_what_lies_beside_train_and_val_is_named(tmp_path, extra):
    files(tmp_path, "train/wave/1.mp4", "val/wave/2.mp4", "unlabelled/3.mp4")
    assert [example.label for example in datasets.read(tmp_path).examples] == ["wave", None, "wave"]
    files(tmp_path, extra)
    with pytest.raises(DataError, match=f"is split into train, val, and beside them lies {extra.partition('/')[0]}: move it"):
        datasets.read(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    dataset = datasets.read(files(tmp_path, "train/1.mp4", "bus/2.mp4"))
    assert rows(dataset) == [("bus/2.mp4", "bus", None), ("train/1.mp4", "train", None)]


def test_one_video_file_is_a_data_set_of_one(tmp_path):
    path = files(tmp_path, "x.mp4") / "x.mp4"
    assert rows(datasets.read(path)) == [(str(path), None, None)]


def test_numbered_classes_are_in_counting_order(tmp_path):
    assert datasets.read(files(tmp_path, *(f"c{i}/x.mp4" for i in (10, 9, 1)))).classes == ("c1", "c9", "c10")


def test_a_link_back_up_ends(tmp_path):
    files(tmp_path, "wave/a.mp4")
    (tmp_path / "wave" / "again").symlink_to(tmp_path)
    assert len(datasets.read(tmp_path).examples) == 1


@pytest.mark.parametrize(
    "name",
    [
        "turn_left",
        "Rotate clockwise",
        "right-turn",
        "TurnLeft",
        "turnRIGHT2",
        "swipe_l",
        "SwipeR",
        "spin ccw",
        "links",
        "rechts_ab",
    ],
)
def test_classes_that_speak_of_a_direction_may_not_be_flipped(tmp_path, name):
    assert not datasets.read(files(tmp_path, f"{name}/a.mp4", "other/b.mp4")).may_flip
    assert datasets.read(files(tmp_path / "other", "leftovers/a.mp4", "bright/b.mp4", "BrushHair2/c.mp4")).may_flip


def test_classes_that_say_nothing_of_direction_may_not_be_flipped(tmp_path):
    assert not datasets.read(files(tmp_path / "a", "0/a.mp4", "1/b.mp4", "10/c.mp4")).may_flip
    (tmp_path / "x.csv").write_text("path,label,reverse_label\na.mp4,open,close\nb.mp4,close,\n")
    assert not datasets.read(tmp_path / "x.csv").may_flip
    assert datasets.read(files(tmp_path / "b", "a.mp4")).may_flip


def test_missing_empty_and_videoless_folders_are_one_line_each(tmp_path):
    (tmp_path / "empty").mkdir()
    files(tmp_path / "text", "readme.md", "sub/notes.txt")
    for path, message in (
        (tmp_path / "nowhere", "nowhere does not exist: give a folder"),
        (tmp_path / "empty", "empty holds no video: the folder is empty"),
        (tmp_path / "text", "text holds no video: it holds readme.md, sub; wanted files such as .mp4"),
    ):
        with pytest.raises(DataError) as caught:
            datasets.read(path)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"readme\.md is neither a folder, a video nor a table"):
        datasets.read(tmp_path / "text" / "readme.md")


TABLES = {
    "csv": "path,label\na b/1.mp4,wave\n2.avi,clap\n",
    "crlf, byte order mark and blank lines": "\ufeffpath,label\r\n\r\na b/1.mp4,wave\r\n2.avi,clap\r\n\r\n",
    "quoted": 'path,label\n"a b/1.mp4","wave"\n"2.avi",clap\n',
    "other names, order and columns": "Class,frames,Video\nwave,12,a b/1.mp4\nclap,9,2.avi\n",
    "tsv": "path\tlabel\na b/1.mp4\twave\n2.avi\tclap\n",
    "semicolon, no header": "a b/1.mp4;wave\n2.avi;clap\n",
    "pipe, spaces around": "a b/1.mp4 | wave\n2.avi | clap\n",
    "comma, no header": "a b/1.mp4, wave\n2.avi, clap\n",
    "spaces, no header": "a b/1.mp4 wave\n2.avi clap\n",
    "spaces, quoted path": '"a b/1.mp4" wave\n2.avi   clap  \n',
    "optional last column": "path,label,group\na b/1.mp4,wave,\n2.avi,clap\n",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_tables_of_every_kind_say_the_same(tmp_path, name, suffix):
    (tmp_path / f"list{suffix}").write_text(TABLES[name], encoding="utf-8", newline="")
    dataset = datasets.read(tmp_path / f"list{suffix}")
    assert rows(dataset) == [("a b/1.mp4", "wave", None), ("2.avi", "clap", None)]
    assert dataset.classes == ("clap", "wave")
    assert [example.path for example in dataset.examples] == [str(tmp_path / "a b/1.mp4"), str(tmp_path / "2.avi")]


def test_all_columns_are_read(tmp_path):
    (tmp_path / "x.csv").write_text(
        "path,label,caption,group,split,start,end\n"
        'a.mp4,wave,"a hand, waving",g1,train,1.5,4\n'
        "a.mp4,wave,again,g1,val,4,\n"
        "/else/b.mp4,,,,,,\n"
    )
    first, second, third = datasets.read(tmp_path / "x.csv").examples
    assert (first.text, first.group, first.split) == ("a hand, waving", "g1", "train")
    assert (first.start_seconds, first.end_seconds, first.id) == (1.5, 4.0, "a.mp4@1.5-4")
    assert (second.start_seconds, second.end_seconds, second.id) == (4.0, None, "a.mp4@4-")
    assert (third.path, third.label, third.group, third.split, third.start_seconds) == ("/else/b.mp4",) + (None,) * 4


def test_equal_rows_keep_different_ids(tmp_path):
    (tmp_path / "x.csv").write_text("path,caption\na.mp4,one\na.mp4,two\nb.mp4,three\n")
    assert [example.id for example in datasets.read(tmp_path / "x.csv").examples] == ["a.mp4", "a.mp4#2", "b.mp4"]


def test_lists_with_frame_counts_parts_and_one_column(tmp_path):
    (tmp_path / "tsn.txt").write_text("v/a.avi 120 3\nv/b.avi 99 10\n")
    dataset = datasets.read(tmp_path / "tsn.txt")
    assert [example.label for example in dataset.examples] == ["3", "10"] and dataset.classes == ("3", "10")
    (tmp_path / "parts.txt").write_text("a.mp4 wave 1 2.5\n".replace(" ", "\t"))
    assert datasets.read(tmp_path / "parts.txt").examples[0].end_seconds == 2.5
    (tmp_path / "one.txt").write_text("a.mp4\nb c.mp4\n")
    assert rows(datasets.read(tmp_path / "one.txt")) == [("a.mp4", None, None), ("b c.mp4", None, None)]


def test_labels_with_spaces_in_a_space_separated_list(tmp_path):
    (tmp_path / "x.txt").write_text("a b.mp4 riding a bike\nc.mp4 waving\n")
    assert [example.label for example in datasets.read(tmp_path / "x.txt").examples] == ["riding a bike", "waving"]


def test_a_path_without_a_suffix_finds_its_video(tmp_path):
    files(tmp_path, "v/one.webm")
    (tmp_path / "x.csv").write_text("path,label\nv/one,a\nv/two,b\n")
    assert [Path(example.path).name for example in datasets.read(tmp_path / "x.csv").examples] == ["one.webm", "two"]


def test_a_folder_with_a_table_is_that_table(tmp_path):
    files(tmp_path, "wave/a.mp4", "wave/b.mp4")
    (tmp_path / "labels.csv").write_text("path,label\nwave/a.mp4,x\n")
    assert rows(datasets.read(tmp_path)) == [("wave/a.mp4", "x", None)]
    assert len(datasets.read(tmp_path, "folder").examples) == 2
    (tmp_path / "labels.csv").write_text("label,split\nwave,train\n")
    with pytest.raises(DataError, match="none called path"):  # a broken table is not passed over
        datasets.read(tmp_path)
    with pytest.raises(ConfigError, match="unknown data format 'tabel': did you mean 'table'"):
        datasets.read(tmp_path, "tabel")


@pytest.mark.parametrize("text", ["wave\nclap\n", "0 wave\n1 clap\n", "hands that clap twice\nwave\n"])
def test_a_list_of_class_names_is_not_the_table(tmp_path, text):
    files(tmp_path, "wave/a.mp4", "clap/b.mp4")
    (tmp_path / "labels.txt").write_text(text)
    assert datasets.read(tmp_path).classes == ("clap", "wave")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty: wanted a header"),
        (b"path,label\n", "has a header but no row"),
        (b"label,split\nwave,train\n", "has the columns label, split, but none called path"),
        (b"path,label\n,wave\n", "line 2: no path"),
        (b"path,start,end\na.mp4,3,2\n", "line 2: the part ends at 2 s, before or at its start 3 s"),
        (b"path,start\na.mp4,soon\n", "line 2: start is 'soon': wanted seconds"),
        (b"a.mp4,1,x,y,z\nb.mp4,1,x,y,z\n", "has 5 columns and no header"),
        (b"path,label\n\xff\xfe.mp4,x\n", "byte 11 is not UTF-8"),
        (b"path\0,label\n", "holds binary data"),
    ],
)
def test_bad_tables_are_one_line_with_the_place(tmp_path, text, message):
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(DataError) as caught:
        datasets.read(tmp_path / "x.csv")
    assert message in str(caught.value) and str(tmp_path / "x.csv") in str(caught.value) and "\n" not in str(caught.value)


def test_missing_tables(tmp_path):
    with pytest.raises(DataError, match=r"x\.csv does not exist"):
        table.read(tmp_path / "x.csv")
    with pytest.raises(DataError, match="holds no table"):
        table.read(tmp_path)
    with pytest.raises(DataError, match="is not a folder or a video file"):
        folder.read(files(tmp_path, "x.txt") / "x.txt")


name = st.text(st.characters(categories=["L", "N"], include_characters=" ._-,'"), min_size=1, max_size=12).map(
    lambda text: f"v{text}e.mp4"
)
label = st.text(st.characters(categories=["L", "N"], include_characters=" _-,;'\""), max_size=9).map(lambda text: f"c{text}e")


@given(st.lists(st.tuples(name, label), min_size=1, max_size=8), st.sampled_from(",\t;|"))
def test_what_the_csv_module_writes_is_what_is_read(tmp_path_factory, pairs, delimiter):
    import csv

    path = tmp_path_factory.mktemp("table") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([("path", "label"), *pairs])
    examples = datasets.read(path).examples
    assert [(Path(example.path).name, example.label) for example in examples] == pairs


def test_a_union_keeps_ids_and_groups_apart_and_merges_classes(tmp_path):
    files(tmp_path / "one", "wave/a.mp4", "left/b.mp4")
    files(tmp_path / "other" / "one", "wave/a.mp4", "jump/b.mp4")
    files(tmp_path / "two", "c.mp4")
    (tmp_path / "two" / "labels.csv").write_text("path,group\nc.mp4,g\n")
    union = datasets.read_many([tmp_path / "one", tmp_path / "other" / "one", tmp_path / "two"])
    assert [example.id for example in union.examples] == [
        "one/left/b.mp4",
        "one/wave/a.mp4",
        "one-2/jump/b.mp4",
        "one-2/wave/a.mp4",
        "two/c.mp4",
    ]
    assert union.classes == ("left", "wave", "jump") and union.examples[-1].group == "two/g" and not union.may_flip
    assert datasets.read_many([tmp_path / "one"]) == datasets.read(tmp_path / "one")
    assert [example.source for example in union.examples] == ["one", "one", "one-2", "one-2", "two"]
    with pytest.raises(DataError, match="no data given"):
        datasets.read_many([])


def test_single_videos_are_called_by_the_path_given(tmp_path):
    paths = [str(path) for path in (files(tmp_path, "a.mp4", "b.mp4", "d/c.mp4") / name for name in ("a.mp4", "b.mp4"))]
    union = datasets.read_many([*paths, tmp_path / "d", paths[0]])
    assert [example.id for example in union.examples] == [*paths, "d/c.mp4"]


def test_what_a_classifier_needs(tmp_path):
    unlabelled, one = files(tmp_path / "a", "x.mp4"), files(tmp_path / "b", "wave/x.mp4")
    with pytest.raises(DataError, match="no video has a label"):
        datasets.labelled(datasets.read(unlabelled))
    with pytest.raises(DataError, match="only one class, 'wave'"):
        datasets.labelled(datasets.read(one))
    union = datasets.read_many([unlabelled, files(tmp_path / "c", "wave/x.mp4", "clap/y.mp4")])
    assert len(datasets.labelled(union).examples) == 2


@pytest.mark.parametrize(
    ("name", "count", "classes"),
    [("egogestar", 158, 10), ("fights", 240, 2), ("ucf101_20c", 198, 21), ("grid_s1", 800, 0)],
)
def test_real_tables_are_read_as_they_are(shared, name, count, classes):
    dataset = datasets.read(shared / "data" / name)
    assert len(dataset.examples) == count and len(dataset.classes) == classes
    assert all(Path(example.path).is_file() for example in dataset.examples)
    assert all(example.split for example in dataset.examples)
    assert dataset.may_flip == (name != "egogestar")
    if name == "grid_s1":
        assert dataset.examples[0].text == "bin blue at f two now"


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("okankop/annotation_UCF101/trainlist01.txt", ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "1")),
        ("okankop/annotation_UCF101/testlist01.txt", ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", None)),
        ("okankop/annotation_Jester/trainlist.txt", ("34870", "2")),
    ],
)
def test_real_lists_of_benchmarks(shared, name, first):
    path = shared / "data" / "annotations" / name
    dataset = datasets.read(path)
    assert len(dataset.examples) == sum(bool(line.strip()) for line in path.read_text().splitlines())
    assert (dataset.examples[0].id, dataset.examples[0].label) == first


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tables_of_named_columns_are_read_like_csv(kind, tmp_path):
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"path": "x/a b.mp4", "label": "wave", "start": 0.5, "end": 2, "group": None, "note": "as it is"},
        {"path": "c.mp4", "label": None, "start": None, "end": None, "group": "anna", "note": None},
        {"path": "c.mp4", "label": "clap", "start": None, "end": None, "group": "anna", "note": None},
    ]
    plain = tmp_path / "list.csv"
    plain.write_text("path,label,start,end,group\nx/a b.mp4,wave,0.5,2,\nc.mp4,,,,anna\nc.mp4,clap,,,anna\n")
    path = tmp_path / f"list.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows) + "\n\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found, expected = datasets.read(path), datasets.read(plain)
    assert [(e.label, e.start_seconds, e.end_seconds, e.group, e.path) for e in found.examples] == [
        (e.label, e.start_seconds, e.end_seconds, e.group, e.path) for e in expected.examples
    ]
    assert found.classes == expected.classes == ("clap", "wave")
    csv = tmp_path / "again.csv"
    csv.write_text(table.with_paths(path, {(example.path, None, None): Path(example.path).name for example in found.examples}))
    assert [e.label for e in datasets.read(csv).examples] == ["wave", None, "clap"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"path": "a.mp4"}\nno\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: wanted an object such as"),
        ("a.jsonl", b'{"name": "a.mp4"}\n', "columns name, but none called path"),
        ("a.jsonl", b"\n", "a.jsonl is empty"),
        ("a.parquet", b"PAR1 or so", "a.parquet is not a Parquet table"),
    ],
)
def test_damaged_tables_of_named_columns_are_named(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said):
        datasets.read(tmp_path / name)
