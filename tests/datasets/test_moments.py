"""Annotations of moments and questions, in the formats' own words, cut down to a few rows."""

import json

import pytest

from tubelet import datasets
from tubelet.datasets import activitynet_captions, charades_sta, didemo, egoschema, nextqa, qvhighlights
from tubelet.errors import DataError

ACTIVITYNET = {
    "v_uqiMw7tQ1Cc": {
        "duration": 55.15,
        "timestamps": [[0.28, 55.15], [13.79, 56.0], [9.0, 8.0]],
        "sentences": ["A tutorial is given.", "  The coach helps the\n guy.", "Backwards."],
    },
    "v_2": {"duration": 10, "timestamps": [[0, 5]], "sentences": ["Left."]},
}
TACOS = {"s1-d1.avi": {"timestamps": [[224, 358]], "sentences": ["He took an egg"], "fps": 29.4, "num_frames": 5660}}
QV = [
    {"qid": 7, "query": "A cook", "duration": 150, "vid": "a_0.0_150.0", "relevant_windows": [[82, 150], [4, 10]]},
    {"qid": 8, "query": "A boat", "duration": 142, "vid": "b_0.0_142.0"},
]
DIDEMO = [
    {
        "num_segments": 6,
        "description": "the baby",
        "times": [[1, 1], [0, 2], [1, 1]],
        "video": "3@N00_1_4.3gp",
        "annotation_id": 5,
    }
]
NEXTQA = (
    "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    "40,369,640,480,how do they play,2,6,CH,roll,tap,strum,hit,pat\n"
)


def test_activitynet_captions_and_tacos(tmp_path):
    path = tmp_path / "val_1.json"
    path.write_text(json.dumps(ACTIVITYNET))
    asked = datasets.queries(path)
    assert [(one.id, one.spans, one.duration, one.split) for one in asked] == [
        ("v_uqiMw7tQ1Cc/0", ((0.28, 55.15),), 55.15, "val"),
        ("v_uqiMw7tQ1Cc/1", ((13.79, 55.15),), 55.15, "val"),  # ends with the video
        ("v_uqiMw7tQ1Cc/2", (), 55.15, "val"),  # nobody knows what was meant
        ("v_2/0", ((0.0, 5.0),), 10.0, "val"),
    ]
    assert asked[1].text == "The coach helps the guy."
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v_2.mkv").touch()
    dataset = datasets.read(path)
    assert [one.id for one in dataset.examples][-1] == "v_2@0-5" and not dataset.may_flip
    assert dataset.examples[-1].path == str(tmp_path / "videos" / "v_2.mkv")
    assert dataset.examples[0].path == str(tmp_path / "v_uqiMw7tQ1Cc.mp4")
    tacos = tmp_path / "train.json"
    tacos.write_text(json.dumps(TACOS))
    assert datasets.queries(tacos)[0].spans == ((pytest.approx(224 / 29.4), pytest.approx(358 / 29.4)),)
    assert datasets.read(tacos).examples[0].path == str(tmp_path / "s1-d1.avi")


def test_charades_sta_with_and_without_durations(tmp_path):
    path = tmp_path / "charades_sta_test.txt"
    path.write_text("3MSZA 24.3 30.4##person turn a light on.\nAO8RW 8.0 7.0##person eats.\n3MSZA 24.3 30.4##again\n")
    assert [one.spans for one in datasets.queries(path)] == [((24.3, 30.4),), (), ((24.3, 30.4),)]
    assert [one.id for one in datasets.read(path).examples] == ["3MSZA@24.3-30.4", "AO8RW", "3MSZA@24.3-30.4#2"]
    (tmp_path / "Charades_v1_test.csv").write_text("id,subject,length\n3MSZA,x,30.0\n")
    first = datasets.queries(path)[0]
    assert (first.spans, first.duration, first.split) == (((24.3, 30.0),), 30.0, "test")
    (tmp_path / "Charades_v1_test.csv").unlink()
    (tmp_path / "charades.json").write_text('{"3MSZA": {"duration": 29.5}}')
    assert datasets.queries(path)[0].spans == ((24.3, 29.5),)


def test_qvhighlights_has_several_windows_or_none(tmp_path):
    path = tmp_path / "highlight_val_release.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QV))
    found = datasets.queries(path)
    assert [(one.id, one.spans, one.duration) for one in found] == [("7", ((82, 150), (4, 10)), 150), ("8", (), 142)]
    assert [one.id for one in datasets.read(path).examples] == ["a_0.0_150.0@82-150", "a_0.0_150.0@4-10", "b_0.0_142.0"]


