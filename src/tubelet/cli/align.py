"""`tubelet align`: teach a model to match videos and sentences."""

from typing import Annotated

from cyclopts import Parameter

FLAGS = ("out", "config", "model", "text", "epochs", "freeze", "seed", "print_config", "json")


def command(
    *model_and_data: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: str = "",
    config: str = "",
    model: str = "",
    text: str = "",
    epochs: float | None = None,
    freeze: str = "",
    seed: int | None = None,
    print_config: bool = False,
    json: bool = False,
) -> None:
    """Teach a model to match videos and their captions (contrastive learning); the same command resumes.

    Afterwards a sentence finds videos: `tubelet evaluate` measures how well. Settings that fit the data and the machine are chosen;
    each can be changed as a dotted flag, for example `--optim.epochs 50 --model.options.pool attention`. `--print-config` shows all
    of them.

    Parameters
    ----------
    model_and_data
        The model (a video model, which becomes the video tower, or one that was aligned before; `none` for random first values),
        then tables with a column `text` or `caption`. Some videos are held out for validation: see `--data.val`,
        `--data.val-split`, `--data.val-fraction`.
    out
        The run folder. Default: runs/DATA-align.
    config
        A YAML file of settings; flags win over it.
    model
        A name from `tubelet models`, for training from random first values: a video model is the video tower.
    text
        A folder with a CLIP or a sentence-embedding model in transformers' layout: the text tower begins as its. Default: a small
        one with a tokenizer, both learned from the captions.
    epochs
        How often every video is decoded.
    freeze
        "video", "text" or "both": towers that keep their weights (LiT). What pools and projects learns.
    seed
        Every random choice follows from it.
    print_config
        Print the whole configuration as YAML and stop.
    json
        Print the paths of run, model and report, the steps and the last numbers of the log as JSON.
    """
    from tubelet.cli import _run, _settings
    from tubelet.errors import ConfigError
    from tubelet.recipes import aligning

    paths, dotted = _settings.split(model_and_data, FLAGS)
    if not paths:
        raise ConfigError("no model named: tubelet align MODEL DATA..., with MODEL a video model, or `none`")
    source = paths.pop(0)
    named = {
        "model.name": model, "init_text": text, "optim.epochs": epochs, "run.seed": seed, "model.options.freeze": freeze,
    }  # fmt: skip
    settings = _settings.merged(config, named, dotted)
    _run.carry_out(aligning(None if source == "none" else source, paths, out, settings), print_config, json)
