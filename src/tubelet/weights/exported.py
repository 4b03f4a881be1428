"""A graph that was exported answers like any model: `predict`, `embed` and `evaluate` take its folder."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tubelet import find
from tubelet.errors import CheckpointError, ConfigError, MissingExtraError
from tubelet.models._model import Model
from tubelet.records import ClipSpec
from tubelet.weights import pt2

FILES = {"torch": "model.pt2", "onnx": "model.onnx", "openvino": "model.xml"}

Run = Callable[[Tensor], list[Tensor]]  # frames uint8 (B,T,3,H,W) -> [probabilities (B,K), embedding (B,D)] or [embedding]


class Exported(Model):
    """An exported graph in the place of a model: it cannot be trained, and gives "embedding", "tokens" (that one vector) and, where
    there are classes, "logits" (the logarithm of its probabilities)."""

    width: int
    fingerprint: Tensor

    def __init__(self, description: Mapping[str, Any], run: Run, folder: Path) -> None:
        super().__init__()
        self.name, self.spec = description["name"], ClipSpec.from_dict(description["clip"])
        self.class_names, self.options = tuple(description["class_names"]), dict(description["options"])
        self.depth, self.width = 0, description.get("exported", {}).get("width", 0)
        self.run, self.dynamic = run, description.get("exported", {}).get("dynamic_batch", True)
        # Features of two graphs must not be taken for one another: what the files hold stands in for weights.
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(folder.glob("model.*")):
            digest.update(file.read_bytes())
        self.fingerprint = nn.Parameter(torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8), requires_grad=False)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """frames uint8 (B,T,C,H,W)."""
        batches = [frames.to(torch.uint8)] if self.dynamic else list(frames.to(torch.uint8).split(1))
        *probabilities, embedding = (torch.cat(parts) for parts in zip(*map(self.run, batches), strict=True))
        out = {"embedding": embedding, "tokens": embedding[:, None]}
        if probabilities:
            out["logits"] = probabilities[0].clamp_min(torch.finfo(torch.float32).tiny).log()
        return out

    def depth_of(self, parameter: str) -> int:
        return 0

    def head_parameters(self) -> list[nn.Parameter]:
        return []


def open_folder(folder: Path) -> Exported:
    """The graph in an exported folder; CheckpointError for a damaged one, MissingExtraError without what runs it."""
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        to = find.choose(description["exported"]["to"], FILES, "format of an exported graph")
        ClipSpec.from_dict(description["clip"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} describes no exported graph ({error}): export the model again"
        ) from error
    if not (folder / FILES[to]).exists():
        raise CheckpointError(f"{folder} has no {FILES[to]}, which its config.json names: export the model again")
    try:
        run = open_graph(folder, to)
    except (MissingExtraError, CheckpointError):
        raise
    except Exception as error:  # every runtime has its own kinds for a damaged file
        what = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / FILES[to]} cannot be opened, it may be damaged: export the model again ({what[:160]})"
        ) from error
    try:
        graph = Exported(description, run, folder).eval()
        spec = graph.spec
        with torch.no_grad():
            out = graph(torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8))
        found = {key: tuple(out[key].shape) for key in ("logits", "embedding") if key in out}
        wanted = {"logits": (1, len(graph.class_names))} if graph.class_names else {}
        if found != wanted | {"embedding": (1, graph.width)}:
            raise ValueError(f"it gives {found}")
    except MissingExtraError:
        raise
    except Exception as error:  # a clip of another shape fails as the runtime has it
        what = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / 'config.json'} is not of this graph: its classes, width or clips are others; export the model again "
            f"({what[:160]})"
        ) from error
    return graph


def open_graph(folder: Path, to: str) -> Run:
    """What runs the graph in a folder, with as many threads as torch has."""
    return OPENERS[to](folder / FILES[to])


def _torch(file: Path) -> Run:
    module = pt2.load(file).module()
    return lambda frames: list(module(frames))


def _onnx(file: Path) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("an ONNX graph needs onnxruntime: pip install 'tubelet[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda frames: [torch.from_numpy(np.asarray(out)) for out in session.run(None, {"frames": frames.cpu().numpy()})]


def _openvino(file: Path) -> Run:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("an OpenVINO graph needs OpenVINO: pip install 'tubelet[openvino]'") from error
    # Left to itself it computes in bfloat16 where the processor has it.
    wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(file, "CPU", wanted)

    def run(frames: Tensor) -> list[Tensor]:
        found = compiled(frames.cpu().numpy())
        return [torch.from_numpy(np.array(found[number])) for number in range(len(compiled.outputs))]

    return run


OPENERS: dict[str, Callable[[Path], Run]] = {"torch": _torch, "onnx": _onnx, "openvino": _openvino}
