"""`tubelet demo`: the whole job on made-up videos."""

from pathlib import Path

from tubelet.cli._print import note
from tubelet.cli._results import print_evaluation


def command(*, out: str = "", full: bool = False, seed: int = 0, json: bool = False) -> None:
    """Make a video set that differs only by motion, pretrain, fine-tune and evaluate on it; the same command continues.

    Parameters
    ----------
    out
        Folder for the videos, the runs and the report. Default: runs/demo, or runs/demo-full.
    full
        All twelve motions and a larger model: over an hour on 2 cores instead of ten minutes.
    seed
        Every random choice follows from it, the videos included.
    json
        Print a JSON object instead of a table.
    """
    from tubelet import demo
    from tubelet.recipes.demo import full as full_demo
    from tubelet.recipes.demo import quick

    folder = Path(out or ("runs/demo-full" if full else "runs/demo"))
    print_evaluation(demo.run((full_demo if full else quick)(folder, seed), note), json)
