"""`tubelet pretrain`: learn from unlabelled videos."""

from typing import Annotated

from cyclopts import Parameter

FLAGS = ("out", "config", "objective", "model", "epochs", "init", "seed", "print_config", "json")


def command(
    *data: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: str = "",
    config: str = "",
    objective: str = "",
    model: str = "",
    epochs: float | None = None,
    init: str = "",
    seed: int | None = None,
    print_config: bool = False,
    json: bool = False,
) -> None:
    """Learn from a folder of videos without labels (masked autoencoding); the same command resumes.

    Settings that fit the data and the machine are chosen; each can be changed as a dotted flag, for example
    `--optim.base-lr 1e-3 --clip.size 96`. `--print-config` shows all of them.

    Parameters
    ----------
    data
        Folders or tables of videos. All of them are learned from, unless `--data.train-split` names a split.
    out
        The run folder. Default: runs/DATA-pretrain.
    config
        A YAML file of settings; flags win over it.
    objective
        What is learned: "masked" (default), "distill", "next_token", "contrastive" or "combined".
    model
        A name from `tubelet models`.
    epochs
        How often every video is decoded.
    init
        A model to start from: run folder, model folder or checkpoint.
    seed
        Every random choice follows from it.
    print_config
        Print the whole configuration as YAML and stop.
    json
        Print the paths of run, model and report, the steps and the last numbers of the log as JSON.
    """
    from tubelet.cli import _run, _settings
    from tubelet.recipes import pretraining

    paths, dotted = _settings.split(data, FLAGS)
    named = {"objective": objective, "model.name": model, "optim.epochs": epochs, "init": init, "run.seed": seed}
    settings = _settings.merged(config, named, dotted)
    run = pretraining(paths, out, settings)
    _settings.check_read(run.objective, dotted)
    _run.carry_out(run, print_config, json)