def test_didemo_begins_with_what_most_people_marked(tmp_path):
    path = tmp_path / "val_data.json"
    path.write_text(json.dumps(DIDEMO))
    assert datasets.queries(path)[0].spans == ((5, 10), (0, 15))
    assert [one.id for one in datasets.read(path).examples] == ["3@N00_1_4.3gp@5-10"]


def test_egoschema_with_what_is_there_of_it(tmp_path):
    (tmp_path / "subset_answers.json").write_text('{"u1": 3}')
    assert datasets.questions(tmp_path)[0].choices == () and datasets.questions(tmp_path)[0].answer == 3
    rows = [{"q_uid": uid, "question": "What?", **{f"option {i}": f"choice {i}" for i in range(5)}} for uid in ("u1", "u2")]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    (tmp_path / "uid_to_ego4d.json").write_text('{"u1": {"video_uid": "v", "starting_sec": 240, "ending_sec": 420}}')
    both = datasets.questions(tmp_path)
    assert [(one.id, one.text, one.choices[4], one.answer) for one in both] == [
        ("u1", "What?", "choice 4", 3),
        ("u2", "What?", "choice 4", None),
    ]
    assert [one.id for one in datasets.questions(tmp_path / "subset_answers.json")] == ["u1"]
    assert egoschema.sources(tmp_path) == {"u1": ("v", 240.0, 420.0)}
    assert [one.text for one in datasets.read(tmp_path).examples] == ["What?", "What?"]
    (tmp_path / "subset_answers.json").write_text('{"u1": 5}')
    with pytest.raises(DataError, match="u1: the answer is 5, wanted 0 to 4"):
        datasets.questions(tmp_path)


def test_nextqa(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text(NEXTQA)
    (one,) = datasets.questions(path)
    assert (one.id, one.video, one.answer, one.choices) == ("40/6", "40", 2, ("roll", "tap", "strum", "hit", "pat"))
    assert datasets.read(path).examples[0].text == "how do they play"


def test_msrvtt_is_a_table(tmp_path):
    (tmp_path / "video9770.mp4").touch()
    path = tmp_path / "MSRVTT_JSFUSION_test.csv"
    path.write_text("key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person\n")
    (one,) = datasets.read(path).examples
    assert (one.text, one.path) == ("a person", str(tmp_path / "video9770.mp4"))


@pytest.mark.parametrize(
    ("module", "name", "text", "message"),
    [
        (charades_sta, "a.txt", "A 1 2##x\nB 1##y\n", "a.txt, line 2: got 'B 1##y', wanted `VIDEO START END##sentence`"),
        (charades_sta, "a.txt", "A 1 2##x\nB one 2##y\n", "line 2: the moment 'one' to '2': wanted two times in seconds"),
        (qvhighlights, "a.jsonl", '{"vid": 1, "query": ""}\n', "line 1: wanted a JSON object with qid, vid, query and duration"),
        (activitynet_captions, "a.json", "[1]", "wanted {\"VIDEO\": {\"duration\", \"timestamps\", \"sentences\"}}, got a list"),
        (activitynet_captions, "a.json", '{"v": {"timestamps": [[0, 1]], "sentences": []}}', "v: wanted `timestamps` in pairs and"),
        (activitynet_captions, "a.json", '{"v": 5}', "a.json, v: wanted `timestamps` in pairs"),
        (activitynet_captions, "a.json", '{"v": {"timestamps": [["a", 2]], "sentences": ["x"]}}', "a.json, v: wanted `timestamps`"),
        (activitynet_captions, "a.json", '{"v": {"timestamps": [[1, 2, 3]], "sentences": ["x"]}}', "v: wanted `timestamps` in"),
        (activitynet_captions, "a.json", '{"v": {"timestamps": [1], "sentences": ["x"]}}', "v: wanted `timestamps` in pairs"),
        (activitynet_captions, "a.json", '{"v": {"timestamps": [[0, 1]], "sentences": [5]}}', "TypeError: 5 is no sentence"),
        (activitynet_captions, "a.json", '{"v": {"timestamps": [[0, 1]], "sentences": ["x"], "fps": 0}}', "a.json, v:"),
        (qvhighlights, "a.jsonl", '[1]\n', "a.jsonl, line 1: wanted a JSON object with qid"),
        (didemo, "a.json", '{"video": "x"}', "a.json: wanted a list of descriptions, got a dict"),
        (didemo, "a.json", '[{"video": "x"}]', "entry 0: wanted annotation_id, video, description, num_segments, times"),
        (didemo, "a.json", "{", "is not JSON"),
    ],
)  # fmt: skip
def test_broken_annotations_are_one_line(tmp_path, module, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        module.queries(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("read", "name", "text"),
    [
        (charades_sta.queries, "a.txt", "A 1 2##x\n" * 2000),
        (qvhighlights.queries, "a.jsonl", json.dumps(QV[0]) + "\n" + " \n" * 9000),
        (nextqa.questions, "a.csv", NEXTQA + NEXTQA.splitlines()[1] * 300),
        (activitynet_captions.queries, "a.json", json.dumps(ACTIVITYNET) + " " * 9000),
    ],
)
def test_bad_bytes_far_down_are_one_line(tmp_path, read, name, text):
    (tmp_path / name).write_bytes(text.encode() + b"\xff\xfe\n")
    with pytest.raises(DataError, match=rf"{name} .*can't decode byte 0xff") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("questions.json", "[5]", "questions.json, entry 0: wanted q_uid, question, option 0 .. option 4"),
        ("questions.json", '[{"question": "What?"}]', r"entry 0: .*KeyError: "),
        ("questions.json", '[{"q_uid": "u", "question": "What?", "option 0": "a"}]', r"entry 0: .*KeyError: 'option 1'"),
        ("subset_answers.json", '{"u": [1]}', r"subset_answers.json, u: the answer is \[1\], wanted 0 to 4"),
        ("uid_to_ego4d.json", '{"u": 5}', "uid_to_ego4d.json: wanted video_uid, starting_sec, ending_sec"),
        ("uid_to_ego4d.json", '{"u": {"video_uid": "v", "starting_sec": "x"}}', "uid_to_ego4d.json: wanted video_uid"),
    ],
)  # fmt: skip
def test_a_broken_egoschema_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        (egoschema.sources if name == "uid_to_ego4d.json" else egoschema.questions)(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("charades.json", '{"A": 5}'), ("charades.json", "[1]"), ("Charades_v1_test.csv", "id,length\nA,long\n"),
     ("Charades_v1_train.csv", "a,b\n1,2\n")],
)  # fmt: skip
def test_broken_durations_beside_charades_are_one_line(tmp_path, name, text):
    (tmp_path / "a.txt").write_text("A 1 2##x\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: wanted"):
        charades_sta.queries(tmp_path / "a.txt")


