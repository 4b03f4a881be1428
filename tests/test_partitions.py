"""Partitions: many processes and restarts give the table of one unbroken run, and no video is answered twice."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tubelet import datasets, feature_store, features, models, partitions
from tubelet.cli import main
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.predict import predict, predict_table
from tubelet.records import ClipSpec, Example
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)
SIZES = {"depth": 1, "patch": 8, "width": 48, "heads": 2, "decoder_width": 24, "decoder_heads": 2, "decoder_depth": 1}
EMBED = ("--clips", "2", "--partition-size", "4", "--workers", "0", "--out")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """models `plain` and `taught`."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models")
    taught = models.build("videomae_tiny", SPEC, ("a", "b", "c"), **SIZES)
    torch.nn.init.normal_(taught.head.weight)
    save(taught, place / "taught")
    save(models.build("videomae_tiny", SPEC, **SIZES), place / "plain")
    return place


@pytest.fixture(scope="module")
def data(motion_folder, tmp_path_factory) -> Path:
    """22 videos of which 2 are broken: 6 partitions of 4."""
    folder = tmp_path_factory.mktemp("data")
    videos = sorted(motion_folder.rglob("*.mp4"))
    for number in range(20):
        (folder / f"{number:02}.mp4").write_bytes(videos[number % len(videos)].read_bytes())
    (folder / "05 empty.mp4").write_bytes(b"")
    (folder / "17 text.mp4").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def unbroken(folders, data) -> pa.Table:
    """What one call of `embed` over all videos gives."""
    from tubelet.weights.load import load_model

    return feature_store.embed_table(load_model(folders / "plain"), datasets.read(data).examples, clips=2, workers=0)


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "tubelet", *map(str, words)]


def same(found: pa.Table, expected: pa.Table) -> None:
    """Equal but for the last bits of the vectors: videos share other batches in partitions."""
    assert found.drop_columns("vector") == expected.drop_columns("vector") and found.schema.metadata == expected.schema.metadata
    for ours, theirs in zip(found["vector"].to_pylist(), expected["vector"].to_pylist(), strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))


def check_whole(out: Path, expected: pa.Table) -> None:
    same(pq.read_table(out / "results"), expected)
    errors = pq.read_table(out / "errors")
    assert errors.column_names == ["id", "path", "reason"] and errors["id"].to_pylist() == ["05 empty.mp4", "17 text.mp4"]
    assert "the file is empty" in errors["reason"][0].as_py() and errors["path"][1].as_py().endswith("17 text.mp4")
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    parts = [f"part-{number:05d}.parquet" for number in range(6)]
    assert names == [*(f"errors/{name}" for name in parts), "manifest.json", *(f"results/{name}" for name in parts)]


def test_partitions_hold_every_video_once_in_order(folders, data, unbroken, tmp_path, capsys):
    assert main(["embed", str(folders / "plain"), str(data), *EMBED, str(tmp_path / "out"), "--engine", "local", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["partitions"], said["finished"], said["made"], said["rows"], said["missing"]) == (6, 6, 6, 20, 2)
    check_whole(tmp_path / "out", unbroken)
    rows = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out" / "results").iterdir())]
    assert rows == [4, 3, 4, 4, 3, 2]


@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_process_is_continued(folders, data, unbroken, tmp_path, after):
    """Killed for good as soon as some partitions are there; they keep their files, and the whole is that of one run."""
    for attempt in range(5):  # on a busy machine it may be over before it is killed
        out = tmp_path / f"out {attempt}"
        words = command("embed", folders / "plain", data, *EMBED, out, "--engine", "local", "--json")
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for _ in range(after):
            assert "partition" in process.stderr.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            break
    assert process.returncode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in (out / "results").glob("part-*.parquet")}
    assert len(before) >= after
    # What a process that was killed while writing leaves: drafts, and errors without results.
    number = len(before)
    if number < 6:
        (out / "results" / f".part-{number:05d}.parquet.1.tmp").write_bytes(b"PAR1")
        (out / "errors" / f"part-{number:05d}.parquet").write_bytes(b"PAR1")
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["made"] == 6 - len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was finished is not done again"
    check_whole(out, unbroken)


def test_two_processes_of_torchrun_give_the_table_of_one(folders, data, unbroken, tmp_path):
    out = tmp_path / "out"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tubelet"]
    words = [*start, "embed", folders / "plain", data, *EMBED, out, "--engine", "torchrun"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "partition " in line]
    by_rank = {
        rank: sorted(int(line.split("partition ")[1].split()[0]) for line in lines if f"rank {rank}:" in line)
        for rank in (0, 1)
    }
    assert by_rank == {0: [1, 3, 5], 1: [2, 4, 6]}
    check_whole(out, unbroken)


