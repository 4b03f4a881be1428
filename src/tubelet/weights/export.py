"""A model leaves PyTorch: one graph that takes uint8 frames and gives probabilities, for where it is deployed.

    OUT/model.pt2, model.onnx or model.xml   the graph: frames uint8 (B,T,3,H,W) -> probabilities (B,K), embedding (B,D)
    OUT/config.json                          ClipSpec, classes in order, and how far the graph is from the model

Normalising is inside the graph. What comes out is compared with the model before the folder is there.
"""

import json
import logging
import math
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tubelet.errors import CheckpointError, ConfigError, MissingExtraError, utf8
from tubelet.models._model import Model
from tubelet.weights.exported import FILES, Exported, open_graph
from tubelet.weights.save import describe

LARGEST = {False: 1e-4, True: 0.1}  # difference of probabilities that is let pass: float32, and weights in 8 bits
AGREEMENT, LOSS = 0.99, 0.01  # of 8 bits on videos: the least share of the same class, the most accuracy that is lost
ROUNDS = 7


@dataclass(frozen=True)
class Parity:
    """How an exported graph compares with the model it came from, on the same clips.

    difference  the largest of probabilities (of embeddings, relative to their size, for a model without classes)
    agreement   share of clips with the same most probable class; None without classes
    accuracy    (of the model, of the graph) where the clips have labels
    milliseconds for one clip at a time, medians of interleaved rounds: (model, graph)
    """

    clips: int
    difference: float
    agreement: float | None
    accuracy: tuple[float, float] | None
    milliseconds: tuple[float, float]
    threads: int


