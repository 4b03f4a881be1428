"""The benchmarks measure what they say, and their page is what their figures give. No speed is tested here."""

import importlib
import json
import math
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.video.decode import probe

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if "argparse" in path.read_text(encoding="utf-8"))


def benchmark(name: str) -> ModuleType:
    """A file of benchmarks/, imported as its neighbours import it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


measure, page, growth, peers = (benchmark(name) for name in ("measure", "page", "growth", "peers"))


def test_ways_take_turns_and_the_first_round_is_not_kept() -> None:
    calls: list[str] = []

    def way(name: str) -> int:
        calls.append(name)
        return len(calls)

    results = measure.in_turn({"a": lambda: way("a"), "b": lambda: way("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert results == {"a": [3, 5, 7], "b": [4, 6, 8]}


def test_seconds_are_those_of_the_clock_between_start_and_end_of_each_task() -> None:
    ticks = count()
    tasks = {"short": lambda: None, "long": lambda: [next(ticks) for _ in range(4)]}
    assert measure.interleaved(tasks, 2, ticks.__next__) == {"short": [1, 1], "long": [5, 5]}


def test_ways_in_processes_of_their_own_take_turns_too(tmp_path: Path) -> None:
    code = """
import measure, os, sys
def way(name):
    def task():
        with open(sys.argv[1], "a") as file:
            print(name, os.getpid(), file=file)
    return task
seconds = measure.in_processes({"a": lambda: way("a"), "b": lambda: way("b")}, rounds=2)
assert [(name, len(one)) for name, one in seconds.items()] == [("a", 2), ("b", 2)] and min(map(min, seconds.values())) >= 0
try:
    measure.in_processes({"a": lambda: way("a"), "broken": lambda: 1 / 0}, rounds=1)
except RuntimeError as error:
    print(os.getpid(), error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "seen")]  # a test process may have threads
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True)
    own, _, said = done.stdout.partition(" ")
    assert said == "a measured process ended without an answer: its error is above\n"
    calls = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert [name for name, _ in calls] == ["a", "b"] * 3 + ["a"]
    pids = [pid for _, pid in calls]
    assert pids[:6] == [pids[0], pids[1]] * 3 and len({*pids, own}) == 4
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_ratios_are_of_the_same_round() -> None:
    assert measure.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert measure.spread([2.0, 3.0, 1.5]) == "1.50-3.00"


def test_waiting_is_the_share_of_the_second_half() -> None:
    turns = measure.Turns()
    turns.asked, turns.came = [0.0, 2.0, 4.0, 6.0, 8.0], [1.9, 3.9, 5.0, 6.0]
    assert turns.waiting_share == (1 + 0) / (8 - 4)
    turns = measure.Turns()
    assert list(turns.of(iter("abcd"))) == list("abcd")
    assert len(turns.came) == 4 and turns.seconds >= 0 and 0 <= turns.waiting_share <= 1


@given(
    power=st.floats(-3, 3),
    scale=st.floats(1e-3, 1e3),
    x=st.lists(st.integers(1, 10**6), min_size=2, max_size=9, unique=True),
)
def test_exponent_of_a_power_is_its_power(power: float, scale: float, x: list[int]) -> None:
    if max(x) / min(x) < 1.01:
        return
    assert measure.exponent(x, [scale * value**power for value in x]) == pytest.approx(power, abs=1e-6)


