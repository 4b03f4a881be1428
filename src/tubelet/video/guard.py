"""Files that nobody vouches for are decoded in processes of their own: a crash, a hang or hunger for memory costs one file.

`run(path, function, ...)` gives function(...), carried out by a worker that has one file at a time; `each` gives what a
generator function yields, piece by piece. Workers are copies of this process (fork), made where none is free, and end with it
or after a minute without work. Each job, each piece has a limit of processor time, which neither a busy machine nor a stopped
process uses up, and one of memory beyond what the worker had. A worker that dies is replaced and the file tried again, so that
one which somebody killed costs nothing; a file that crashes two is refused from then on. Where there is no fork (Windows) or it
is unsafe (macOS), functions are called here and only the header's limits hold. Whoever may lose interest in a file reads it in
a block of `ended_by`.

LIMITS holds for every command; an environment variable of that name sets another.
"""

import atexit
import contextlib
import faulthandler
import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tubelet.allocator import keep_little
from tubelet.errors import ConfigError, TubeletError, VideoError

LIMITS = {
    "TUBELET_SECONDS_PER_FILE": 60.0,  # of processor time for one look at a file, and SECONDS_PER_MEGABYTE of its size
    "TUBELET_GIGABYTES_PER_FILE": 4.0,  # of memory while a file is read: 17 pictures of 8K at 10 bits take 2
    "TUBELET_MEGAPIXELS": 150.0,  # of one picture: 16384 x 8192 is 134
    "TUBELET_FRAMES": 10_000_000.0,  # of one file: 92 hours at 30 frames a second
}
SECONDS_PER_MEGABYTE = 1.0
STILL_SECONDS = 60  # without any use of the processor: then a worker waits for something that does not come
LOOKS = 5  # a second, whether to stop
IDLE_SECONDS = 60.0
MOST_KILLS = 5  # of workers with one file, by others (somebody, or a system that is out of memory): no decoder kills itself so

Result = TypeVar("Result")

_idle: dict[int, list["_Worker"]] = {}  # by process: the workers of a parent are not those of its copies
_refused: dict[tuple[str, int, int, float, float], str] = {}  # path, size, age and limits -> why it is not tried again
# Held while a copy is made, and by whoever does what no copy can be made amidst: a copy made during a call of LanceDB stands still.
forking = threading.RLock()
_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)  # of the innermost `ended_by`
_guarded = False  # whether this process is a worker itself


def limit(name: str) -> float:
    """The limit called `name` in LIMITS, or what the environment sets; ConfigError where that is no number above 0."""
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else LIMITS[name]
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {text!r}: it must be a number above 0 (without it, {LIMITS[name]:g} is the limit)")
    return value


def check_header(path: str, width: int, height: int, frames: int) -> None:
    """VideoError where a file says it holds larger pictures, or more of them, than the limits allow; before any is decoded."""
    if width * height > limit("TUBELET_MEGAPIXELS") * 1e6:
        raise VideoError(
            f"{path}: says its pictures are {width}x{height}, the limit is {limit('TUBELET_MEGAPIXELS'):g} megapixels; if it is "
            f"right, set TUBELET_MEGAPIXELS={width * height // 1_000_000 + 1}"
        )
    if frames > limit("TUBELET_FRAMES"):
        raise VideoError(
            f"{path}: has {frames} frames, or says so, the limit is {limit('TUBELET_FRAMES'):.0f}; if it is right, set "
            f"TUBELET_FRAMES={frames}"
        )


class Stopped(Exception):
    """Nobody wants the answer any more: the worker is gone, at whatever it was."""


@contextlib.contextmanager
def ended_by(stop: threading.Event) -> Iterator[None]:
    """In this block whatever reads files, through however many functions, ends with Stopped soon after `stop` is set, and its
    worker is killed. A thread that is begun in the block must run in a copy of its context (`contextvars`) to be part of it."""
    before = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(before)


def check_stop() -> None:
    """Stopped where the `stop` of the block of `ended_by` is set, for work between the files."""
    stop = _stop.get()
    if stop is not None and stop.is_set():
        raise Stopped


def run(
    path: str,
    function: Callable[..., Result],
    *args: Any,
    more_bytes: int = 0,
    more_seconds: float = 0.0,
    **kwargs: Any,
) -> Result:
    """function(*args, **kwargs), which reads the file at `path`, by a worker; `more_bytes` of memory and `more_seconds` of
    processor time beside what one look at it needs.

    What the function raises is raised here. VideoError where it exceeds a limit or ends the worker.
    """
    [result] = each(path, _once, function, args, kwargs, more_bytes=more_bytes, more_seconds=more_seconds)
    return result


