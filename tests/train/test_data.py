"""What is trained on and what is held out, from the configuration; nothing stands on both sides."""

from collections import Counter
from pathlib import Path

import pytest

from tubelet.errors import DataError
from tubelet.train import data
from tubelet.train.config import DataConfig


def files(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{root}{name}")
    return str(root)


def table(root: Path, text: str) -> str:
    files(root, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    (root / "labels.csv").write_text(text)
    return str(root)


@pytest.mark.parametrize("needs_labels", [True, False])
def test_a_file_on_both_sides_is_an_error(tmp_path, needs_labels):
    whole = files(tmp_path / "all", "a/1.mp4", "a/2.mp4", "b/3.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "all" / "a")
    files(tmp_path / "val", "b/9.mp4")
    (tmp_path / "val" / "a").symlink_to(tmp_path / "all" / "a")
    for val, count in ((whole, "3 of 3"), (str(tmp_path / "val"), "2 of 3")):
        with pytest.raises(DataError, match=f"{count} validation videos are trained on too"):
            data.load(DataConfig(train=(whole,), val=(val,)), needs_labels)


def test_parts_of_one_file_may_be_on_both_sides_where_they_do_not_overlap(tmp_path, capsys):
    head = "path,label,start,end,split\na.mp4,x,0,2,train\nb.mp4,y,0,2,train\n"
    apart = table(tmp_path / "apart", head + "a.mp4,x,2,4,val\n")
    train, val = data.load(DataConfig(train=(apart,)), True)
    assert (len(train.examples), len(val.examples)) == (2, 1)
    assert "on both sides, so validation will look too good: /" in capsys.readouterr().err
    with pytest.raises(DataError, match="1 of 1 validation videos are trained on too"):
        data.load(DataConfig(train=(table(tmp_path / "over", head + "a.mp4,x,1.9,,val\n"),)), True)


def test_shared_groups_are_said(tmp_path, capsys):
    rows = "path,label,group,split\na.mp4,x,anna,train\nb.mp4,y,ben,train\nc.mp4,x,anna,val\n"
    data.load(DataConfig(train=(table(tmp_path, rows),)), True)
    assert "will look too good: group anna (in all 1 " in capsys.readouterr().err


def test_validation_may_hold_one_class_and_training_may_not(tmp_path):
    both, one = files(tmp_path / "both", "a/1.mp4", "b/2.mp4"), files(tmp_path / "one", "b/3.mp4")
    train, val = data.load(DataConfig(train=(both,), val=(one,)), True)
    assert train.classes == val.classes == ("a", "b") and [e.label for e in val.examples] == ["b"]
    with pytest.raises(DataError, match="only one class, 'b'"):
        data.load(DataConfig(train=(one,), val=(both,)), True)


@pytest.mark.parametrize("apart", [True, False])
def test_classes_that_training_never_sees_are_an_error_or_left_out_and_said(tmp_path, capsys, apart):
    if apart:
        train, val = files(tmp_path / "t", "a/1.mp4", "b/2.mp4"), files(tmp_path / "v", "a/3.mp4", "c/4.mp4")
        config = DataConfig(train=(train,), val=(val,))
    else:
        config = DataConfig(train=(files(tmp_path, "train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4", "val/c/4.mp4"),))
    with pytest.raises(DataError, match=r"the label 'c', which training never saw.*--data\.unseen-labels drop"):
        data.load(config, True)
    dropped = DataConfig(**{**vars(config), "unseen_labels": "drop"})
    train_set, val_set = data.load(dropped, True)
    assert train_set.classes == val_set.classes == ("a", "b") and [e.label for e in val_set.examples] == ["a"]
    assert "training never sees ('c'), so left out: 1 video" in capsys.readouterr().err


def test_a_union_says_how_each_part_was_cut(tmp_path, capsys):
    one = files(tmp_path / "one", "train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4")
    two = table(tmp_path / "two", "path,label,split\na.mp4,a,fold0\nb.mp4,b,fold1\nc.mp4,a,fold1\n")
    _, val = data.load(DataConfig(train=(one, two)), True)
    assert [example.id for example in val.examples] == ["one/val/a/3.mp4", "two/a.mp4"]
    assert "trained on and held out: one 2 and 1, two 2 and 1 videos" in capsys.readouterr().err


def test_videos_without_a_label_are_named(tmp_path, capsys):
    data.load(DataConfig(train=(files(tmp_path, "a/1.mp4", "a/2.mp4", "b/3.mp4", "b/4.mp4", "stray.mp4"),)), True)
    assert "without a label, so left out: 1 video (stray.mp4)" in capsys.readouterr().err


def test_a_limit_keeps_every_class_and_its_share(tmp_path):
    names = [f"train/{'rare' if i < 3 else 'often'}/{i}.mp4" for i in range(33)] + ["val/rare/x.mp4"]
    whole = files(tmp_path, *names)
    for limit, often in ((2, 1), (4, 3), (11, 10), (22, 20)):
        train, _ = data.load(DataConfig(train=(whole,), limit=limit), True)
        counts = Counter(example.label for example in train.examples)
        assert counts.total() == limit and abs(counts["often"] - often) <= 1 and counts["rare"] >= 1
    with pytest.raises(DataError, match="data.limit is 1: it must be at least one video of each of 2 classes"):
        data.load(DataConfig(train=(whole,), limit=1), True)
    assert len(data.load(DataConfig(train=(whole,), limit=1), False)[0].examples) == 1
