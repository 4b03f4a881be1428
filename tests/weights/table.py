"""The table layout x (inspect, load, back, parity) of docs/weights.md, measured on small models with random weights:

python -m tests.weights.table
"""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from tubelet.weights import foreign, layouts
from tubelet.weights.convert import convert
from tubelet.weights.inspect import inspect

from ..models.small import family_of
from .test_layouts import CASES, Case

PARTS = ("family", "layout", "what", "inspect", "loads", "bits back", "largest difference from the other implementation")


def rows() -> Iterator[tuple[str, ...]]:
    """One row a case, in the order of CASES."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            yield row(case, Path(folder))


def row(case: Case, folder: Path) -> tuple[str, ...]:
    """The other implementation is asked about what was read from this layout; it reads a transformers folder."""
    made, path = case.model(), case.write(folder)
    found = inspect(path, case.given)
    right = (found["name"], found["layout"]) == (case.variant, case.layout)
    read, _ = foreign.read(path, case.given)
    state, wanted = read.state_dict(), made.state_dict()
    same = sum(torch.equal(state[key], wanted[key]) for key in wanted)
    family = family_of(case.variant)
    proof = convert(read, folder / "again", "huggingface") if (family, "huggingface") in layouts.known() else None
    difference = "none to import" if proof is None else proof.why if proof.difference is None else f"{proof.difference:.0e}"
    what = f"`{case.variant}`, {'classifier' if case.classes else 'bare'}"
    return (f"`{family}`", f"`{case.layout}`", what, "right" if right else "WRONG", "yes" if found["loads"] else found["problem"],
            f"{same} of {len(wanted)}", difference)  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(f"| {' | '.join(PARTS)} |\n|{'---|' * len(PARTS)}")
    for one in rows():
        print(f"| {' | '.join(one)} |", flush=True)
