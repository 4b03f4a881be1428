"""The `tubelet` command. One file of this folder is one sub-command: its function `command`, named like the file.

`tubelet --help` imports none of them (torch takes seconds to import): a command's summary and arguments are read from
its source text, and the module is imported when the command is called.
"""

import ast
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from tubelet import __version__
from tubelet.allocator import keep_freed
from tubelet.errors import TubeletError, printable
from tubelet.find import did_you_mean, names

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, what the user may keep there, what a file may hold
SUMMARY = "From a folder of videos to a trained, evaluated, explained video model."


def commands() -> dict[str, str]:
    """Every command and the module it lives in: the file's name, with `-` for `_`."""
    return {name.replace("_", "-"): f"tubelet.cli.{name}" for name in names("tubelet.cli")}


def make_app() -> App:
    """The application with every command registered; a module is imported when its command is called."""
    app = App(
        name="tubelet",
        help=SUMMARY,
        version=__version__,
        help_format="markdown",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, module in commands().items():
        usage, summary = _described(name, module)
        # no --empty-... flags beside those that take several values
        plain = Parameter(negative_iterable=())
        app.command(f"{module}:command", name=name, help=summary, usage=usage, default_parameter=plain)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 2 a mistake the user can mend (one line says which), 130
    stopped with Ctrl-C or SIGTERM. A command may return its own exit code; an error of ours keeps its traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_streams()
    keep_freed()
    try:
        with _sigterm_stops(), _processes():
            code = make_app()(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        message = _one_line(error, arguments)
    except TubeletError as error:
        message = printable(" ".join(str(error).split()))
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except BrokenPipeError:
        _hand_over(sys.stdout)  # whose reader (`| head`) has gone
        return 0
    except OSError as error:
        if error.errno not in FULL:
            raise
        _hand_over(sys.stdout)  # which may be the one that is full
        place = f"{error.filename}: " if error.filename else ""
        message = printable(f"{place}{error.strerror}: make room, or write to another place, and give the same command again")
    _say(f"error: {message}")
    return 2


def _open_streams() -> None:
    """Both streams take any text, whatever their encoding and the names of files, and are there where the caller closed them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say(line: str) -> None:
    """The last word, on stderr; where nobody hears it, the exit code tells."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{line}\n")  # one piece: print() makes two, and others write here too
    _hand_over(sys.stderr)


def _hand_over(stream: TextIO) -> None:
    """What the stream still holds goes to its reader, or nowhere: the interpreter would complain again when it flushes at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, so that nothing half-written is left; who ignores it, or has a handler, keeps that."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _processes() -> contextlib.AbstractContextManager[None]:
    """What joins the processes that torchrun started; torch is imported only where it did."""
    if "WORLD_SIZE" not in os.environ:
        return contextlib.nullcontext()
    from tubelet.train.parallel import processes

    return processes()


def _described(name: str, module: str) -> tuple[str, str]:
    """How a command is called and the first line of its docstring, without importing its module."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    function = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "command")
    needed = function.args.args[: len(function.args.args) - len(function.args.defaults)]
    words = [argument.arg.upper() for argument in needed]
    if function.args.vararg is not None:
        words.append(f"{function.args.vararg.arg.upper()}...")
    usage = " ".join(["Usage: tubelet", name, *words, "[OPTIONS]"])
    return usage, (ast.get_docstring(function) or "").partition("\n")[0]


def _one_line(error: CycloptsError, arguments: list[str]) -> str:
    """What the command line got, what it wanted and the nearest name."""
    if isinstance(error, UnknownCommandError):
        got = next((word for word in arguments if not word.startswith("-")), "")
        return f"unknown command {got!r}{did_you_mean(got, commands())} (known: {', '.join(commands())})"
    error.verbose = False
    said = " ".join(str(error).split())
    dashed = next((word for word in arguments if word.startswith("-") and os.path.lexists(word)), None)
    return printable(said + (f" The file of that name is ./{dashed}" if dashed else ""))
