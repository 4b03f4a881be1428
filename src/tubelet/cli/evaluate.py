"""`tubelet evaluate`: how good a model is, beside what it must beat."""

from typing import Literal

from tubelet.cli._print import note
from tubelet.cli._results import print_evaluation


def command(
    model: str,
    *data: str,
    split: str = "",
    clips: int = 5,
    crops: int | None = None,
    knn: bool = True,
    linear_probe: bool = True,
    svm: bool = False,
    baseline: bool = True,
    out: str = "",
    batch_size: int = 8,
    workers: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    json: bool = False,
) -> None:
    """Measure a model on labelled videos, beside its baselines, and write report.html.

    A model that was aligned with text is measured on captioned videos: does a sentence find its video, and a video its sentence?

    Videos that cannot be read are named, counted and in no number; the exit code is 0 as long as there is a result.

    Parameters
    ----------
    model
        Run folder, model folder or checkpoint.
    data
        Folders or tables of labelled videos. Default: what the run was trained on, of which it is judged on the part
        held out.
    split
        Name of the split to evaluate ("val", "test", "fold0", ...), or "all" for every video.
    clips
        Windows in time per video.
    crops
        Crops of each window, averaged like the windows. Default: 3, or 1 for a model that sees the whole frame squeezed.
    knn
        k-nearest neighbours on frozen features.
    linear_probe
        Logistic regression on frozen features.
    svm
        A linear SVM on frozen features (pip install 'tubelet[svm]'); of a two-stream model it fuses both streams.
    baseline
        Train the same model from random initialisation on the same budget, without layer decay, which is made for
        pretrained weights (in RUN/random_init, resumable).
    out
        Folder of the report. Default: the model's run folder, else runs/evaluate_MODEL.
    batch_size
        Views per forward pass.
    workers
        Threads that decode. Default: one per core.
    device
        "auto", "cpu" or "cuda".
    precision
        "bf16" computes in half of the bits: faster where the processor multiplies in it, and answers differ a little.
    json
        Print a JSON object instead of tables.
    """
    from tubelet.evaluate.run import Settings, evaluate
    from tubelet.evaluate.sides import data_of
    from tubelet.train.device import choose_device

    asked = {"linear probe": linear_probe, "k-NN": knn, "linear SVM": svm}
    methods = tuple(name for name, wanted in asked.items() if wanted)
    settings = Settings(split, clips, crops, methods, baseline, batch_size, workers, str(choose_device(device)), precision)
    found = evaluate(model, data or data_of(model), out or None, settings, note)
    print_evaluation(found, json)
