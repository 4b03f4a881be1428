"""Videos and pictures that people drop on the page: streamed to disk, named by what is in them, never by what they were called.

What was worked out about one is kept beside it, so that the same question is answered once.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from tubelet.errors import VideoError
from tubelet.seeds import derive
from tubelet.video.decode import VideoInfo, probe
from tubelet.video.guard import LOOKS, check_stop, run
from tubelet.web.refused import Refused

_ID = re.compile(r"[0-9a-f]{64}")
CACHED_BYTES = 8_000_000  # of one answer


@dataclass(frozen=True)
class Limits:
    """What is taken: megabytes of a file, seconds and megapixels of a video, and gigabytes of all that is kept (the oldest uploads
    go first, with the answers about them)."""

    megabytes: float = 500.0
    seconds: float = 3600.0
    megapixels: float = 40.0
    gigabytes_kept: float = 5.0


@dataclass(frozen=True)
class Upload:
    """What is known of one: id (SHA-256 of its bytes), size in bytes, and what `tubelet.video.decode.probe` says."""

    id: str
    bytes: int
    seconds: float
    frames: int
    fps: float
    width: int
    height: int
    codec: str


@dataclass(frozen=True)
class Received:
    """A file that is there and was not looked at yet."""

    part: Path
    id: str
    bytes: int


class Uploads:
    """The uploads in one folder; several threads may use it. First `receive`, then `keep` or `drop`."""

    def __init__(self, folder: str | Path, limits: Limits) -> None:
        self.folder, self.limits = Path(folder), limits
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writing = threading.Lock()
        self._making: WeakValueDictionary[Path, threading.Lock] = WeakValueDictionary()  # one for each answer in the making

    async def receive(self, chunks: AsyncIterator[bytes], announced: int | None) -> Received:
        """Takes a file in; `announced` is the length that the client promised, if it did. Refused: 413 too large, 422 empty."""
        most = int(self.limits.megabytes * 1e6)
        if announced is not None and announced > most:
            raise Refused(413, f"the file has {announced / 1e6:.1f} MB, at most {self.limits.megabytes:g} MB are taken")
        digest, size = hashlib.sha256(), 0
        part = self.folder / f"{os.urandom(16).hex()}.part"
        try:
            with open(part, "xb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > most:
                        raise Refused(
                            413, f"the file has more than {self.limits.megabytes:g} MB, which is what is taken at most"
                        )
                    digest.update(chunk)
                    file.write(chunk)
            if not size:
                raise Refused(422, "the file is empty (0 bytes): choose a video, or a picture")
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return Received(part, digest.hexdigest(), size)

    def keep(self, received: Received) -> Upload:
        """Looks at what was received and takes it among the uploads. Refused: 415 nothing that can be read as a video, 422 too long
        or too large a picture."""
        part, limits = received.part, self.limits
        try:
            info: VideoInfo = run(str(part), probe, str(part))
        except VideoError as error:
            raise Refused(415, f"this cannot be read as a video or a picture: {without(error, part)}") from None
        if info.duration_seconds > limits.seconds:
            long = f"the video lasts {info.duration_seconds:.0f} s, at most {limits.seconds:g} s are taken"
            raise Refused(422, f"{long}: cut out the part that matters")
        if info.width * info.height > limits.megapixels * 1e6:
            large = f"its pictures are {info.width}x{info.height}, at most {limits.megapixels:g} megapixels are taken"
            raise Refused(422, f"{large}: make them smaller")
        upload = Upload(
            received.id, received.bytes, info.duration_seconds, info.frame_count, info.fps, info.width, info.height, info.codec
        )
        with self._writing:
            os.replace(part, self.folder / upload.id)
            _write(self._about(upload.id), json.dumps(asdict(upload)).encode())
            self._make_room(upload.id)
        return upload

    def drop(self, received: Received) -> None:
        """Forgets what was received and not kept."""
        received.part.unlink(missing_ok=True)

    def get(self, id: str) -> Upload:
        """Refused with 404 where there is none."""
        try:
            return Upload(**json.loads(self._about(id).read_text()))
        except FileNotFoundError:
            why = "never uploaded, or gone to make room for newer ones"
            raise Refused(404, f"no such video here: {why}; drop it again") from None

    def path(self, id: str) -> Path:
        """The file itself; Refused with 404 where there is none."""
        if not self._about(id).exists():
            self.get(id)
        return self.folder / id

    def cached(self, id: str, question: tuple[Any, ...], make: Callable[[], bytes]) -> bytes:
        """The answer to a question (everything that it depends on) about an upload, worked out once: who asks meanwhile waits for
        it, and makes it where whoever made it has gone."""
        place = self.folder / f"{self._about(id).stem}.{derive(*question):016x}.answer"
        with self._writing:
            making = self._making.setdefault(place, threading.Lock())
        while not making.acquire(timeout=1 / LOOKS):
            check_stop()
        try:
            with contextlib.suppress(FileNotFoundError):
                return place.read_bytes()
            answer = make()
            with self._writing:
                if len(answer) <= CACHED_BYTES and self._about(id).exists():
                    _write(place, answer)
                    self._make_room(id)
            return answer
        finally:
            making.release()

    def _make_room(self, newest: str) -> None:
        """Removes the oldest uploads, and the answers about them, until what is left fits. Another server of this folder may do so
        too."""
        pieces: dict[str, list[tuple[Path, os.stat_result]]] = {}
        held = 0
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a part that was dropped meanwhile
                state = file.stat()
                held += state.st_size
                pieces.setdefault(file.name.partition(".")[0], []).append((file, state))
        ages = {id: state.st_mtime for id in pieces for file, state in pieces[id] if file.name == id and _ID.fullmatch(id)}
        for id in sorted(ages.keys() - {newest}, key=lambda id: ages[id]):
            if held <= self.limits.gigabytes_kept * 1e9:
                return
            for file, state in sorted(
                pieces[id], key=lambda piece: piece[0].suffix != ".json"
            ):  # first what says that it is there
                held -= state.st_size
                file.unlink(missing_ok=True)

    def _about(self, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise Refused(404, "no such video: an id is 64 hexadecimal digits, as the upload answers it")
        return self.folder / f"{id}.json"


def without(error: Exception, path: str | Path) -> str:
    """What an error says, without the place on this machine that it speaks of."""
    return " ".join(str(error).replace(f"{path}: ", "").replace(str(path), "the file").split())


def _write(place: Path, data: bytes) -> None:
    """A file that appears whole."""
    waiting = place.with_name(f"{place.name}.{os.urandom(8).hex()}.part")
    waiting.write_bytes(data)
    os.replace(waiting, place)
