"""The command line as a whole, in real processes: what it prints, on which stream, and with which exit code."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tubelet import models
from tubelet.cli import commands, main, make_app
from tubelet.cli._print import emit_json, table
from tubelet.records import ClipSpec
from tubelet.weights.save import save

COMMANDS = list(commands())

PYTHON = shlex.quote(sys.executable)


def tubelet(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "tubelet", *arguments], capture_output=True, text=True, timeout=280, **options
    )


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that failed as it should."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_the_commands_are_these() -> None:
    known = (
        "align classify compare demo embed evaluate export finetune flow ground index inspect launch models predict prepare "
        "pretrain probe search serve timeline weights"
    )
    assert sorted(COMMANDS) == known.split()


def test_help_lists_every_command_with_its_summary() -> None:
    done = tubelet("--help")
    assert done.returncode == 0 and done.stderr == ""
    for name in COMMANDS:
        assert f"│ {name} " in done.stdout


def test_help_imports_no_command_and_no_torch() -> None:
    code = (
        "import sys; from tubelet.cli import main; main(['--help'])\n"
        "print([name for name in sys.modules if name == 'torch' or name.startswith('tubelet.cli.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_for_every_flag(name: str) -> None:
    app = make_app()[name]
    assert app.help, f"tubelet {name} has no summary"
    for argument in app.assemble_argument_collection(parse_docstring=True):
        if argument.show and argument.parse:
            assert argument.parameter.help, f"tubelet {name} {argument.name} is not described"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--no-such-flag", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("error: ") and "--no-such-flag" in printed.err


def test_an_unknown_command_names_the_nearest() -> None:
    message = one_error(tubelet("pretrian", "videos"))
    assert "unknown command 'pretrian': did you mean 'pretrain'?" in message
    assert one_error(tubelet("xyzzy")).startswith("error: unknown command 'xyzzy' (known: ")


def test_an_unknown_flag_names_the_nearest() -> None:
    assert one_error(tubelet("models", "--jsno")) == "error: Unknown option: --jsno. Did you mean --json?\n"


def test_version() -> None:
    from tubelet import __version__

    assert tubelet("--version").stdout == f"{__version__}\n"


def test_models_prints_the_published_sizes() -> None:
    done = tubelet("models", "--json")
    assert done.returncode == 0 and done.stderr == ""
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    published = {  # VideoMAE's model zoo: millions of parameters, GMAC at 16x224x224, 400 classes
        "videomae_small": (22.0, 56.9),
        "videomae_base": (86.5, 180.3),
        "videomae_large": (304.3, 596.8),
        "videomae_huge": (632.1, 1191),
    }
    for name, (params, gmacs) in published.items():
        row = rows[name]
        assert round(row["params"] / 1e6, 1) == params
        assert row["gmacs"] == pytest.approx(gmacs, abs=0.06 if gmacs < 1000 else 0.6)
        assert (row["frames"], row["size"]) == (16, 224)


def test_models_lists_those_that_are_named() -> None:
    shown = tubelet("models", "c3d", "videomae_small").stdout.splitlines()[2:]
    assert [line.split()[0] for line in shown] == ["c3d", "c3d_padded", "videomae_small"]
    said = one_error(tubelet("models", "videomea"))
    assert said.startswith("error: unknown model or family 'videomea': did you mean 'videomae'? (`tubelet models` lists all ")
    assert len(said) < 132


def test_a_reader_that_goes_away_is_no_error() -> None:
    shell = f"{PYTHON} -m tubelet models single_frame | true"
    assert subprocess.run(["bash", "-c", shell], capture_output=True, text=True).stderr == ""


def test_table_aligns_text_left_and_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    table(
        [{"name": "a", "top1": 0.5, "n": 1}, {"name": "long", "top1": None, "n": 22}],
        {"name": "name", "top1": "top-1", "n": "n"},
    )
    assert capsys.readouterr().out.splitlines() == [
        "name  top-1   n",
        "----  -----  --",
        "a       0.5   1",
        "long      -  22",
    ]


def test_table_of_nothing_prints_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    table([], ["a", "b"])
    assert capsys.readouterr().out == "a  b\n-  -\n"


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError):
        emit_json(float("nan"))


def test_a_full_disk_behind_stdout_or_stderr_is_no_traceback() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this machine has no /dev/full")
    for words in ("--version", "inspect --help"):
        shell = f"{PYTHON} -m tubelet {words} > /dev/full"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
        assert one_error(done).startswith("error: No space left on device: make room"), words
    shell = f"{PYTHON} -m tubelet inspect nowhere 2> /dev/full"
    assert subprocess.run(["bash", "-c", shell], capture_output=True, text=True).returncode == 2


@pytest.mark.parametrize("stream", ["sys.stdout", "io.StringIO()"])  # a notebook has another
def test_what_was_told_before_the_disk_was_full_is_not_lost(stream: str) -> None:
    code = f"""
import errno, io, os, sys
from tubelet import cli
def command(*arguments, **options):
    print("told")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report.html")
cli.make_app = lambda: command
sys.stdout, real = {stream}, sys.stdout
code, told = cli.main([]), sys.stdout
print(told.getvalue() if told is not real else "", file=real, end="")
sys.exit(code)
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=buffered)
    assert (done.returncode, done.stdout) == (2, "told\n"), done.stderr
    assert done.stderr.startswith("error: report.html: No space left on device") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed, code", [("--version >&-", 0), ("nonsense 2>&-", 2), ("--version <&-", 0)])
def test_a_stream_that_is_closed_changes_nothing_else(closed: str, code: int) -> None:
    done = subprocess.run(["bash", "-c", f"{PYTHON} -m tubelet {closed}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")


def test_any_name_is_printed_whatever_the_encoding(motion_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d\u00e9j\u00e0 \U0001f600"
    shutil.copytree(motion_folder / "train", folder)
    ascii = {**os.environ, "PYTHONIOENCODING": "ascii"}
    said = tubelet("inspect", str(folder), env=ascii)
    assert said.returncode == 0 and "d\\xe9j\\xe0 \\U0001f600: 8 videos" in said.stdout, said.stderr
    assert json.loads(tubelet("inspect", str(folder), "--json", env=ascii).stdout)["source"] == str(folder)


def test_a_file_that_looks_like_a_flag_is_named_as_one_can_give_it(tmp_path: Path) -> None:
    (tmp_path / "-lead.mp4").touch()
    for words in (("inspect",), ("predict", "model")):
        assert one_error(tubelet(*words, "-lead.mp4", cwd=tmp_path)).endswith("he file of that name is ./-lead.mp4\n"), words


def test_cells_of_a_table_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    table([{"label": "new\nline"}])
    assert capsys.readouterr().out.splitlines()[-1] == "new\\nline"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_leaves_nothing_half_written(
    number: signal.Signals, motion_folder: Path, tmp_path: Path
) -> None:
    model = save(models.build("videomae_tiny", ClipSpec(frames=4, size=32), depth=1, patch=8), tmp_path / "model")
    words = ["embed", str(model), str(motion_folder), "--out", str(tmp_path / "out" / "f.parquet"), "--clips", "100000"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore Ctrl-C, and so would it
    running = subprocess.Popen([sys.executable, "-m", "tubelet", *words], stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        while not list(tmp_path.glob("out/.*.tmp")):
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        running.send_signal(number)
        assert running.communicate(timeout=280)[1] == "stopped\n" and running.returncode == 130
    finally:
        running.kill()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_server_whose_time_is_no_number_is_one_line() -> None:
    assert "timeout is nan: it must be above 0, and finite" in one_error(tubelet("serve", "model", "--timeout", "nan"))
