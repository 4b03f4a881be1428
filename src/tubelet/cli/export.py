"""`tubelet export`: a model leaves PyTorch."""

from typing import Literal

from tubelet.cli._print import emit_json, note, table, tell


def command(
    model: str,
    out: str,
    *,
    to: Literal["torch", "onnx", "openvino"] = "onnx",
    int8: bool = False,
    dynamic_batch: bool = True,
    check: list[str] | None = None,
    limit: int = 200,
    json: bool = False,
) -> None:
    """Write a model as one graph that takes uint8 frames and gives probabilities, and compare the two.

    Normalising is in the graph; `tubelet predict`, `embed` and `evaluate` take the folder that is written.

    Parameters
    ----------
    model
        Run folder, model folder, checkpoint, or weights of others.
    out
        The folder to write.
    to
        "torch" (torch.export), "onnx" (run by onnxruntime) or "openvino".
    int8
        Keep the weights of matrix products in 8 bits (onnx).
    dynamic_batch
        Take any number of clips at once; with `--no-dynamic-batch` one.
    check
        Labelled videos (folders or tables) whose clips are compared; without them clips of noise are.
    limit
        Take at most so many of them.
    json
        Print JSON.
    """
    from tubelet import datasets
    from tubelet.errors import ConfigError
    from tubelet.views import each_view
    from tubelet.weights.export import export
    from tubelet.weights.load import load_model, refuse_graph

    if limit < 1:
        raise ConfigError(f"--limit is {limit}: it must be 1 or more videos")
    refuse_graph(model)
    network = load_model(model)
    clips, labels = [], []
    if check:
        found = datasets.labelled(datasets.read_many(check), least_classes=1)
        names = {name: number for number, name in enumerate(network.class_names)}
        # Evenly from all classes, as a data set is often in their order.
        for example in found.examples[:: max(1, len(found.examples) // limit)][:limit]:
            clips.append(next(iter(each_view(example.path, network.spec, 1, 1))).frames)
            if example.label in names:
                labels.append(names[example.label])
        if len(labels) < len(clips):
            note("some of these videos are of classes that the model does not know: accuracy is not compared")
            labels = []
    parity = export(network, out, to, int8, dynamic_batch, clips, labels)
    if int8 and not check:
        note("8 bits were compared on noise only: --check VIDEOS refuses a graph that tells other classes than the model")
    if json:
        emit_json({"out": out, "to": to, "int8": int8, "dynamic_batch": dynamic_batch, **vars(parity)})
        return
    tell(f"wrote {out}")
    eager, graph = parity.milliseconds
    name = to + (" int8" if int8 else "")
    accuracy = parity.accuracy or (None, None)
    table(
        [
            {"name": "PyTorch", "ms": eager, "speed": 1.0, "top1": accuracy[0]},
            {"name": name, "ms": graph, "speed": eager / graph, "difference": f"{parity.difference:.1e}",
             "agreement": parity.agreement, "top1": accuracy[1]},
        ],
        {"name": "", "ms": "ms a clip", "speed": "speed", "difference": "difference", "agreement": "same class", "top1": "top-1"},
    )  # fmt: skip
    tell(f"{parity.clips} clips{'' if check else ' of noise'}, {parity.threads} threads, one clip at a time")