def _once(done: int, function: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Result]:
    """One piece: what the function gives."""
    if not done:
        yield function(*args, **kwargs)


def each(
    path: str,
    function: Callable[..., Iterator[Result]],
    *args: Any,
    more_bytes: int = 0,
    more_seconds: float = 0.0,
) -> Generator[Result, None, None]:
    """The pieces that function(0, *args) yields, one after another, made by a worker that is one piece ahead of its reader.

    Limits and errors are those of `run`; every piece has all of the processor time. A worker that died after `done` pieces is
    replaced by one that is asked for function(done, *args): what comes after those.
    """
    if _guarded or sys.platform != "linux":
        yield from function(0, *args)
        return
    seconds, gigabytes = limit("TUBELET_SECONDS_PER_FILE"), limit("TUBELET_GIGABYTES_PER_FILE")
    try:
        stat = os.stat(path)
        file = (os.path.abspath(path), stat.st_size, stat.st_mtime_ns, seconds, gigabytes)
    except (OSError, ValueError):  # the function says what is wrong with it
        file = (path, 0, 0, seconds, gigabytes)
    if file in _refused:
        raise VideoError(_refused[file])
    seconds = round(seconds + SECONDS_PER_MEGABYTE * file[1] / 1e6 + more_seconds, 1)
    done = 0
    for tried in range(1, MOST_KILLS + 1):
        job: list[Any] | None = _packed((function, (done, *args), seconds, int(gigabytes * 1e9) + more_bytes))
        worker = _free_worker() if tried == 1 else _Worker()
        try:
            while True:
                problem, last, piece = worker.answer(job)
                job = None
                if last:
                    break
                done += 1
                yield piece
        except _DiedError as died:
            end = str(died)
            if end == "SIGPROF" or (end != "SIGKILL" and tried > 1):
                break
            continue
        except BaseException:  # Ctrl-C, Stopped or a reader that leaves: what comes must not be taken for another answer
            worker.end()
            raise
        _idle[os.getpid()].append(worker)
        if problem is None:
            return
        if not isinstance(problem, MemoryError):
            raise problem
        end = "memory"
        break
    reasons = {
        "SIGPROF": f"not read within {seconds:g} s of processor time; if it is whole and only long, set TUBELET_SECONDS_PER_FILE",
        "memory": f"reading it takes more than {gigabytes:g} GB of memory; if it is whole, set TUBELET_GIGABYTES_PER_FILE",
    }
    crashed = f"reading it ended {tried} processes ({end}): damaged, or too little memory (fewer workers need less)"
    _refused[file] = f"{path}: {reasons.get(end, crashed)}"
    raise VideoError(_refused[file])


class _DiedError(Exception):
    """The worker is gone, by the signal or for the reason named."""


class _Worker:
    """A copy of this process that does one job after another."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        with forking, warnings.catch_warnings():
            # Python 3.12 warns of other threads. The copy uses nothing of theirs: no lock, no file, no pool of threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # LanceDB's, which starts anew what the copy does not use
            self.pid = os.fork()
        if not self.pid:
            try:
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()

    def answer(self, job: list[Any] | None) -> tuple[Exception | None, bool, Any]:
        """(what the job raised, whether that was all, the next piece); _DiedError, Stopped. job: a new one, or None to go on."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        try:
            if job is not None:
                _send(self.socket, job)
            looks = 0  # LOOKS a second, not counted by the clock: Ctrl-Z is no standstill
            used = self._clock_ticks()
            check_stop()
            while not poll.poll(1000 / LOOKS):
                check_stop()
                looks += 1
                if looks % (STILL_SECONDS * LOOKS) == 0 and used == (used := self._clock_ticks()):
                    self.end()
                    raise _DiedError(f"it stood still for {STILL_SECONDS} s")
            found: tuple[Exception | None, bool, Any] | None = _receive(self.socket)
        except OSError:
            found = None
        if found is None:
            raise _DiedError(self.end())
        return found

    def _clock_ticks(self) -> int:
        """Processor time it has used."""
        with open(f"/proc/{self.pid}/stat") as file:
            return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))

    def runs(self) -> bool:
        with contextlib.suppress(ChildProcessError):
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        return False

    def end(self) -> str:
        """Kill it where it still runs; the name of the signal that ended it."""
        self.socket.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            gone, status = os.waitpid(self.pid, os.WNOHANG)
            if not gone:
                os.kill(self.pid, signal.SIGKILL)
                _, status = os.waitpid(self.pid, 0)
            if os.WIFSIGNALED(status):
                return signal.Signals(os.WTERMSIG(status)).name
        return "it ended"


