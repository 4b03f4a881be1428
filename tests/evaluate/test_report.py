"""report.json accumulates, report.html is one page that loads nothing from anywhere."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from tubelet.errors import CheckpointError
from tubelet.evaluate import _page, report
from tubelet.evaluate.baselines import chance, majority_class
from tubelet.show._sheet import to_png

CLASSES = ["a", "b & <i>c</i>"]


def result(name: str, weights: str, top1: float | None) -> dict:
    return {"name": name, "weights": weights, "top1": top1, "top5": 1.0, "mean_class_accuracy": top1, "videos": 10}


class Check(HTMLParser):
    """Collects headings and every address, and complains about tags that are left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "srcset", "href", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def checked(path) -> Check:
    page = Check()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture
def full(tmp_path):
    """A folder with everything a run leaves behind."""
    lines = [{"step": step, "loss": 1 / (step + 1), "lr": 0.1 - step / 1000} for step in range(50)]
    lines += [{"step": 49, "val_loss": 0.5}, {"step": 50, "val_loss": 0.4, "val_top1": 0.3}]
    log = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "log.jsonl").write_text(log + '\n{"step": 51, "lo', encoding="utf-8")
    (tmp_path / "config.yaml").write_text("out: <script>\n", encoding="utf-8")
    (tmp_path / "environment.json").write_text('{"torch": "2.13.0", "data": {"videos": 3}}', encoding="utf-8")
    picture = to_png(np.zeros((20, 30, 3), dtype=np.uint8))
    names = ["masks.png", "mistakes.png", "attention.png", "reconstruction_0.png"]
    names += [f"{name}.{theme}.png" for name in ("confusion", "embedding_map") for theme in ("light", "dark")]
    report.update(
        tmp_path,
        {name: picture for name in names} | {"reconstruction.gif": b"GIF89a"},
        name="a <run>",
        model={"name": "videomae_tiny", "params": 5_000_000, "frames": 8, "size": 48},
        results=[result("fine-tuned", "pretrained", 0.8), result("k-NN", "pretrained", 0.9), chance(2)],
        classes=CLASSES,
        data={"asked": 12, "evaluated": 10, "clips": 2, "crops": 1},
        confusion=[[4, 1], [1, 4]],
        per_class=[
            {"class": "a", "videos": 5, "correct": 4, "accuracy": 0.8, "mistaken_for": CLASSES[1], "mistaken_times": 1},
            {
                "class": CLASSES[1],
                "videos": 0,
                "correct": 0,
                "accuracy": None,
                "mistaken_for": None,
                "mistaken_times": 0,
            },
        ],
        mistakes=[{"id": "x", "true": "a", "said": CLASSES[1], "probability": 0.9, "true_probability": 0.1}],
        missing=[{"id": "gone.mp4", "reason": "no video stream"}, {"id": "half.mp4", "reason": "truncated"}],
        reconstructions=[
            {"id": "x", "mask": "tube", "ratio": 0.9, "psnr": {"honest": float("inf"), "neighbours": 12.0}},
        ],
        timing={"evaluation (seconds)": 1.5},
    )
    return tmp_path


def test_the_page_shows_every_section_and_loads_nothing(full):
    page = checked(full / "report.html")
    assert page.headings == [
        "Results", "Learning curves", "Reconstructions", "Masks", "Confusion matrix", "Classes one by one",
        "Embedding map", "Worst mistakes", "Attention", "Missing videos", "Timing", "Settings and environment",
    ]  # fmt: skip
    assert all(address.startswith(("data:", "#")) for address in page.addresses) and len(page.addresses) > 20
    text = (full / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "<script" not in text and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text


def test_names_are_escaped_and_missing_videos_are_named_and_counted(full):
    text = (full / "report.html").read_text(encoding="utf-8")
    assert "a &lt;run&gt;" in text and "b &amp; &lt;i&gt;c&lt;/i&gt;" in text and "<i>c</i>" not in text
    assert "2 of 12 videos could not be read" in text and "gone.mp4" in text and "truncated" in text
    assert "With 2 classes, top-5 is top-2" in text


def test_an_empty_folder_gives_a_page_without_sections(tmp_path):
    assert checked(report.render(tmp_path)).headings == []


def test_results_accumulate_and_a_row_is_replaced_by_its_name_and_weights(full):
    report.update(full, results=[result("fine-tuned", "random initialisation", 0.3), result("fine-tuned", "pretrained", 0.85)])
    report.update(full, results=[result("single frame", "single_frame", 0.5), result("majority class", "majority class", 0.6)])
    rows = report.load(full)["results"]
    assert [(row["name"], row["weights"], row["top1"]) for row in rows] == [
        ("fine-tuned", "pretrained", 0.85),
        ("k-NN", "pretrained", 0.9),
        ("fine-tuned", "random initialisation", 0.3),
        ("single frame", "single_frame", 0.5),
        ("majority class", "majority class", 0.6),
        ("chance", "chance", 0.5),
    ]
    assert report.load(full)["missing"][0]["id"] == "gone.mp4", "sections that are not given stay"


def test_rows_about_other_videos_go_and_rows_about_the_same_stay(tmp_path):
    about = [result(name, name, 0.5) | {"data": "old"} for name in ("fine-tuned", "k-NN")]
    report.update(tmp_path, results=about)
    report.update(tmp_path, results=[result("single frame", "single frame", 0.4) | {"data": "old"}])
    report.update(tmp_path, name="no results, no change")
    assert len(report.load(tmp_path)["results"]) == 3
    report.update(tmp_path, results=[result("k-NN", "k-NN", 0.6) | {"data": "new"}])
    assert [(row["name"], row["top1"]) for row in report.load(tmp_path)["results"]] == [("k-NN", 0.6)]


def test_a_baseline_that_was_not_trained_says_so(tmp_path):
    row = result("fine-tuned", "random initialisation", None) | {"note": "not trained (--no-baseline)"}
    page = report.update(tmp_path, results=[result("fine-tuned", "pretrained", 0.8), row]).read_text(encoding="utf-8")
    assert "not trained (--no-baseline)" in page and "80.0 %" in page


def test_json_has_no_nan(full):
    text = (full / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["reconstructions"][0]["psnr"]["honest"] is None


def test_curves_come_from_the_log_and_the_half_line_of_a_crash_is_left_out(full):
    log = report.read_log(full)
    assert len(log) == 52
    panels = _page.log_panels(log)
    assert list(panels) == ["Loss", "Learning rate"], "one value makes no curve"
    assert panels["Loss"]["validation"] == ([49.0, 50.0], [0.5, 0.4])
    assert panels["Loss"]["training"][1][3] == 0.25


def test_a_damaged_report_and_an_unwritable_folder_say_what_to_do(full, tmp_path_factory):
    (full / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"report\.json is damaged .*delete it"):
        report.load(full)
    file = tmp_path_factory.mktemp("x") / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        report.update(file / "run", name="x")


def test_nothing_temporary_is_left(full):
    assert not [path for path in full.rglob("*") if re.search(r"\.tmp$", path.name)]


def test_majority_and_chance_are_what_they_say():
    shares = majority_class(torch.tensor([2, 2, 1, 2]), 4)
    assert shares.tolist() == [0, 0.25, 0.75, 0]
    assert chance(3)["top1"] == pytest.approx(1 / 3) and chance(3)["top5"] == 1 and chance(10)["top5"] == 0.5
