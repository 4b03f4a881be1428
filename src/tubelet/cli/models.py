"""`tubelet models`: what can be built, with its published size."""

from tubelet.cli._print import emit_json, table


def command(*, json: bool = False) -> None:
    """List every model with its parameters, multiply-adds and clip size.

    Parameters
    ----------
    json
        Print a JSON list with `name`, `params`, `gmacs`, `frames`, `size`, ... instead of a table.
    """
    from tubelet.models import list_models

    rows = list_models()
    if json:
        emit_json(rows)
        return
    shown = [{**row, "params": f"{row['params'] / 1e6:.2f} M", "gmacs": f"{row['gmacs']:.2f}"} for row in rows]
    table(shown, {key: HEADINGS.get(key, key) for key in shown[0]})


HEADINGS = {"gmacs": "GMAC", "size": "pixels"}
