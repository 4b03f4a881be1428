"""Answers about any number of videos: a folder of Parquet partitions that many processes fill and a restart completes.

    OUT/manifest.json               what is asked of which videos, and how many partitions that makes
    OUT/results/part-00000.parquet  the answers about the first `size` videos, in their order
    OUT/errors/part-00000.parquet   those of them that cannot be read: id, path, reason

What is in a partition follows from the manifest alone, so processes share nothing but the folder. Both files of a partition
are drafts until they are whole, and the errors come first: where results/part-N is, partition N is done, and no video is
answered twice however often a process is killed.
"""

import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tubelet.errors import CheckpointError, ConfigError, DataError, MissingExtraError, utf8
from tubelet.models._model import Model
from tubelet.records import Example

if TYPE_CHECKING:
    import pyarrow as pa

ENGINES = ("local", "torchrun", "ray")


class Answer(Protocol):
    """Rows about the Examples that can be read, in their order; on_missing(id, reason) for the others."""

    def __call__(self, model: Model, examples: Sequence[Example], *, on_missing: Callable[[str, str], None]) -> "pa.Table": ...


@dataclass(frozen=True)
class Plan:
    """Which `size` consecutive Examples each partition of a folder answers."""

    folder: Path
    examples: tuple[Example, ...]
    size: int

    @property
    def partitions(self) -> int:
        return -(-len(self.examples) // self.size)

    def part(self, number: int) -> tuple[Example, ...]:
        return self.examples[number * self.size : (number + 1) * self.size]

    def file(self, kind: str, number: int) -> Path:
        """Where partition `number` of "results" or "errors" lies."""
        return self.folder / kind / f"part-{number:05d}.parquet"

    def todo(self, rank: int = 0, world: int = 1) -> list[int]:
        """Those of the partitions rank, rank + world, ... that are not done."""
        return [number for number in range(rank, self.partitions, world) if not self.file("results", number).exists()]

    def counts(self) -> dict[str, int]:
        """What the folder holds by now: partitions, finished ones, their rows, and videos that could not be read."""
        import pyarrow.parquet as pq

        done = sorted(set(range(self.partitions)) - set(self.todo()))

        def rows(kind: str, number: int) -> int:
            with open(self.file(kind, number), "rb") as file:
                return int(pq.read_metadata(file).num_rows)

        found, missing = (sum(rows(kind, number) for number in done) for kind in ("results", "errors"))
        return {"partitions": self.partitions, "finished": len(done), "rows": found, "missing": missing}


def begin(folder: str | Path, examples: Sequence[Example], asked: Mapping[str, Any], size: int) -> Plan:
    """The plan for a folder, new or begun with the same Examples, `asked` (JSON-able) and size.

    ConfigError where it was begun with others, or holds something else; DataError for Examples that share an id;
    CheckpointError where it cannot be written.
    """
    folder = Path(folder)
    if size < 1:
        raise ConfigError(f"the partition size is {size}: it must be 1 or more")
    if not examples:
        raise DataError("there is no video to answer about")
    digest, ids = hashlib.blake2b(digest_size=8), set()
    for example in examples:
        if example.id in ids:
            raise DataError(f"two videos have the id {example.id}: give each only once")
        ids.add(example.id)
        digest.update(repr((example.id, example.start_seconds, example.end_seconds)).encode())
    manifest = {**asked, "videos": len(examples), "videos_fingerprint": digest.hexdigest(), "partition_size": size}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Listed before the manifest is read: another process may begin the same folder now, and its manifest comes first.
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        before = _manifest(folder)
        if before is None and names:
            raise ConfigError(f"{folder} holds {names[0]}, which is not of this kind of folder: choose a new --out")
        if before is None:
            draft = folder / f".manifest.json.{os.getpid()}.tmp"
            draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            os.replace(draft, folder / "manifest.json")
            before = manifest
        if "precision" in manifest:
            before.setdefault("precision", "fp32")  # of folders of before it was kept
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error}; choose a folder with room, that you may write to") from error
    other = [
        f"{name} {before.get(name)}, not {manifest.get(name)}"
        for name in {**manifest, **before}
        if before.get(name) != manifest.get(name)
    ]
    if other:
        raise ConfigError(f"{folder} was begun with {'; '.join(other)}: choose another --out, or ask the same again")
    return Plan(folder, tuple(examples), size)


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{folder / 'manifest.json'} is damaged ({error}): choose another --out") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{folder / 'manifest.json'} is damaged: choose another --out")
    return found


def fill(
    plan: Plan, model: Model, answer: Answer, rank: int = 0, world: int = 1, say: Callable[[str], object] = lambda _: None
) -> int:
    """Make what is not done of the partitions rank, rank + world, ...; how many these were. CheckpointError: cannot write."""
    todo = plan.todo(rank, world)
    for number in todo:
        say(make(plan, number, model, answer))
    return len(todo)


