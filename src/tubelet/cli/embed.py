"""`tubelet embed`: videos as vectors in a Parquet file, or in a folder of them."""

from typing import Literal

from tubelet.cli._print import emit_json, note, tell


def command(
    model: str,
    *data: str,
    out: str = "",
    per: Literal["video", "clip", "minute"] = "video",
    clips: int = 5,
    batch_size: int = 8,
    workers: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    engine: Literal["local", "torchrun", "ray"] | None = None,
    partition_size: int = 1024,
    json: bool = False,
) -> int:
    """Write a vector for every video, or for every clip, with its id and its start and end seconds.

    A video that cannot be read is named; the others are still written, and the exit code is 2. For very many videos there is
    `--engine`: a folder of Parquet partitions that several processes fill, and that the same command completes after a stop.

    Parameters
    ----------
    model
        Run folder, model folder or checkpoint.
    data
        Video files, folders or tables.
    out
        The Parquet file to write: id, path, start_seconds, end_seconds, vector. Default: features.parquet, and the folder
        features with --engine.
    per
        "video": one vector per video, the mean over its clips. "clip": one per clip. "minute": one per minute, the mean over all
        of its windows, of unit length.
    clips
        Windows in time per video, spread evenly.
    batch_size
        Clips per forward pass.
    workers
        Threads that decode. Default: one per core.
    device
        "auto", "cpu" or "cuda".
    precision
        "bf16" computes in half of the bits: faster where the processor multiplies in it, and answers differ a little.
    engine
        Write a folder: "local" in this process, "torchrun" in every process that torchrun starts, "ray" on a Ray cluster.
        Finished partitions are not done again, broken videos are rows of OUT/errors, and the exit code is 0.
    partition_size
        Videos to a partition.
    json
        Print a JSON object that says what was written.
    """
    from functools import partial

    from tubelet import datasets
    from tubelet.cli._partitions import answer_all
    from tubelet.feature_store import embed_table, write_parquet
    from tubelet.features import embed
    from tubelet.train.device import choose_device
    from tubelet.weights.load import load_model

    if engine:
        table = partial(embed_table, per=per, clips=clips, batch_size=batch_size, workers=workers)
        asked = {"what": "embed", "per": per, "clips": clips}
        return answer_all(engine, model, data, out or "features", asked, table, partition_size, device, precision, json)
    out = out or "features.parquet"
    network = load_model(model, choose_device(device), precision)
    examples = datasets.read_many(data).examples
    missing: list[dict[str, str]] = []

    def on_missing(id: str, reason: str) -> None:
        missing.append({"id": id, "reason": reason})
        note(f"left out: {id}: {reason}")

    rows = write_parquet(out, embed(network, examples, per, clips, batch_size, workers, on_missing), network, per)
    if json:
        emit_json({"out": out, "rows": rows, "width": network.width, "per": per, "videos": len(examples), "missing": missing})
    else:
        tell(f"{out}: {rows} vectors of {network.width} values")
        tell(f"{len(examples) - len(missing)} of {len(examples)} videos")
    return 2 if missing else 0
