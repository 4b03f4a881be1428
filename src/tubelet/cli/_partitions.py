"""`--engine` of the commands that answer about many videos: a folder of partitions instead of one file or printed lines."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tubelet.cli._print import emit_json, note, tell

if TYPE_CHECKING:
    from tubelet.partitions import Answer


def answer_all(
    engine: str,
    model: str,
    data: Sequence[str],
    out: str,
    asked: Mapping[str, Any],
    answer: "Answer",
    size: int,
    device: str,
    precision: str,
    json: bool,
) -> int:
    """Fill the folder `out`, print what it holds, and give the exit code: 0, for broken videos are rows and no failure (a
    code other than 0 would make torchrun stop the other ranks)."""
    from tubelet import datasets, partitions
    from tubelet.features import fingerprint
    from tubelet.train.device import choose_device
    from tubelet.weights.load import load_model

    examples = datasets.read_many(data).examples
    rank, world = 0, 1
    if engine == "torchrun":
        rank, world, device = partitions.under_torchrun(device)
    place = choose_device(device)
    network = load_model(model, place, precision)
    asked = {**asked, "precision": network.precision, "model": network.name, "fingerprint": fingerprint(network)}
    plan = partitions.begin(out, examples, asked, size)

    def say(line: str) -> None:
        note(line if world == 1 else f"rank {rank}: {line}")

    if engine == "ray":
        made = partitions.fill_with_ray(plan, partial(load_model, model, place, precision), answer, place.type == "cuda", say)
    else:
        made = partitions.fill(plan, network, answer, rank, world, say)
    counts = plan.counts()
    if json:
        emit_json({"out": out, "videos": len(examples), **counts, "made": made})
    else:
        tell(f"{out}: {counts['finished']} of {counts['partitions']} partitions, {made} of them made now by this process")
        tell(f"{counts['rows']} rows in {out}/results, {counts['missing']} videos that cannot be read in {out}/errors")
    return 0