def test_curves_are_judged_over_all_points_and_at_their_end() -> None:
    """Memory of 50 that is held anyway, plus 1 a unit: no power over the whole curve, nearly linear at the end."""
    rows = [{"curve": "a: b", "x": x, "unit": "clips", "ms": 3.0 * x**2, "peak MB": 50.0 + x} for x in (1, 10, 1000, 100000)]
    rows += [{"curve": "a: c", "x": x, "unit": "clips", "ms": 7.0, "peak MB": 1.0} for x in (2, 4)]
    first, second = growth.exponents(rows)
    assert first["curve"] == "a: b" and first["x"] == "1-100,000 clips"
    assert first["time, p"] == pytest.approx(2) and first["time, p at the end"] == pytest.approx(2)
    assert first["memory, p at the end"] == pytest.approx(math.log(100050 / 1050) / math.log(100))
    assert first["memory, p"] < first["memory, p at the end"]
    assert second["time, p"] == pytest.approx(0) and second["memory, p"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.01234, "0.0123"), (1.0, "1.00"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346"), (7, "7"),
     (100000, "100,000"), (None, ""), ("ours", "ours"), (-0.5, "-0.500"), (9.999, "10.00")],
)  # fmt: skip
def test_numbers_have_three_digits_that_matter(value: object, text: str) -> None:
    assert measure.number(value) == text


def test_a_table_has_every_column_of_any_row() -> None:
    text = measure.table([{"way": "ours", "ms": 3.0}, {"way": "a|b", "note": "not run"}])
    assert text.splitlines() == [
        "| way | ms | note |", "| --- | --- | --- |", "| ours | 3.00 |  |", "| a/b |  | not run |",
    ]  # fmt: skip


def test_what_is_written_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"way": "ours", "ms": 3.25}]
    measure.write(tmp_path / "new" / "load.json", "load", rows)
    kept = json.loads((tmp_path / "new" / "load.json").read_text(encoding="utf-8"))
    assert kept["name"] == "load" and kept["rows"] == rows
    assert kept["versions"]["torch"] == torch.__version__ and "cores" in kept["machine"]
    assert "| ours | 3.25 |" in capsys.readouterr().out


def test_a_peer_that_is_not_there_says_so_and_how_to_get_it() -> None:
    assert measure.missing("json", "pip install json") == ""
    reason = measure.missing("no_such_peer", "pip install peer")
    assert "not run: no_such_peer cannot be imported" in reason and reason.endswith("pip install peer")


def test_a_source_of_320_lines_is_the_same_video_with_fewer(tmp_path: Path) -> None:
    measure.make_video(tmp_path / "large.mp4", frames=12, height=96, width=150)
    info = probe(benchmark("prepare").scaled(tmp_path / "large.mp4", tmp_path / "small.mp4", 32))
    assert (info.height, info.width, info.frame_count) == (32, 50, 12)