def make(plan: Plan, number: int, model: Model, answer: Answer) -> str:
    """Write both files of one partition, and give a line to print about it."""
    import pyarrow as pa

    started = time.perf_counter()
    examples = plan.part(number)
    reasons: dict[str, str] = {}
    rows = answer(model, examples, on_missing=reasons.__setitem__)
    lost = [example for example in examples if example.id in reasons]
    broken = [{"id": utf8(one.id), "path": utf8(one.path), "reason": utf8(reasons[one.id])} for one in lost]
    errors = pa.Table.from_pylist(broken, schema=pa.schema([(name, pa.string()) for name in ("id", "path", "reason")]))
    try:
        _write(errors, plan.file("errors", number))
        _write(rows, plan.file("results", number))
    except OSError as error:
        raise CheckpointError(
            f"cannot write {plan.folder}: {error}; make room and repeat the command: finished partitions are not done again"
        ) from error
    speed = len(examples) / (time.perf_counter() - started)
    but = f", {len(lost)} of them cannot be read" if lost else ""
    return f"partition {number + 1} of {plan.partitions}: {len(examples)} videos{but}, {speed:.1f} a second"


def _write(rows: "pa.Table", path: Path) -> None:
    """A Parquet file, whole or not at all; drafts that killed processes left of it go."""
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            pq.write_table(rows, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)


def under_torchrun(device: str = "auto") -> tuple[int, int, str]:
    """(rank, world, device) of this process, "auto" being the GPU of its local rank; ConfigError without torchrun.

    No process group is made: which partitions are whose follows from the rank.
    """
    import torch

    try:
        rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "--engine torchrun, but torchrun did not start this process: torchrun --nproc-per-node 2 -m tubelet ..., "
            "or --engine local"
        ) from error
    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{local % torch.cuda.device_count()}"
    return rank, world, device


def fill_with_ray(plan: Plan, load: Callable[[], Model], answer: Answer, gpu: bool, say: Callable[[str], object]) -> int:
    """`fill` by the workers of a Ray cluster, RAY_ADDRESS or this machine: one for every GPU if `gpu`, else for every CPU.

    All of them must see the videos and plan.folder under the same paths. What a worker raises is raised here, DataError where
    they die of one partition (what is finished stays), ConfigError for a cluster that cannot be reached; MissingExtraError
    without Ray.

    Actors rather than a Ray Data pipeline, which hands a partition that kills its worker to the next one for ever; and a new
    actor for one that died rather than Ray's restarts, which would wait for room where a machine is gone.
    """
    try:
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError
    except ImportError as error:
        raise MissingExtraError("--engine ray needs Ray: pip install 'tubelet[ray]'") from error

    class Worker:
        """Holds the model; the partitions come one after another."""

        def __init__(self, plan: Plan, load: Callable[[], Model], where: str) -> None:
            os.chdir(where)  # relative paths mean the same as where the command was typed
            self.plan, self.model = plan, load()

        def loaded(self) -> None:
            """Comes back once the model is there."""

        def make(self, number: int) -> str:
            return make(self.plan, number, self.model, answer)

    todo = plan.todo()
    if not todo:
        return 0
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(log_to_driver=False, include_dashboard=False if "RAY_ADDRESS" not in os.environ else None)
        except (ConnectionError, ValueError, RayError) as error:  # not there, not an address, not the same token
            raise ConfigError(
                f"cannot join the Ray cluster {os.environ.get('RAY_ADDRESS', 'of this machine')} ({str(error).splitlines()[0]}): "
                "see whether it runs (`ray status`), and that RAY_ADDRESS and Ray's token are the same here and there"
            ) from error
    waiting, tries, idle = deque(todo), Counter[int](), list[Any]()
    running: dict[Any, tuple[Any, int | None]] = {}  # by what comes back: the worker, and its partition unless it still loads

    def start() -> None:
        worker: Any = remote.remote(shared, load, os.getcwd())
        running[worker.loaded.remote()] = worker, None

    try:
        count = min(len(todo), max(1, int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1))))
        remote = ray.remote(num_cpus=1, num_gpus=int(gpu))(Worker)
        shared = ray.put(plan)
        for _ in range(count):
            start()
        while waiting or any(number is not None for _, number in running.values()):
            back = ray.wait(list(running))[0][0]
            worker, number = running.pop(back)
            try:
                line = ray.get(back)
            except RayActorError as error:  # out of memory, or the machine has left
                ray.kill(worker)
                if number is not None:
                    tries[number] += 1
                    waiting.append(number)
                    start()
                if (number is not None and tries[number] == 3) or not (running or idle):
                    raise DataError(
                        f"the workers of Ray keep dying ({str(error).splitlines()[0]}): they may have too little memory; repeat "
                        "the command with more of it, finished partitions are not done again"
                    ) from error
            else:
                idle.append(worker)
                if number is not None:
                    say(line)
            while waiting and idle:
                worker, number = idle.pop(), waiting.popleft()
                running[worker.make.remote(number)] = worker, number
    except RayTaskError as error:
        raise error.cause from error
    finally:
        for worker in [*idle, *(worker for worker, _ in running.values())]:
            ray.kill(worker)
        if own:
            ray.shutdown()
    return len(todo)