def test_a_broken_question_and_other_files_are_said(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text(NEXTQA.replace(",2,6,", ",9,6,"))
    with pytest.raises(DataError, match="line 2: wanted five choices a0 .. a4 and an answer from 0 to 4"):
        nextqa.questions(path)
    with pytest.raises(DataError, match="holds no moments of a known format"):
        datasets.queries(path)
    with pytest.raises(DataError, match="does not exist: give annotations of moments"):
        datasets.queries(tmp_path / "nowhere.json")


REAL = {
    "vslnet_charades_anet_tacos/data/dataset/activitynet/val_1.json": (17505, 17505, "val"),
    "vslnet_charades_anet_tacos/data/dataset/tacos/val.json": (4436, 4436, "val"),
    "vslnet_charades_anet_tacos/data/dataset/charades/charades_sta_test.txt": (3720, 3720, "test"),
    "charades_v1_csv/2D-TAN/data/Charades-STA/charades_sta_train.txt": (12408, 12404, "train"),
    "qvhighlights/data/highlight_val_release.jsonl": (1550, 2803, "val"),
    "qvhighlights/data/highlight_test_release.jsonl": (1542, 0, "test"),
    "didemo/data/test_data.json": (4021, None, "test"),
}


@pytest.mark.parametrize("name", REAL)
def test_the_published_annotations_as_they_are(shared, name):
    path = shared / "data" / "annotations" / name
    if not path.is_file():
        pytest.skip(f"no {name} in the shared folder beside the clone")
    count, spans, side = REAL[name]
    found = datasets.queries(path)
    assert len(found) == count and {one.split for one in found} == {side} and all(one.text for one in found)
    assert spans is None or sum(len(one.spans) for one in found) == spans
    assert all(0 <= a < b <= (one.duration or 1e9) for one in found for a, b in one.spans)
    assert len({one.id for one in found}) == count
    examples = datasets.read(path).examples
    assert len({one.id for one in examples}) == len(examples) >= count


def test_the_published_questions_as_they_are(shared):
    folder = shared / "data" / "annotations"
    if not folder.is_dir():
        pytest.skip("no published annotations in the shared folder beside the clone")
    for name, count in (("nextqa/dataset/nextqa/val.csv", 4996), ("egoschema", 500), ("nextqa/dataset/nextqa/test.csv", 8564)):
        found = datasets.questions(folder / name)
        assert len(found) == count == len({one.id for one in found}) and all(one.answer in range(5) for one in found)
    assert len(egoschema.sources(folder / "egoschema")) == 5031
    assert len(datasets.read(folder / "msvd_msrvtt_xpool/data/MSRVTT/MSRVTT_JSFUSION_test.csv").examples) == 1000
