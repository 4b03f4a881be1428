"""How an evaluation is printed, by every command that makes one."""

from typing import TYPE_CHECKING, Any

from tubelet.cli._print import emit_json, table

if TYPE_CHECKING:
    from tubelet.evaluate.run import Evaluation


def print_evaluation(found: "Evaluation", json: bool) -> None:
    """The results table, what was missing and where the report is; or all of it as one JSON object."""
    if json:
        emit_json(
            {
                "results": found.results,
                "asked": found.asked,
                "missing": [{"id": id, "reason": reason} for id, reason in found.missing],
                "classes": list(found.classes),
                "per_class": found.per_class,
                "report": str(found.report),
            }
        )
        return
    table([_line(row) for row in found.results])
    evaluated = found.asked - len(found.missing)
    print(f"\n{evaluated} of {found.asked} videos evaluated" + (", missing:" if found.missing else ""))
    for id, reason in found.missing:
        print(f"  {id}: {reason}")
    print(f"report: {found.report}")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: row.get(key) for key in ("top1", "top5", "mean_class_accuracy")}
    shown = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class"}
    cells = {shown[key]: None if value is None else f"{value:.1%}" for key, value in numbers.items()}
    weights = "" if row["weights"] == row["name"] else row["weights"]
    return {
        "result": row["name"],
        "weights": weights,
        **cells,
        "videos": row.get("videos"),
        "note": row.get("note", ""),
    }
