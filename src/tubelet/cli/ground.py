"""`tubelet ground`: when does it happen?"""

from pathlib import Path
from typing import Literal

from tubelet.cli._print import emit_json, note, table, tell


def command(
    video: str,
    question: str = "",
    annotations: str = "",
    /,
    *,
    model: str = "",
    query_video: str = "",
    head: str = "",
    top: int = 5,
    windows: list[float] | None = None,
    overlap: float = 0.5,
    out: str = "",
    step: float | None = None,
    steps: int = 1500,
    cells: int = 64,
    val_split: str = "val",
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    json: bool = False,
) -> int:
    """Answer a question about a video with start and end seconds; train a head for it; judge a model, or answers in a file.

    `tubelet ground VIDEO "a cup is put on a table" --model M`, `tubelet ground VIDEO --query-video CLIP --model M`,
    `tubelet ground fit TABLE --model M --out HEAD`, then `tubelet ground VIDEO "..." --model M --head HEAD`;
    `tubelet ground evaluate TABLE --model M`, and `tubelet ground score ANSWERS.jsonl ANNOTATIONS`.

    A model that was taught with captions (`tubelet align`) takes any sentence. For a classifier the question names one of its
    classes. A head is trained over stored features, on a table with the columns path, text, start and end. Of a long video, the
    same command goes on where it was stopped or killed.

    Parameters
    ----------
    video
        The video file; or the word "fit", "evaluate" or "score".
    question
        What to look for. For "fit" and "evaluate" the table or annotations; for "score" the answers, a JSON object a line with
        qid and pred_relevant_windows, a list of [start, end, score], or pred_saliency_scores, one for every 2 s (highlights);
        moments proposed for dense captions in a .json file, {"results": {VIDEO: [{"timestamp": [start, end]}]}}; or of five-way
        questions the choices, {QUESTION: 0 to 4}.
    annotations
        For "score": ActivityNet-Captions, TACoS, Charades-STA, QVHighlights or DiDeMo as they come; EgoSchema or NExT-QA
        for five-way questions.
    model
        Run folder, model folder or checkpoint.
    query_video
        A video or picture to look for, in place of words.
    head
        A folder that `tubelet ground fit` made, of the same model.
    top
        How many answers.
    windows
        Lengths of the windows in seconds. Default: 1, 2 and 4 times what the model's clip spans; for "fit" once.
    overlap
        Of two answers whose intersection over union is above this, the better one is kept.
    out
        For "fit": the folder to write. Default: runs/ground-head.
    step
        For "fit": seconds from one window to the next. Default: a quarter of a window.
    steps
        For "fit": training steps.
    cells
        For "fit": the equal parts into which a video is cut; answers begin and end at their borders.
    val_split
        For "fit": the head is judged on rows of this split, and learns from those that are neither of it nor of val or test.
        For "evaluate": only rows of this split are asked, or all where none is of it.
    device
        "auto", "cpu" or "cuda".
    precision
        "bf16" computes in half of the bits: faster where the processor multiplies in it, and answers differ a little.
    json
        Print JSON.
    """
    if video == "score":
        return _score(question, annotations, json)
    if not model:
        from tubelet.errors import ConfigError

        raise ConfigError("no model named: tubelet ground VIDEO QUESTION --model M")
    if video == "evaluate":
        return _evaluate(model, question, head, windows or [], overlap, val_split, device, precision, json)
    if video == "fit":
        return _fit(
            model, question, out or "runs/ground-head", windows or [], step, steps, cells, val_split, device, precision, json
        )
    return _answer(model, video, question, query_video, head, top, windows or [], overlap, device, precision, json)


def _answer(
    model: str, video: str, question: str, query_video: str, head: str, top: int, windows: list[float], overlap: float,
    device: str, precision: str, json: bool,
) -> int:  # fmt: skip
    from tubelet.cli._progress import bar
    from tubelet.errors import ConfigError
    from tubelet.ground import check_answers, ground
    from tubelet.ground_head import answer, load
    from tubelet.ground_store import Stored
    from tubelet.scan import Kept, scan
    from tubelet.train.device import choose_device
    from tubelet.video.stream import Windows
    from tubelet.weights.load import load_model

    if bool(question.strip()) == bool(query_video):
        raise ConfigError('ask one question: tubelet ground VIDEO "what to look for", or --query-video CLIP')
    if head and query_video:
        raise ConfigError("--head answers words, and --query-video asks with a video: leave one of them out")
    check_answers(top, overlap)
    network, kept = load_model(model, choose_device(device), precision), Kept.in_cache(note)
    with bar("windows") as on_window:
        if head:
            taught = load(head, network)
            kind = Windows(window_seconds=taught.config.window, step_seconds=taught.config.step)
            seen = scan(network, video, [kind], on_window=on_window, kept=kept)
            spans = answer(taught, network, Stored(seen.seconds, seen.embeddings, seen.duration), question, top, overlap)
        else:
            asked: str | Path = Path(query_video) if query_video else question
            spans = ground(network, video, asked, top, windows, overlap, on_window=on_window, kept=kept)
    if json:
        emit_json({"video": video, "question": question or query_video, "spans": [span.to_dict() for span in spans]})
        return 0
    tell(f"{video}: {question or query_video}")
    table([{"start": f"{s.start_seconds:.2f}", "end": f"{s.end_seconds:.2f}", "score": f"{s.score:.3f}"} for s in spans])
    return 0


