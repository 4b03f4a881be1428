"""`tubelet finetune`: teach a model classes."""

from typing import Annotated

from cyclopts import Parameter

FLAGS = ("out", "config", "model", "epochs", "freeze", "from_scratch", "seed", "print_config", "json")


def command(
    *model_and_data: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: str = "",
    config: str = "",
    model: str = "",
    epochs: float | None = None,
    freeze: bool = False,
    from_scratch: bool = False,
    seed: int | None = None,
    print_config: bool = False,
    json: bool = False,
) -> None:
    """Teach a pretrained model the classes of labelled videos; the same command resumes.

    Settings that fit the data and the machine are chosen; each can be changed as a dotted flag, for example
    `--optim.epochs 50 --data.val-split fold0`. `--print-config` shows all of them.

    Parameters
    ----------
    model_and_data
        The model (run folder, model folder or checkpoint; `none` for random first values), then folders or tables of
        labelled videos. Some are held out for validation: see `--data.val`, `--data.val-split`, `--data.val-fraction`.
    out
        The run folder. Default: runs/DATA-finetune.
    config
        A YAML file of settings; flags win over it.
    model
        A name from `tubelet models`, for training from random first values.
    epochs
        How often every video is decoded.
    freeze
        Train only the head.
    from_scratch
        Start from random first values; then only data are named.
    seed
        Every random choice follows from it.
    print_config
        Print the whole configuration as YAML and stop.
    json
        Print the paths of run, model and report, the steps and the last numbers of the log as JSON.
    """
    from tubelet.cli import _run, _settings
    from tubelet.errors import ConfigError
    from tubelet.recipes import fine_tuning

    paths, dotted = _settings.split(model_and_data, FLAGS)
    if not paths and not from_scratch:
        raise ConfigError("no model named: tubelet finetune MODEL DATA..., with MODEL a run folder, or `none`")
    source = "none" if from_scratch else paths.pop(0)
    named = {"model.name": model, "optim.epochs": epochs, "run.seed": seed, "optim.freeze": freeze or None}
    settings = _settings.merged(config, named, dotted)
    _run.carry_out(fine_tuning(None if source == "none" else source, paths, out, settings), print_config, json)
