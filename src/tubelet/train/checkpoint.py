"""A folder a step, written by all processes together while training goes on, whole or not at all, and put back bit for bit.

torch.distributed.checkpoint (DCP) copies what a process has to write to the CPU, writes it in a thread, and on reading finds the
parts that a process needs: so any number of processes, DDP or FSDP2, continues what any other began. What lies on the disk is ours:
`weights.checkpoint` says what it is.
"""

import concurrent.futures
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from tubelet.errors import CheckpointError
from tubelet.models._model import Model
from tubelet.train import parallel
from tubelet.weights.checkpoint import FORMAT, INDEX, OFFSETS, PATTERN, Checkpoint, checksum, file_checksum, newest, read
from tubelet.weights.fill import refuse_other
from tubelet.weights.save import describe

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter


class Writer:
    """Writes `folder/step_<step>`, one after another, while training goes on, and keeps the `keep` newest. All processes must
    have one and ask it alike.

    A checkpoint appears under its name only once it is complete and on the disk. Where it cannot be written (permissions, no
    space), CheckpointError says so on every process: then no part of it is left, and the older ones are untouched.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        # Its own group: what the threads say must not get between what the training says.
        self._group = dist.new_group(backend="gloo", timeout=parallel.PATIENCE) if parallel.world() > 1 else None
        self._running: concurrent.futures.Future[Any] | None = None

    def begin(
        self,
        state: Mapping[str, Any],
        model: Model,
        optimizer: torch.optim.Optimizer,
        ema: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Copy everything to the CPU, and write it after the one before it. The state holds `step` and what JSON can hold."""
        self.wait()
        alone = parallel.world() == 1
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it is
        content = {"format": FORMAT, "model": describe(model), "state": dict(state)}
        self._running = async_save(  # type: ignore[assignment] # its other answer is for other stagers
            _mine(model, optimizer, ema or {}), storage_writer=_Target(self.folder, content, self.keep),
            process_group=self._group, no_dist=alone,
        )  # fmt: skip

    def check(self) -> None:
        """CheckpointError where the last one could not be written, as soon as that is known."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Until the last one is on the disk; CheckpointError where it could not be written."""
        running, self._running = self._running, None
        try:
            if running is not None:
                running.result()
        except CheckpointException as failed:  # on every process, whichever could not write
            _remove_drafts(self.folder)
            error = next(iter(failed.failures.values()))[0]
            if not isinstance(error, OSError):
                raise error from None
            raise CheckpointError(
                f"cannot write the checkpoint in {self.folder}: {error}; make room or choose another --out, those before are whole"
            ) from error

    def close(self) -> None:
        """Let the last one finish; whoever needs to know how has asked before."""
        if self._running is not None:
            concurrent.futures.wait([self._running])
        if self._group is not None:
            dist.destroy_process_group(self._group)


