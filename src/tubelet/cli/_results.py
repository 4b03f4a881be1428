"""How an evaluation is printed, by every command that makes one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tubelet.cli._print import emit_json, table, tell

if TYPE_CHECKING:
    from tubelet.evaluate.run import Evaluation


def print_evaluation(found: "Evaluation", json: bool) -> None:
    """The results table, what was missing and where the report is; or all of it as one JSON object."""
    if json:
        emit_json(
            {
                "results": found.results,
                "asked": found.asked,
                "part": found.part,
                "trained_on": found.before.labelled,
                "pretrained_on": found.before.unlabelled,
                "missing": _named(found.missing),
                "missing_in_training": _named(found.missing_in_training),
                "classes": list(found.classes),
                "per_class": found.per_class,
                "retrieval": found.retrieval,
                "report": str(found.report),
            }
        )
        return
    table([_line(row) for row in found.results] or [_retrieval_line(row) for row in found.retrieval])
    evaluated = found.asked - len(found.missing)
    tell()
    tell(found.part)
    tell(f"{evaluated} of {found.asked} videos evaluated" + (", missing:" if found.missing else ""))
    for id, reason in found.missing:
        tell(f"  {id}: {reason}")
    if found.missing_in_training:
        tell("missing among the training videos of k-NN and linear probe:")
    for id, reason in found.missing_in_training:
        tell(f"  {id}: {reason}")
    if found.before.note:
        tell(f"note: {found.before.note}")
    tell(f"report: {found.report}")


def _named(missing: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"id": id, "reason": reason} for id, reason in missing]


def _retrieval_line(row: dict[str, Any]) -> dict[str, Any]:
    recalls = {f"R@{k}": f"{row[f'recall_at_{k}']:.1%}" for k in (1, 5, 10)}
    return {"result": row["query"], "weights": row["weights"], **recalls, "median rank": row["median_rank"],
            "mean rank": row["mean_rank"], "queries": row["queries"], "of": row["candidates"]}  # fmt: skip


def _line(row: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: row.get(key) for key in ("top1", "top5", "mean_class_accuracy")}
    shown = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class"}
    cells = {shown[key]: None if value is None else f"{value:.1%}" for key, value in numbers.items()}
    weights = "" if row["weights"] == row["name"] else row["weights"]
    views = f"{row['clips']}x{row['crops']}" if "clips" in row else ""
    return {
        "result": row["name"],
        "weights": weights,
        **cells,
        "videos": row.get("videos"),
        "views": f"{views} bf16" if row.get("precision") == "bf16" else views,
        "note": row.get("note", ""),
    }