class Graph(nn.Module):
    """What is exported: frames uint8 (B,T,3,H,W) -> probabilities (B,K) and embedding (B,D), or the embedding alone."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        out = self.model(frames)
        return (out["logits"].softmax(dim=-1), out["embedding"]) if "logits" in out else (out["embedding"],)


@torch.no_grad()
def export(
    model: Model, out: str | Path, to: str, int8: bool = False, dynamic_batch: bool = True,
    clips: Sequence[Tensor] = (), labels: Sequence[int] = (),
) -> Parity:  # fmt: skip
    """Write the folder `out`, whole or not at all, and give how it compares.

    to             "torch" (torch.export), "onnx" (run by onnxruntime) or "openvino"
    int8           weights of matrix products in 8 bits (dynamic quantisation); "onnx" only
    dynamic_batch  any number of clips at once; else one
    clips, labels  uint8 (T,3,H,W) each, and their classes' numbers, to compare on; clips of noise where none are given

    ConfigError for what cannot be asked for, MissingExtraError for a package that is not installed, CheckpointError where the graph
    is further from the model than LARGEST, tells other classes of the given clips than AGREEMENT and LOSS let pass (int8), or
    cannot be written.
    """
    out = Path(out)
    if to not in FILES:
        raise ConfigError(f"--to is {to!r}: it must be one of {', '.join(FILES)}")
    if int8 and to != "onnx":
        raise ConfigError(f"--int8 is for --to onnx; {to} keeps float32")
    if model.precision != "fp32":
        raise ConfigError(f"{model.name} is loaded in {model.precision}: load it in fp32 to export it")
    if out.exists():
        raise CheckpointError(f"{out} is there already: choose another place, nothing is overwritten")
    if utf8(str(out)) != str(out):
        raise CheckpointError(f"{out} is not UTF-8, and graphs are written to no other name: choose another place")
    model = model.cpu().eval()
    videos, clips = len(clips), list(clips) or noise(model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error}; nothing was changed") from error
    try:
        WRITERS[to](Graph(model), _example(model, dynamic_batch), draft, int8, dynamic_batch)
        parity = compare(model, Exported(describe(model), open_graph(draft, to), draft), clips, labels)
        if not parity.difference <= LARGEST[int8]:
            raise CheckpointError(
                f"the graph differs from the model by {parity.difference:.2g}, more than {LARGEST[int8]:g}: nothing was written"
            )
        if int8 and videos:
            _refuse_other_answers(parity)
        about = {"to": to, "int8": int8, "dynamic_batch": dynamic_batch, "width": model.width, "parity": asdict(parity)}
        text = json.dumps({**describe(model), "exported": about}, indent=2, ensure_ascii=False)
        (draft / "config.json").write_text(text, encoding="utf-8")
        os.chmod(draft, 0o755)
        os.replace(draft, out)
        return parity
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error}; nothing was changed") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _refuse_other_answers(parity: Parity) -> None:
    """CheckpointError where 8 bits change what the model says of videos."""
    if parity.agreement is not None and parity.agreement < AGREEMENT:
        raise CheckpointError(
            f"in 8 bits {parity.agreement:.1%} of {parity.clips} videos are of the model's class, wanted {AGREEMENT:.0%}: nothing "
            "was written; export without --int8"
        )
    before, after = parity.accuracy or (0.0, 0.0)
    if before - after > LOSS + 1e-9:
        raise CheckpointError(
            f"8 bits lose {before - after:.1%} of accuracy on {parity.clips} videos, more than {LOSS:.0%}: nothing was written; "
            "export without --int8"
        )


@torch.no_grad()
def compare(model: Model, graph: Model, clips: Sequence[Tensor], labels: Sequence[int] = ()) -> Parity:
    """See `Parity`. Every clip goes through both, one at a time; the first ones are timed, in turns."""
    key = "logits" if model.class_names else "embedding"
    largest, same, right = 0.0, 0, [0, 0]
    for number, clip in enumerate(clips):
        ours, theirs = (side(clip[None])[key][0] for side in (model, graph))
        if model.class_names:
            ours, theirs = ours.softmax(0), theirs.softmax(0)
        else:
            ours, theirs = ours / ours.norm(), theirs / ours.norm()
        difference = float((ours - theirs).abs().max())
        if not math.isfinite(difference):
            raise CheckpointError(f"{model.name} or its graph gives no finite numbers (NaN or infinity): nothing was written")
        largest = max(largest, difference)
        same += int(ours.argmax() == theirs.argmax())
        if labels:
            right = [count + int(side.argmax() == labels[number]) for count, side in zip(right, (ours, theirs), strict=True)]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        clip = clips[turn % len(clips)][None]
        for side, taken in zip((model, graph), times, strict=True):
            started = time.perf_counter()
            side(clip)
            taken.append(1000 * (time.perf_counter() - started))
    return Parity(
        len(clips), largest, same / len(clips) if model.class_names else None,
        (right[0] / len(clips), right[1] / len(clips)) if labels else None,
        (statistics.median(times[0]), statistics.median(times[1])), torch.get_num_threads(),
    )  # fmt: skip


def noise(model: Model, count: int = 8) -> list[Tensor]:
    """Clips of noise of different brightness, uint8 (T,3,H,W), the same every time."""
    generator = torch.Generator().manual_seed(0)
    shape = (model.spec.frames, 3, model.spec.size, model.spec.size)
    return [torch.randint(0, 32 * (number + 1), shape, dtype=torch.uint8, generator=generator) for number in range(count)]


def _example(model: Model, dynamic: bool) -> Tensor:
    clips = torch.stack(noise(model, 2))  # two, as torch takes a batch of one for a constant
    return clips if dynamic else clips[:1]


def _to_torch(graph: Graph, example: Tensor, folder: Path, int8: bool, dynamic: bool) -> None:
    torch.export.save(_program(graph, example, dynamic), folder / FILES["torch"])


def _to_onnx(graph: Graph, example: Tensor, folder: Path, int8: bool, dynamic: bool) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"--to onnx needs {error.name}: pip install 'tubelet[export]'") from error
    names = ["probabilities", "embedding"] if graph.model.class_names else ["embedding"]
    file = folder / FILES["onnx"]
    traced = _program(graph, example, dynamic)
    own = {str(node.target) for node in traced.graph.nodes if str(node.target).startswith("tubelet.")}
    if own:
        raise ConfigError(
            f"{graph.model.name} calls {', '.join(sorted(own))}, which is Python and cannot be in an ONNX graph: export --to "
            "torch, or train one whose flow is a network (--model.options.estimator raft_small)"
        )
    with _quiet():
        program = torch.onnx.export(traced, dynamo=True, input_names=["frames"], output_names=names, verbose=False)
        assert program is not None
        program.save(file, external_data=sum(p.numel() for p in graph.parameters()) > 400_000_000)
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with _quiet():
            # Shapes that were inferred before are in the way of the quantiser's own.
            held = onnx.load(file)
            del held.graph.value_info[:]
            onnx.save(held, file)
            quantize_dynamic(file, file, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    onnx.checker.check_model(file)


def _to_openvino(graph: Graph, example: Tensor, folder: Path, int8: bool, dynamic: bool) -> None:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("--to openvino needs OpenVINO: pip install 'tubelet[openvino]'") from error
    _to_onnx(graph, example, folder, False, dynamic)
    openvino.save_model(openvino.convert_model(folder / FILES["onnx"]), folder / FILES["openvino"], compress_to_fp16=False)
    for file in folder.glob(FILES["onnx"] + "*"):
        file.unlink()


WRITERS: dict[str, Callable[[Graph, Tensor, Path, bool, bool], None]] = {
    "torch": _to_torch,
    "onnx": _to_onnx,
    "openvino": _to_openvino,
}


def _program(graph: Graph, example: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    graph(example)  # position tables are made at the first call, and kept
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},) if dynamic else None
    program = torch.export.export(graph, (example,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that exported it
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