def _all(model: Model, moments: Mapping[str, Tensor], ema: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of a run under its name in a checkpoint."""
    held = {f"model.{name}": value for name, value in model.state_dict().items()}
    held |= {f"optimizer.{name}": value for name, value in moments.items()}
    return held | {f"ema.{name}": value for name, value in ema.items()}


def _mine(model: Model, optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What this process has to write: its parts of what is divided, and its share of what all have alike. Buffers may differ
    (statistics of a process's own clips): those of rank 0 count."""
    moments = {f"{name}.{kind}": value for name, p in _named(optimizer) for kind, value in optimizer.state[p].items()}
    held = _all(model, moments, ema)
    buffers = {f"model.{name}" for name, _ in model.named_buffers()}
    alike = sorted((n for n in held if n not in buffers and not isinstance(held[n], DTensor)), key=lambda n: held[n].nbytes)
    others = {*alike[parallel.rank() :: parallel.world()], *(() if parallel.rank() else buffers)}
    return {name: value for name, value in held.items() if isinstance(value, DTensor) or name in others}


class _Target(HuggingFaceStorageWriter):
    """Where DCP writes one checkpoint: a draft with a safetensors file of every process, which rank 0 completes and names.

    DCP's own writer makes a second copy of everything, and does not tell when all processes are done.
    """

    def __init__(self, folder: Path, content: dict[str, Any], keep: int) -> None:
        self.final = folder / f"step_{content['state']['step']:08d}"
        self.draft = folder / f".{self.final.name}.tmp"
        self.content, self.keep = content, keep
        super().__init__(str(self.draft), save_distributed=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """The file of this process."""
        path = self.draft / f"part_{plan.storage_data['shard_index']:05d}.safetensors"
        tensors, offsets = {}, {}
        for item in plan.items:
            assert item.tensor_data is not None, "there are only tensors"
            tensors[item.index.fqn] = planner.resolve_data(item).detach().contiguous()  # type: ignore[union-attr]
            offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        try:
            save_file(tensors, path, {OFFSETS: json.dumps(offsets)})
        except SafetensorError as error:
            raise OSError(str(error)) from error  # the other processes are told, who could not read that one
        _sync(path)
        written: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        written.set_result([WriteResult(MetadataIndex(path.name), path.stat().st_size, file_checksum(path))])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The parts are on the disk: say what they are of, give the draft its name, and remove what is too old."""
        parts = [part for process in results for part in process]
        for part in parts:
            if (self.draft / part.index.fqn).stat().st_size != part.size_in_bytes:
                raise OSError(f"{part.index.fqn} is not what its process wrote: all machines must see the same folder")
        content = {
            **self.content,
            "files": {part.index.fqn: part.storage_data for part in parts},
            "tensors": {
                name: {"dtype": str(entry.properties.dtype).removeprefix("torch."), "shape": list(entry.size)}  # type: ignore[union-attr]
                for name, entry in metadata.state_dict_metadata.items()
            },
        }
        (self.draft / INDEX).write_text(json.dumps({"content": content, "crc32": checksum(content)}), encoding="utf-8")
        _sync(self.draft / INDEX)
        _sync(self.draft)
        there = sorted(self.final.parent.glob(PATTERN))
        older = [path for path in there if path < self.final]
        for path in there[len(older) :]:  # they could not be read when the run resumed
            _remove(path)
        os.rename(self.draft, self.final)
        _sync(self.final.parent)
        for path in older[: max(0, len(older) + 1 - self.keep)]:
            _remove(path)


def _remove(path: Path) -> None:
    """A checkpoint, at once: what a kill leaves of it has the name of a draft."""
    draft = path.with_name(f".{path.name}.old.tmp")
    os.rename(path, draft)
    shutil.rmtree(draft)


def _remove_drafts(folder: Path) -> None:
    """What was never finished, or not wholly removed."""
    for draft in folder.glob(".step_*.tmp") if not parallel.rank() else ():
        shutil.rmtree(draft, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Reading -----------------------------------------------------------------------------------------------------------------


def load_latest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to continue from, as `weights.checkpoint.newest` finds it on rank 0; what a killed run left half-written
    goes."""
    found = None
    if not parallel.rank():
        _remove_drafts(folder)
        found = newest(folder, say)
    path = parallel.agree(found.path if found else None)
    return read(path, verify=False) if path is not None and found is None else found


def restore(checkpoint: Checkpoint, model: Model, optimizer: torch.optim.Optimizer, ema: Mapping[str, Tensor] | None) -> None:
    """Put everything back in place, bit for bit, each process what it holds; CheckpointError when the checkpoint is of another
    model or optimiser."""
    refuse_other(model, checkpoint.outline("model"), checkpoint.path)
    saved = checkpoint.outline("optimizer")
    state: dict[int, dict[str, Tensor]] = {}
    named = _named(optimizer) if saved else []  # nothing yet where no step had a readable video
    for index, (name, parameter) in enumerate(named):
        theirs = [saved.pop(f"{name}.{kind}", None) for kind in MOMENTS]
        if any(value is None for value in theirs) or theirs[1].shape != parameter.shape:  # type: ignore[union-attr]
            raise CheckpointError(f"{checkpoint.path} has no fitting optimiser state for {name}: it is of another run")
        fresh = (torch.zeros(()), torch.zeros_like(parameter), torch.zeros_like(parameter))
        state[index] = dict(zip(MOMENTS, fresh, strict=True))
    if saved:
        raise CheckpointError(f"{checkpoint.path} has optimiser state for {next(iter(saved))}, which this run does not train")
    averages = checkpoint.outline("ema")
    if set(averages) != set(ema or {}):
        raise CheckpointError(f"{checkpoint.path} {'has a' if averages else 'has no'} moving average, unlike this run")
    moments = {f"{name}.{kind}": state[i][kind] for i, (name, _) in enumerate(named) for kind in MOMENTS}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # every process reads for itself
            source = HuggingFaceStorageReader(str(checkpoint.path))
            load(_all(model, moments, ema or {}), storage_reader=source, no_dist=True)  # in place
    except CheckpointException as failed:
        raise CheckpointError(f"{checkpoint.path} can no longer be read: {next(iter(failed.failures.values()))[0]}") from None
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]
