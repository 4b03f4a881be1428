"""`tubelet predict`: what is in these videos?"""

from tubelet.cli._print import emit_json, note


def command(
    model: str, *videos: str, top: int = 5, clips: int = 5, crops: int | None = None, device: str = "auto", json: bool = False
) -> int:
    """Print the most probable classes of each video, the times that were looked at and the seconds it took.

    Parameters
    ----------
    model
        Run folder, model folder or checkpoint of a model that was taught classes.
    videos
        Video files. One that cannot be read is named; the others are still answered, and the exit code is 2.
    top
        How many classes to print.
    clips
        Windows in time per video.
    crops
        Crops of each window, averaged like the windows. Default: 3, or 1 for a model that sees the whole frame squeezed.
    device
        "auto", "cpu" or "cuda".
    json
        Print a JSON list with one object per video instead.
    """
    from tubelet.classify import predict
    from tubelet.errors import DataError, VideoError, printable
    from tubelet.train.device import choose_device
    from tubelet.weights.load import load_model

    if not videos:
        raise DataError("no video given: tubelet predict MODEL VIDEO...")
    network = load_model(model, choose_device(device))
    answers, failed = [], 0
    for path in videos:
        try:
            answer = predict(network, path, clips, crops, top)
        except VideoError as error:
            failed += 1
            note(f"error: {error}")
            answers.append({"path": path, "error": str(error)})
            continue
        answers.append(answer.to_dict())
        if not json:
            print(f"{printable(path)}  ({answer.seconds_taken:.2f} s)")
            for name, probability in answer.top:
                print(f"  {probability:6.1%}  {name}")
            spans = ", ".join(f"{clip[0]:.2f}-{clip[-1]:.2f}" for clip in answer.seconds)
            print(
                f"  looked at seconds {spans}; {len(answer.seconds[0])} frames each, {answer.crops} crop{'s' * (answer.crops > 1)}"
            )
            for warning in answer.warnings:
                print(f"  note: {warning}")
    if json:
        emit_json(answers)
    return 2 if failed else 0
