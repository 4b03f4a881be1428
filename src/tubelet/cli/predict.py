"""`tubelet predict`: what is in these videos?"""

from typing import TYPE_CHECKING, Literal

from tubelet.cli._print import emit_json, note, tell

if TYPE_CHECKING:
    from tubelet.predict import Prediction


def command(
    model: str,
    *videos: str,
    top: int = 5,
    clips: int = 5,
    crops: int | None = None,
    frames: bool = False,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    engine: Literal["local", "torchrun", "ray"] | None = None,
    out: str = "predictions",
    partition_size: int = 1024,
    batch_size: int = 8,
    workers: int | None = None,
    json: bool = False,
) -> int:
    """Print the most probable classes of each video, the times that were looked at and the seconds it took.

    For very many videos there is `--engine`: a folder of Parquet partitions (id, path, start_seconds, end_seconds, classes,
    probabilities) that several processes fill, and that the same command completes after a stop.

    Parameters
    ----------
    model
        Run folder, model folder or checkpoint of a model that was taught classes.
    videos
        Video files; with --engine folders and tables too. One that cannot be read is named; the others are still answered,
        and the exit code is 2.
    top
        How many classes to print.
    clips
        Windows in time per video.
    crops
        Crops of each window, averaged like the windows. Default: 3, or 1 for a model that sees the whole frame squeezed.
    frames
        Also print the most probable class of every frame, of a model that tells one a frame (cnn_lstm_resnet18_per_frame).
    device
        "auto", "cpu" or "cuda".
    precision
        "bf16" computes in half of the bits: faster where the processor multiplies in it, and answers differ a little.
    engine
        Write a folder: "local" in this process, "torchrun" in every process that torchrun starts, "ray" on a Ray cluster.
        Finished partitions are not done again, broken videos are rows of OUT/errors, and the exit code is 0.
    out
        The folder that --engine writes.
    partition_size
        Videos to a partition of it.
    batch_size
        Clips per forward pass with --engine.
    workers
        Threads that decode with --engine. Default: one per core.
    json
        Print a JSON list with one object per video instead; with --engine one object that says what was written.
    """
    from functools import partial

    from tubelet.cli._partitions import answer_all
    from tubelet.errors import ConfigError, DataError, VideoError
    from tubelet.predict import predict, predict_table
    from tubelet.train.device import choose_device
    from tubelet.weights.load import load_model

    if not videos:
        raise DataError("no video given: tubelet predict MODEL VIDEO...")
    if engine and frames:
        raise ConfigError("--frames is not kept by --engine, whose rows are of whole videos: leave one of them out")
    if engine:
        table = partial(predict_table, clips=clips, crops=crops, top=top, batch_size=batch_size, workers=workers)
        asked = {"what": "predict", "clips": clips, "crops": crops, "top": top}
        return answer_all(engine, model, videos, out, asked, table, partition_size, device, precision, json)
    network = load_model(model, choose_device(device), precision)
    answers, failed = [], 0
    for path in videos:
        try:
            answer = predict(network, path, clips, crops, top, frames=frames)
        except VideoError as error:
            failed += 1
            note(f"error: {error}")
            answers.append({"path": path, "error": str(error)})
            continue
        answers.append(answer.to_dict())
        if not json:
            _print(path, answer)
    if json:
        emit_json(answers)
    return 2 if failed else 0


def _print(path: str, answer: "Prediction") -> None:
    """For a person: the classes, and what they were told from."""

    tell(f"{path}  ({answer.seconds_taken:.2f} s)")
    for name, probability in answer.top:
        tell(f"  {probability:6.1%}  {name}")
    spans = ", ".join(f"{clip[0]:.2f}-{clip[-1]:.2f}" for clip in answer.seconds)
    tell(f"  looked at seconds {spans}; {len(answer.seconds[0])} frames each, {answer.crops} crop{'s' * (answer.crops > 1)}")
    for clip in answer.frames:
        for second, name, probability in clip:
            tell(f"  {second:9.2f} s  {probability:6.1%}  {name}")
    for warning in answer.warnings:
        tell(f"  note: {warning}")