def test_ray_workers_give_the_table_of_one_process(folders, data, unbroken, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tubelet[ray]'")
    out = tmp_path / "out"
    words = [
        word
        for word in command("embed", folders / "plain", data, *EMBED, out, "--engine", "ray")
        if word not in ("-W", "error")
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    check_whole(out, unbroken)


FAULTS = """
import os, signal, sys
from functools import partial
from pathlib import Path
import ray
from tubelet import datasets, partitions
from tubelet.errors import CheckpointError, DataError
from tubelet.feature_store import embed_table
from tubelet.weights.load import load_model

model, data, out = sys.argv[1:]
ray.init(log_to_driver=False, include_dashboard=False, num_cpus=1)
for fault in ("once", "error", "always"):
    plan = partitions.begin(f"{out}/{fault}", datasets.read(data).examples, {}, 8)

    def answer(model, examples, *, on_missing):
        if examples == plan.part(1):
            with open(f"{out}/{fault}.tries", "a") as tries:
                tries.write("x")
            if fault == "always" or (fault == "once" and os.path.getsize(f"{out}/{fault}.tries") == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "error":
                raise CheckpointError("there is no room")
        return embed_table(model, examples, clips=1, workers=0, on_missing=on_missing)

    try:
        partitions.fill_with_ray(plan, partial(load_model, model), answer, False, lambda line: None)
        said = "done"
    except (CheckpointError, DataError) as error:
        said = f"{type(error).__name__}: {error}"
    print(fault, plan.todo(), os.path.getsize(f"{out}/{fault}.tries"), said.splitlines()[0], sep="|")
"""


def test_ray_workers_that_die_or_fail_cost_what_they_must(folders, data, tmp_path):
    """One that is killed is replaced and its partition made again; a partition that kills three ends the command in one line."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tubelet[ray]'")
    words = [sys.executable, "-c", FAULTS, folders / "plain", data, tmp_path]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    once, error, always = (line.split("|") for line in done.stdout.splitlines() if "|" in line)
    assert once == ["once", "[]", "2", "done"]
    assert error[0] == "error" and "1" in error[1] and error[2:] == ["1", "CheckpointError: there is no room"]
    assert always[0] == "always" and "1" in always[1] and always[2] == "3"
    assert always[3].startswith("DataError: the workers of Ray keep dying (") and "too little memory" in always[3]


LOST_MACHINE = """
import sys, threading, time
from functools import partial
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tubelet import datasets, partitions
from tubelet.feature_store import embed_table
from tubelet.weights.load import load_model

model, data, out = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
machine = cluster.add_node(num_cpus=1).node_id
ray.init(address=cluster.address, log_to_driver=False)
plan = partitions.begin(f"{out}/partitions", datasets.read(data).examples, {}, 4)

def answer(model, examples, *, on_missing):
    number = next(number for number in range(plan.partitions) if plan.part(number) == examples)
    with open(f"{out}/tries", "a") as tries:
        tries.write(f"{number} ")
    if ray.get_runtime_context().get_node_id() == machine:
        Path(f"{out}/stuck").write_text(str(number))
        time.sleep(600)
    while not Path(f"{out}/stuck").exists():  # the other worker may still load
        time.sleep(0.05)
    return embed_table(model, examples, clips=2, workers=0, on_missing=on_missing)

def lose():
    while not Path(f"{out}/stuck").exists() or len(plan.todo()) > 4:
        time.sleep(0.05)
    cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id == machine), allow_graceful=False)

