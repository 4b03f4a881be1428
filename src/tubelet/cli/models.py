"""`tubelet models`: what can be built, with its published size."""

from tubelet.cli._print import emit_json, table, tell
from tubelet.cli._progress import bar


def command(*names: str, json: bool = False) -> None:
    """List every model, or those named, with its size, cost, reach and the clips of its paper.

    GMAC: 10^9 multiply-adds of one clip. Field: frames x rows x columns that a convolution's last value sees. Pairs: of a query
    and a key in one block of a Transformer.

    Parameters
    ----------
    names
        Models or families, for instance `videomae_base` or `swin`; all of them take some 15 seconds to count.
    json
        Print a JSON list with `name`, `params`, `gmacs`, `frames`, ... instead of a table.
    """
    from tubelet.models import list_models

    with bar("models") as seen:
        rows = list_models(names, seen)
    if json:
        emit_json(rows)
        return
    shown = [
        {
            **row,
            "params": f"{row['params'] / 1e6:.2f} M",
            "gmacs": f"{row['gmacs']:.2f}",
            "receptive_field": "x".join(map(str, row["receptive_field"])) if row["receptive_field"] else None,
            "attended_pairs": f"{row['attended_pairs']:,}" if row["attended_pairs"] else None,
        }
        for row in rows
    ]
    table(shown, {key: HEADINGS.get(key, key) for key in shown[0] if key != "note"})
    for row in rows:
        if row["note"]:
            tell(f"{row['name']}: {row['note']}")


HEADINGS = {"gmacs": "GMAC", "receptive_field": "field", "attended_pairs": "pairs", "stride_frames": "stride", "size": "pixels"}