def test_memory_is_that_of_the_task_and_not_of_what_came_before_it() -> None:
    """In a process of its own, because a test process may have threads, which do not go well with fork."""
    code = """
import measure, numpy
held = [numpy.ones(40_000_000, numpy.uint8)]
def task(): return float(numpy.ones(60_000_000, numpy.uint8)[-1])
for first in (lambda: None, task):
    value, peak = measure.alone(task, first)
    assert value == 1
    print(peak)
try:
    measure.alone(lambda: 1 / 0)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True)
    alone, after_itself, error = done.stdout.splitlines()
    assert 55_000_000 < int(alone) < 75_000_000
    assert int(after_itself) < 10_000_000
    assert "without an answer" in error and "ZeroDivisionError" in done.stderr


def test_peers_take_the_frames_of_a_window(tmp_path: Path) -> None:
    """Frame-exact against a full decode; the recipe's crop keeps the colour of a grey video, normalised."""
    from tubelet import ClipSpec
    from tubelet.video.decode import decode
    from tubelet.video.write import write_video

    path = str(measure.make_video(tmp_path / "video.mp4", 40, 48, 64, gop_frames=12))
    spec = ClipSpec(frames=4, stride_frames=3, size=32, sampling="stride")

    def whole(frames: list[av.VideoFrame], spec: ClipSpec) -> torch.Tensor:
        return torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in frames])).permute(0, 3, 1, 2)

    clip, video = peers.Clips([path], spec, whole)[0], decode(path).frames
    differences = [(clip.int() - video[start : start + 12 : 3].int()).abs().float().mean() for start in range(29)]
    # A decoder's own conversion to RGB may round differently, a wrong frame is another picture.
    assert min(differences) < 2 and sorted(differences)[1] > 5

    grey = tmp_path / "grey.mp4"
    write_video(grey, torch.full((20, 3, 48, 64), 128, dtype=torch.uint8))
    cut = peers.Clips([str(grey)], spec, peers.recipe_cut)[0]
    wanted = (128 / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    assert cut.shape == (4, 3, 32, 32) and cut.dtype == torch.float32
    assert torch.allclose(cut, wanted.view(1, 3, 1, 1).expand_as(cut), atol=0.05)


@pytest.mark.parametrize("kind", ["pretraining", "dual masking", "inference"])
def test_steps_beside_each_other_start_equal_and_give_rows_for_the_page(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the other model")
    from tubelet import ClipSpec

    step = benchmark("step")
    case = (kind, "tiny", ClipSpec(frames=4, size=64), 1, torch.device("cpu"), "fp32")
    rows = step.compare(case, 1, {})
    others = {"all reconstructed"} if kind == "dual masking" else {"transformers", "recipe"}
    assert {row["beside"] for row in rows} == others
    assert all(row["ratio"] == pytest.approx(row["other, ms"] / row["ours, ms"]) for row in rows)
    if kind != "dual masking":
        assert all(float(row["difference"]) < 1e-5 for row in rows)
    measure.write(tmp_path / "pretrain.json", kind, rows)
    assert set(page.pages(tmp_path)) == {"index.md", "pretrain.svg"}


def test_steps_in_processes_of_their_own_are_a_row(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the other model")
    words = "--steps pretraining --sizes tiny --frames 4 --pixels 64 --rounds 1 --processes --no-memory"
    command = [sys.executable, "step.py", *words.split(), "--json", str(tmp_path / "pretrain.json")]
    subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, check=True)
    rows = json.loads((tmp_path / "pretrain.json").read_text())["rows"]
    assert [row["beside"] for row in rows] == [
        "transformers",
        "recipe",
        "transformers, a process each",
        "recipe, a process each",
    ]
    assert all(row["ratio"] == pytest.approx(row["other, ms"] / row["ours, ms"]) for row in rows)


def test_inference_in_bf16_stands_beside_both_ways_of_theirs(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the other model")
    from tubelet import ClipSpec

    rows = benchmark("step").compare(("inference", "tiny", ClipSpec(frames=4, size=64), 1, torch.device("cpu"), "bf16"), 1, {})
    assert {row["beside"] for row in rows} == {"transformers", "transformers, bf16 weights", "recipe"}
    assert all(float(row["difference"]) < 0.03 for row in rows)
    measure.write(tmp_path / "infer.json", "inference", rows)
    assert set(page.pages(tmp_path)) == {"index.md", "infer.svg"}


def on_gpu(folder: Path, *words: str) -> list[dict[str, float | str]]:
    """The rows of gpu.py."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words, "--json", str(folder / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "gpu.json").read_text())["rows"]


def test_what_a_gpu_is_measured_by_runs_without_one(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the other model")
    own, other, files = on_gpu(tmp_path, "--quick", "--device", "cpu")
    assert (own["way"], other["way"], files["way"]) == ("ours, eager", "transformers", "from files, 1 workers")
    for row in (own, other):
        assert row["clips/s"] > 0 and row["MFU %"] > 0 and row["attention %"] > 0 and row["products %"] > 0
        assert row["attention %"] + row["products %"] + row["other %"] == pytest.approx(100)
    assert own["MFU %"] / other["MFU %"] == pytest.approx(own["clips/s"] / other["clips/s"])
    assert files["clips/s"] > 0 and 0 <= files["waiting %"] <= 100
    assert set(page.pages(tmp_path)) == {"index.md", "gpu.svg"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_page_says_what_is_not_measured(tmp_path: Path) -> None:
    rows = on_gpu(tmp_path)
    assert [row["model"] for row in rows] == ["ViT small", "ViT base", "ViT large"]
    assert all("not run: no GPU. So these are not measured" in row["note"] for row in rows)
    made = page.pages(tmp_path)
    assert set(made) == {"index.md"} and "not run: no GPU" in made["index.md"]


def test_every_family_is_measured_and_equal_to_its_peer(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the other models")
    from tubelet import models
    from tubelet.records import ClipSpec

    families = benchmark("families")
    known = models.variants()
    assert {known[variant] for variant in families.cases()} == set(known.values())
    assert set(families.cases(["videomae"])) == {"videomae_small", "videomae_base"}
    sizes = {
        "videomae": {"width": 24, "depth": 1, "heads": 2, "eps": 1e-12, "norm_eps": 1e-5},
        "timesformer": {"width": 24, "depth": 1, "heads": 2},
        "vivit": {"width": 24, "depth": 1, "heads": 2},
        "vjepa2": {"width": 48, "depth": 1, "heads": 2},
    }
    assert set(sizes) == set(families.PEERS)
    rows = []
    for variant in [name for name in families.CASES if name in known and families.family_of(name) in sizes]:
        for kind in families.STEPS:
            case = families.Case(kind, variant, ClipSpec(frames=4, size=32), sizes[families.family_of(variant)], 1)
            rows.append(families.compare(case, 1, False, ""))
            assert float(rows[-1]["difference"]) < 1e-5, rows[-1]
            assert rows[-1]["ratio"] == pytest.approx(rows[-1]["ours, clips/s"] / rows[-1]["transformers, clips/s"])
    impossible = families.Case("inference", "videomae_small", ClipSpec(frames=4, size=33), {}, 1)
    assert "not run: " in families.compare(impossible, 1, False, "")["note"]
    measure.write(tmp_path / "families.json", "families", rows)
    assert set(page.pages(tmp_path)) == {"index.md", "families.svg"}


def figures(folder: Path, times: float) -> dict[str, str]:
    """The page of one benchmark with one peer that could not be run."""
    rows = [
        {"videos": "320p", "way": "recipe", "ms": 80.0, "times the recipe": 1.0, "range": "1.00-1.00"},
        {"videos": "320p", "way": "ours", "ms": 80.0 / times, "times the recipe": times, "range": f"{times}-{times + 1}"},
        {"videos": "320p", "way": "peer", "note": "not run: no_such_peer cannot be imported"},
    ]
    measure.write(folder / "load.json", "load", rows)
    return page.pages(folder)


def test_the_page_shows_every_row_and_follows_its_figures(tmp_path: Path) -> None:
    first, second = figures(tmp_path, 2.5), figures(tmp_path, 4.5)
    assert set(first) == set(second) == {"index.md", "load.svg"}
    assert "| 320p | ours | 32.0 | 2.50 | 2.5-3.5 |" in first["index.md"]
    assert "not run: no_such_peer" in first["index.md"] and "(load.svg)" in first["index.md"]
    assert first["load.svg"] != second["load.svg"]
    assert page.pages(tmp_path) == second, "the same figures must give the same page"


def test_the_page_is_what_the_figures_give() -> None:
    folder = ROOT / "docs" / "benchmarks"
    made = page.pages(folder)
    for name, text in made.items():
        there = folder / name
        assert there.exists() and there.read_text(encoding="utf-8") == text, f"{there} is stale: run benchmarks/page.py"
    assert {path.name for path in folder.glob("*.svg")} == set(made) - {"index.md"}
    assert {path.stem for path in folder.glob("*.json")} <= set(page.SECTIONS)


def test_a_file_of_other_figures_is_named(tmp_path: Path) -> None:
    (tmp_path / "load.json").write_text('{"milliseconds": {}}')
    with pytest.raises(SystemExit, match=r"load\.json has no rows"):
        page.pages(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_says_what_it_does(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout and len(done.stdout) > 300