threading.Thread(target=lose, daemon=True).start()
partitions.fill_with_ray(plan, partial(load_model, model), answer, False, lambda line: None)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_machine_that_leaves_a_ray_cluster_costs_the_partition_it_was_at(folders, data, unbroken, tmp_path):
    """One of two: the other makes the rest, though the lost one's processors never come back."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tubelet[ray]'")
    words = [sys.executable, "-c", LOST_MACHINE, folders / "plain", data, tmp_path]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    lost, tries = (tmp_path / "stuck").read_text(), Counter((tmp_path / "tries").read_text().split())
    assert tries == {number: 2 if number == lost else 1 for number in tries}
    check_whole(tmp_path / "partitions", unbroken)


def test_a_ray_cluster_that_is_not_there_is_said(folders, data, tmp_path):
    """What is no address is known at once; one that does not answer is given up by Ray after minutes."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tubelet[ray]'")
    words = [sys.executable, "-m", "tubelet", "embed", folders / "plain", data, *EMBED, tmp_path / "out", "--engine", "ray"]
    done = subprocess.run(
        [str(word) for word in words], env=os.environ | {"RAY_ADDRESS": "nonsense"}, capture_output=True, text=True, timeout=280
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: cannot join the Ray cluster nonsense (Invalid address"), done.stderr
    assert "RAY_ADDRESS" in last and "Traceback" not in done.stderr


def test_ray_that_is_missing_is_said(folders, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["embed", str(folders / "plain"), str(data), *EMBED, str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert capsys.readouterr().err == "error: --engine ray needs Ray: pip install 'tubelet[ray]'\n"


def test_names_that_are_not_utf8_are_rows_with_escaped_ids(folders, data, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    for name, content in ((b"good\xff.mp4", (data / "00.mp4").read_bytes()), (b"broken\xfe.mp4", b"not a video")):
        (tmp_path / "videos" / os.fsdecode(name)).write_bytes(content)
    (tmp_path / "single").mkdir()
    (tmp_path / "videos" / os.fsdecode(b"good\xff.mp4")).rename(tmp_path / "single" / os.fsdecode(b"\xff.mp4"))
    place = [str(tmp_path / name) for name in ("videos", "single")]
    for what in ("embed", "predict"):
        out = tmp_path / what / os.fsdecode(b"out\xff")
        assert main([what, str(folders / "taught"), *place, *EMBED, str(out), "--engine", "local"]) == 0
        out = out.rename(tmp_path / what / "plain")  # pyarrow opens no such path
        done, lost = (pq.read_table(out / kind).to_pylist() for kind in ("results", "errors"))
        assert [row["id"] for row in done] == ["single/\\udcff.mp4"] and done[0]["path"].endswith("single/\\udcff.mp4")
        assert [row["id"] for row in lost] == ["videos/broken\\udcfe.mp4"] and "not a readable video file" in lost[0]["reason"]
        assert "out\\udcff: 1 of 1 partitions" in capsys.readouterr().out


def test_predictions_are_those_of_single_files(folders, data, tmp_path, capsys):
    from tubelet.weights.load import load_model

    words = ["predict", str(folders / "taught"), str(data), "--out", str(tmp_path / "out"), "--engine", "local"]
    assert main([*words, "--clips", "2", "--top", "2", "--partition-size", "7"]) == 0
    assert "20 rows in" in capsys.readouterr().out
    found, model = pq.read_table(tmp_path / "out" / "results").to_pylist(), load_model(folders / "taught")
    assert [row["id"] for row in found] == [e.id for e in datasets.read(data).examples if " " not in e.id]
    for row in found[::5]:
        answer = predict(model, row["path"], 2, top=2)
        assert row["classes"] == [name for name, _ in answer.top]
        assert row["probabilities"] == pytest.approx([p for _, p in answer.top], abs=1e-5)
        assert row["start_seconds"] == pytest.approx(answer.seconds[0][0], abs=1e-3)
        assert row["end_seconds"] == pytest.approx(answer.seconds[-1][-1], abs=1e-3)
    assert predict_table(model, []).num_rows == 0
    with pytest.raises(CheckpointError, match="never taught classes"):
        predict_table(load_model(folders / "plain"), [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--clips", "3"], "clips 2, not 3"),
        (["--per", "clip"], "per video, not clip"),
        (["--partition-size", "5"], "partition_size 4, not 5"),
        (["more"], "videos 22, not 23"),
        (["other model"], "fingerprint "),
    ],
)
def test_a_folder_that_was_begun_otherwise_is_refused(folders, data, tmp_path, capsys, change, said):
    out, model = tmp_path / "out", str(folders / "plain")
    examples = datasets.read(data).examples
    from tubelet.weights.load import load_model

    network = load_model(model)
    asked = {"what": "embed", "per": "video", "clips": 2, "model": network.name, "fingerprint": features.fingerprint(network)}
    partitions.begin(out, examples, asked, 4)
    before = (out / "manifest.json").read_bytes()
    paths, settings = [str(data)], list(EMBED)
    if change == ["more"]:
        paths.append(str(data / "00.mp4"))
    elif change == ["other model"]:
        model = str(save(models.build("videomae_tiny", SPEC, **SIZES), tmp_path / "other"))
    elif change[0] in settings:
        settings[settings.index(change[0]) + 1] = change[1]
    else:
        settings = [*change, *settings]
    assert main(["embed", model, *paths, *settings, str(out), "--engine", "local"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {out} was begun with ") and said in error and "choose another --out" in error
    assert [path.name for path in out.iterdir()] == ["manifest.json"] and (out / "manifest.json").read_bytes() == before


def test_what_cannot_be_begun_is_said(tmp_path):
    one = Example("a.mp4", "a")
    with pytest.raises(DataError, match="no video"):
        partitions.begin(tmp_path / "out", [], {}, 4)
    with pytest.raises(DataError, match="two videos have the id a"):
        partitions.begin(tmp_path / "out", [one, one], {}, 4)
    with pytest.raises(ConfigError, match="partition size is 0"):
        partitions.begin(tmp_path / "out", [one], {}, 0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="holds file, which is not"):
        partitions.begin(tmp_path, [one], {}, 4)
    with pytest.raises(CheckpointError, match="cannot write"):
        partitions.begin(tmp_path / "file", [one], {}, 4)
    partitions.begin(tmp_path / "out", [one], {}, 4)
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="manifest.json is damaged"):
        partitions.begin(tmp_path / "out", [one], {}, 4)


def test_a_rank_without_torchrun_is_said(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="torchrun did not start this process"):
        partitions.under_torchrun()
