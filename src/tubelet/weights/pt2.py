"""Opens a graph of torch.export after looking whether there is anything in it but a graph.

Left to itself, torch unpickles parts of such a file and evaluates some of its text, so that a file made for it runs any code. What
`tubelet export` writes needs neither: tensors as bytes, a list of operators of `aten` (and our own), and shapes in which only the
batch is a symbol. Everything else is refused.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tubelet.errors import CheckpointError

NAMES = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)"
)
OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|torch\.ops\.tubelet\.\w+\.default|_operator\.(add|sub|mul|floordiv|mod|neg|getitem|eq|ne|lt|le|gt|ge)"
)
SIZE = re.compile(r"(Symbol\('[su]\d+'(, (positive|nonnegative|integer)=True)*\)|Integer\(-?\d+\)|Mul|Add|\d|[-+*(), ])+")
STRUCTURES = ("builtins.tuple", "builtins.list", "builtins.dict", None)


def load(file: Path) -> torch.export.ExportedProgram:
    """The graph in a file; CheckpointError, one line, for a file that holds more. What is damaged fails as torch has it."""
    from torch.export.pt2_archive._package import load_pt2  # torch.export.load would try an older format, of pickles

    import tubelet.models.two_stream  # noqa: F401 - a graph may call tubelet::classical_flow, which is known from then on

    strange = next(_strange(file), None)
    if strange:
        raise CheckpointError(f"{file} holds more than a graph ({strange}), which is never run: export the model again")
    return load_pt2(str(file)).exported_programs["model"]


def _strange(file: Path) -> Iterator[str]:
    """What no graph needs."""
    archive = torch._C.PyTorchFileReader(str(file))  # as torch reads it, in case two readers disagree
    names = archive.get_all_records()
    yield from (name for name in names if not NAMES.fullmatch(name))
    if len(set(names)) < len(names):
        yield "a name twice"
    for what in ("weights", "constants"):
        held = json.loads(archive.get_record(f"data/{what}/model_{what}_config.json"))["config"]
        for name, about in held.items():
            if about["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", about["path_name"]):
                yield f"{name} is a pickle"
    try:
        torch.load(io.BytesIO(archive.get_record("data/sample_inputs/model.pt")), weights_only=True)
    except Exception:  # whatever is wrong with it, torch would unpickle it with code
        yield "its example is no tensor"
    program = json.loads(archive.get_record("models/model.json"))
    if program.get("guards_code"):
        yield "lines of Python"
    for key, value in _pairs(program):
        if key == "target" and not OPERATOR.fullmatch(value):
            yield f"it calls {value}"
        elif key == "expr_str" and not SIZE.fullmatch(value):
            yield f"a size is {value[:40]!r}"
        elif key in ("as_operator", "as_custom_obj"):
            yield f"an argument {value!r}"
        elif key in ("in_spec", "out_spec") and any(
            name == "type" and kind not in STRUCTURES for name, kind in _pairs(json.loads(value))
        ):
            yield f"a structure {value[:40]!r}"


def _pairs(held: Any) -> Iterator[tuple[str, Any]]:
    """Every name and what it is of, at any depth."""
    if isinstance(held, dict):
        for name, value in held.items():
            yield name, value
            yield from _pairs(value)
    elif isinstance(held, list):
        for value in held:
            yield from _pairs(value)
