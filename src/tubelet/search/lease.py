"""One process at a time writes a library.

On a disk the file .lock in it is locked, which the system undoes when the process ends. Object storage has no locks, so there the
table "writer" has one row: who writes, and a number that rises every BEAT_SECONDS while they do. A row is changed only if it is
still what was read (the store refuses the second of two commits), so of several that want to write one gets it. Somebody else's
row whose number stands still for SILENT_SECONDS is taken over: they were killed. No clocks are compared.
"""

import contextlib
import datetime
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tubelet import storage
from tubelet.errors import CheckpointError
from tubelet.search.lance import first_line, quoted, tables
from tubelet.video.guard import forking

BEAT_SECONDS = 4.0
SILENT_SECONDS = 20.0
KEPT = datetime.timedelta(minutes=1)  # how long rows that were replaced stay

StillOurs = Callable[[], None]  # to be called before something is written


@contextlib.contextmanager
def writing(uri: str, database: Any) -> Iterator[StillOurs]:
    """Keeps other writers out, and gives a function that raises CheckpointError where one has taken over nevertheless, because
    this process stood still for so long. CheckpointError where another process writes; what LanceDB raises becomes one too."""
    try:
        with _leased(uri, database) if storage.is_remote(uri) else _locked(uri) as still_ours:
            yield still_ours
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{uri} cannot be written: {first_line(error)}") from error


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[StillOurs]:
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(Path(folder) / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(ImportError):  # Windows has no flock
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise CheckpointError(f"another process is writing to {folder}: wait until it is done") from error
        yield lambda: None
    finally:
        os.close(handle)


@contextlib.contextmanager
def _leased(uri: str, database: Any) -> Iterator[StillOurs]:
    lease = _Lease(uri, database)
    lease.take()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # out of reach for a moment
                lease.beat()

    thread = threading.Thread(target=beat, name="tubelet-lease", daemon=True)
    thread.start()
    try:
        yield lease.still_ours
    finally:
        ended.set()
        thread.join()
        lease.give_back()


class _Lease:
    """The row that says who writes."""

    def __init__(self, uri: str, database: Any) -> None:
        self.uri, self.me = uri, f"{socket.gethostname()}, process {os.getpid()}, {secrets.token_hex(4)}"
        for _ in range(5):
            # Of two that make the table the second overwrites it: nobody takes the row before both are done.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                if "writer" not in tables(database):
                    database.create_table("writer", [{"owner": "", "beat": 0}], exist_ok=True)
                    time.sleep(BEAT_SECONDS)
                self.table = database.open_table("writer")
                break
            time.sleep(BEAT_SECONDS)
        else:
            raise CheckpointError(f"{uri} cannot be written: its table of writers cannot be made or opened")
        self.seen = time.monotonic()  # when the row was last known to be ours
        self.lost = False

    def take(self) -> None:
        """Make the row ours; CheckpointError where it is that of a process that lives."""
        found = self._row()
        looked = time.monotonic()
        while found[0] and time.monotonic() - looked < SILENT_SECONDS:
            time.sleep(BEAT_SECONDS / 4)
            before, found = found, self._row()
            if found[0] and found != before:
                raise self._refused(found[0])
        self.seen = time.monotonic()
        try:
            if self._change(found, self.me):
                return
        except (OSError, RuntimeError):  # so many tried at once that the store gave up
            if self._row() == found:
                raise
        raise self._refused(self._row()[0] or "it has just ended")

    def beat(self) -> bool:
        """Show that we live; False where the row is another's."""
        with forking:
            now = time.monotonic()
            found = self._row()
            self.lost = self.lost or found[0] != self.me or not self._change(found, self.me)
            self.seen = self.seen if self.lost else now
            return not self.lost

    def still_ours(self) -> None:
        if self.lost or (time.monotonic() - self.seen > 2 * BEAT_SECONDS and not self.beat()):
            raise CheckpointError(
                f"another process has begun to write to {self.uri}, for this one gave no sign for {SILENT_SECONDS:g} s: what it "
                "finished stays; run the command again when the other is done"
            )

    def give_back(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # then it is free after SILENT_SECONDS
            found = self._row()
            if found[0] == self.me:
                self._change(found, "")
                self.table.optimize(cleanup_older_than=KEPT)

    def _row(self) -> tuple[str, int]:
        self.table.checkout_latest()
        [row] = self.table.search().limit(None).to_list()
        return row["owner"], row["beat"]

    def _change(self, found: tuple[str, int], owner: str) -> bool:
        """The row `found` becomes one of `owner` with the next number; False where another process was faster."""
        where = f"owner = {quoted(found[0])} AND beat = {found[1]}"
        changed: int = self.table.update(where, {"owner": owner, "beat": found[1] + 1}).rows_updated
        return changed == 1

    def _refused(self, owner: str) -> CheckpointError:
        return CheckpointError(f"another process ({owner}) is writing to {self.uri}: wait until it is done")
