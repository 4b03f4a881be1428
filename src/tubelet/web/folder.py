"""The folder of a server's uploads, which it holds while it lives: so the next start can tell what a killed one has left.

Holding is a shared lock (flock) of the folder, which the system lets go however a process ends. Whoever gets the lock for itself
alone knows that no server lives there. Windows has no such lock: there nothing is cleared away.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tubelet.errors import CheckpointError

PREFIX = "tubelet-serve-"  # of folders that go with their server


@contextlib.contextmanager
def uploads_folder(kept: str = "") -> Iterator[Path]:
    """The folder `kept`, made where it is not there, without what a killed server had not finished. "": one of its own in the
    temporary folder, which goes with the block; those that killed servers of the same user have left go before. CheckpointError
    where there can be none."""
    with ExitStack() as ends:
        try:
            if kept:
                folder = Path(kept)
                folder.mkdir(parents=True, exist_ok=True)
                with _held(folder, alone=True) as nobodys:
                    for part in folder.glob("*.part") if nobodys else ():
                        part.unlink()
                ends.enter_context(_held(folder))
            else:
                _clear_away(Path(tempfile.gettempdir()))
                draft = Path(tempfile.mkdtemp(prefix=".tubelet-"))
                ends.enter_context(_held(draft))
                # Under its name only when it is held: until then another start could not tell it from one that was left.
                folder = draft.rename(draft.with_name(PREFIX + draft.name.removeprefix(".tubelet-")))
                ends.callback(shutil.rmtree, folder, ignore_errors=True)
        except OSError as error:
            place = kept or tempfile.gettempdir()
            raise CheckpointError(f"cannot keep uploads in {place}: {error.strerror}; name another --folder") from error
        yield folder


def _clear_away(place: Path) -> None:
    """Remove what killed servers of this user have left in a folder that may be everybody's."""
    for left in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _held(left, alone=True) as nobodys:  # OSError: a link, another user's, gone
            if nobodys and left.stat().st_uid == os.geteuid():
                shutil.rmtree(left)


@contextlib.contextmanager
def _held(folder: Path, alone: bool = False) -> Iterator[bool]:
    """Holds a folder, together with others or alone, for the block; False where that cannot be."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)  # alone it is only for a moment
    except OSError:  # somebody lives there, or it is a network's folder without locks
        os.close(handle)
        yield False
        return
    try:
        yield True
    finally:
        os.close(handle)
