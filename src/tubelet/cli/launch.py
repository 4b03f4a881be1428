"""`tubelet launch`: the same command on several processes of this machine."""

import logging
import os


def command(
    *words: str,
    processes: int = 0,
    restarts: int = 0,
) -> int:
    """Train with several processes of this machine, one for each GPU: `tubelet launch --processes 2 -- pretrain DIR`.

    A short way to call torchrun. The batch size stays that of the whole run, and the result too, but for rounding.

    Parameters
    ----------
    words
        After `--`: the command and its arguments, as they would be without launch.
    processes
        How many. Default: one for each GPU, else one.
    restarts
        How often all of them are started again from the last checkpoint when one has died.
    """
    import torch
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from tubelet.cli import commands
    from tubelet.errors import ConfigError
    from tubelet.find import choose

    if not words:
        raise ConfigError("no command to launch: for example `tubelet launch --processes 2 -- pretrain DIR`")
    choose(words[0], commands(), "command")
    if processes < 0 or restarts < 0:
        raise ConfigError(f"--processes is {processes} and --restarts {restarts}: both must be 0 or more")
    processes = processes or max(1, torch.cuda.device_count())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # or restarted processes meet the keys of dead ones
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").addFilter(_is_news)
    options = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    try:
        run.main([*options, "-m", "tubelet", *words])
    except ChildFailedError as error:  # it has said why
        return max(1, error.get_first_failure()[1].exitcode)
    except SignalException as error:  # the processes were told, and have saved
        return 128 + error.sigval
    return 0


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of torchrun's says more than the processes have: one that ended by itself has said why, and those that
    are ended with it need not be named. A signal kills without a word."""
    if record.levelno < logging.ERROR:
        return False
    code = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return not (str(record.msg).startswith("failed (exitcode") and isinstance(code, int) and code >= 0)