def _fit(
    model: str, data: str, out: str, windows: list[float], step: float | None, steps: int, cells: int, val_split: str,
    device: str, precision: str, json: bool,
) -> int:  # fmt: skip
    from tubelet import datasets
    from tubelet.cli._progress import bar
    from tubelet.errors import ConfigError, DataError
    from tubelet.ground import clip_seconds, questions, timed
    from tubelet.ground_head import HeadConfig, fit, judge, prior, save
    from tubelet.ground_store import store
    from tubelet.scan import Kept
    from tubelet.train.device import choose_device
    from tubelet.weights.load import load_model

    if not data:
        raise ConfigError("no data named: tubelet ground fit TABLE --model M")
    if len(windows) > 1:
        raise ConfigError(f"a head is trained over windows of one length, got {len(windows)}: give one --windows")
    network = load_model(model, choose_device(device), precision)
    examples = timed(datasets.read(data).examples)
    train = [one for one in examples if one.split not in (val_split, "val", "test")]
    if not train:
        raise DataError(f"{data}: every row is of the split {val_split!r}, val or test: there is nothing to learn from")
    missing: list[tuple[str, str]] = []
    videos = list(dict.fromkeys(one.path for one in examples))
    window = windows[0] if windows else clip_seconds(network, videos)
    config = HeadConfig(window=window, step=window / 4 if step is None else step, cells=cells, steps=steps)
    with bar("videos") as move:
        stored = store(
            network, videos, config.window, config.step, Path(out) / "features.parquet",
            lambda done: move(done, len(videos)), lambda *pair: missing.append(pair), Kept.in_cache(note),
        )  # fmt: skip
    for path, reason in missing:
        note(f"left out: {path}: {reason}")
    held = [one for one in examples if one.split == val_split and one.path in stored]
    with bar("steps") as move:
        taught = fit(network, train, stored, config, lambda done, _: move(done, steps))
    save(taught, network, out)
    learned = sum(one.path in stored for one in train)
    rows = {"head": judge(taught, network, held, stored), "prior": prior(train, held, stored)} if held else {}
    if json:
        emit_json({"out": out, "questions": learned, "videos": len(stored), "missing": len(missing), "held_out": rows})
        return 2 if missing else 0
    tell(f"{out}: a head taught by {learned} questions about {len(stored)} videos")
    if rows:
        tell(
            f"on {len(questions(held))} questions of the split {val_split!r}; "
            "prior: always the mean place of the training spans of that label"
        )
        _table(rows)
    return 2 if missing else 0


def _evaluate(
    model: str,
    data: str,
    head: str,
    windows: list[float],
    overlap: float,
    val_split: str,
    device: str,
    precision: str,
    json: bool,
) -> int:
    from tubelet import datasets
    from tubelet.cli._progress import bar
    from tubelet.errors import ConfigError
    from tubelet.ground import judge
    from tubelet.train.device import choose_device
    from tubelet.weights.load import load_model

    if not data:
        raise ConfigError("give both: tubelet ground evaluate TABLE --model M")
    if head:
        raise ConfigError("--head: `tubelet ground fit` judges a head when it is made; evaluate judges a model without one")
    network = load_model(model, choose_device(device), precision)
    examples = datasets.read(data).examples
    held = [one for one in examples if one.split == val_split] or examples
    videos = len({one.path for one in held})
    missing: list[tuple[str, str]] = []
    with bar("videos") as move:
        rows = judge(network, held, windows, overlap, lambda done: move(done, videos), lambda *pair: missing.append(pair))
    for path, reason in missing:
        note(f"left out: {path}: {reason}")
    if json:
        emit_json({**rows, "videos": videos, "missing": [path for path, _ in missing]})
        return 2 if missing else 0
    tell(f"{rows['model']['questions']:g} questions about {videos - len(missing)} videos; chance: a window drawn at random")
    _table(rows)
    return 2 if missing else 0


def _table(rows: dict[str, dict[str, float]]) -> None:
    shown = ("R1@0.3", "R1@0.5", "R1@0.7", "R5@0.5", "mIoU", "mAP")
    table([{"": name, **{key: f"{found[key]:.1%}" if key in found else None for key in shown}} for name, found in rows.items()])


def _score(answers: str, annotations: str, json: bool) -> int:
    from tubelet import datasets
    from tubelet.errors import ConfigError
    from tubelet.evaluate.grounding import score_choices, score_file, score_proposals

    if not answers or not annotations:
        raise ConfigError("give both: tubelet ground score ANSWERS.jsonl ANNOTATIONS")
    if datasets.holds_questions(annotations):
        found = score_choices(answers, datasets.questions(annotations))
    elif Path(answers).suffix.lower() == ".json":
        found = score_proposals(answers, datasets.queries(annotations))
    else:
        found = score_file(answers, datasets.queries(annotations))
    if json:
        emit_json(found)
        return 0
    counts = ("questions", "videos", "answered", "highlight questions")
    table([{"metric": name, "value": f"{value:g}" if name in counts else f"{value:.2%}"} for name, value in found.items()])
    return 0