def _free_worker() -> _Worker:
    """One that has nothing to do, or a new one. Those that ended meanwhile are waited for."""
    if os.getpid() not in _idle:
        _idle[os.getpid()] = []
        atexit.register(end_idle)
    idle = _idle[os.getpid()]
    while idle:
        with contextlib.suppress(IndexError):  # another thread took it
            worker = idle.pop()
            if worker.runs():
                return worker
            worker.end()
    return _Worker()


def end_idle() -> None:
    """End the workers that have nothing to do now, rather than in a minute."""
    idle = _idle.get(os.getpid(), [])
    while idle:
        idle.pop().end()


def _serve(connection: socket.socket) -> None:
    """What a worker does until its parent is gone or nothing comes for a while."""
    global _guarded
    _guarded = True
    # Nothing of the parent's is kept open (the lock of its run folder, the ends of other workers) or finalised here.
    gc.freeze()
    faulthandler.disable()
    threading.excepthook = lambda _: None  # of threads that libraries begin anew in a copy (LanceDB), whose files go now
    os.closerange(3, connection.fileno())
    os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    torch.set_num_threads(1)
    keep_little()  # a limit of memory counts what is free but kept
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where the machine runs out of memory, a worker goes and not the run
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    connection.settimeout(IDLE_SECONDS)
    while (job := _receive(connection)) is not None:
        function, args, seconds, memory_bytes = job
        with open("/proc/self/statm") as file:
            allowed = int(file.read().split()[0]) * resource.getpagesize() + memory_bytes
        pieces, last = function(*args), False
        connection.settimeout(None)
        while not last:
            resource.setrlimit(resource.RLIMIT_AS, (allowed if most < 0 else min(allowed, most), most))
            signal.setitimer(signal.ITIMER_PROF, seconds)
            problem, piece = None, None
            try:
                piece = next(pieces)
            except StopIteration:
                last = True
            except Exception as error:
                problem, last = _plain(error), True
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            _send(connection, _packed((problem, last, piece)))
        connection.settimeout(IDLE_SECONDS)


def _end_with(connection: socket.socket) -> None:
    """End this process, whatever it is at, when nobody is at the other end any more."""
    watched = select.poll()
    watched.register(connection, 0)  # no event but that one
    watched.poll()
    os._exit(0)


def _plain(error: Exception) -> Exception:
    """The same as can be sent, with the lines it was raised in where it is none of ours; MemoryError where that is behind it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and "allocate memory" in str(cause)):
            return MemoryError()
        cause = cause.__cause__ or cause.__context__
    if not isinstance(error, TubeletError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


class _Pickler(pickle.Pickler):
    """Tensors as arrays, whose memory travels beside the pickle as it lies."""

    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, Tensor):
            return NotImplemented
        order = sorted(range(thing.ndim), key=thing.stride, reverse=True)
        return _tensor, (thing.permute(order).contiguous().numpy(), [order.index(dim) for dim in range(thing.ndim)])


def _tensor(array: np.ndarray, order: list[int]) -> Tensor:
    return torch.from_numpy(array).permute(order)


def _packed(thing: Any) -> list[Any]:
    """A pickle and the buffers that belong to it."""
    text, buffers = BytesIO(), list[Any]()
    _Pickler(text, protocol=5, buffer_callback=lambda buffer: buffers.append(buffer.raw())).dump(thing)
    return [text.getbuffer(), *buffers]


def _send(connection: socket.socket, packed: list[Any]) -> None:
    lengths = [part.nbytes for part in packed]
    connection.sendall(struct.pack(f"<{1 + len(lengths)}Q", len(lengths), *lengths))
    for part in packed:
        connection.sendall(part)


def _receive(connection: socket.socket) -> Any:
    """What was sent; None where the other end is closed, or (a worker) no job came."""
    try:
        count = _bytes(connection, 8)
        lengths = struct.unpack(f"<{int.from_bytes(count, 'little')}Q", _bytes(connection, 8 * int.from_bytes(count, "little")))
        text, *buffers = [_bytes(connection, length) for length in lengths]
    except (EOFError, ConnectionError):
        return None
    return pickle.loads(text, buffers=buffers)


def _bytes(connection: socket.socket, count: int) -> memoryview:
    data = np.empty(count, np.uint8)  # a bytearray would be filled with zeros first
    view, done = data.data, 0
    while done < count:
        got = connection.recv_into(view[done:])
        if not got:
            raise EOFError
        done += got
    return view
