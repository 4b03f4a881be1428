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

from tubelet.errors import VideoError
from tubelet.loading import derive
from tubelet.video.decode import VideoInfo, probe
from tubelet.video.guard import run

_ID = re.compile(r"[0-9a-f]{64}")
CACHED_BYTES = 8_000_000  # of one answer


class Refused(Exception):
    """A request that is not carried out: an HTTP status, and one line that says why and what to try."""

    def __init__(self, status: int, message: str, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_seconds = status, message, retry_seconds


@dataclass(frozen=True)
class Limits:
    """What is taken: megabytes of a file, seconds and megapixels of a video, and gigabytes of all uploads together (the oldest
    go first)."""

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


class Uploads:
    """The uploads in one folder; several threads may use it."""

    def __init__(self, folder: str | Path, limits: Limits) -> None:
        self.folder, self.limits = Path(folder), limits
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.part"):  # of a server that was killed
            left.unlink()
        self._writing = threading.Lock()

    async def receive(self, chunks: AsyncIterator[bytes], announced: int | None) -> Upload:
        """Takes a file in; `announced` is the length that the client promised, if it did.

        Refused: 413 too large, 422 empty, too long or too large a picture, 415 nothing that can be read as a video.
        """
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
            return await _in_thread(self._keep, part, digest.hexdigest(), size)
        finally:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()

    def get(self, id: str) -> Upload:
        """Refused with 404 where there is none."""
        try:
            return Upload(**json.loads(self._about(id).read_text()))
        except FileNotFoundError:
            raise Refused(
                404, "no such video here: it was never uploaded, or has made room for newer ones; drop it again"
            ) from None

    def path(self, id: str) -> Path:
        """The file itself; Refused with 404 where there is none."""
        if not self._about(id).exists():
            self.get(id)
        return self.folder / id

    def cached(self, id: str, question: tuple[Any, ...], make: Callable[[], bytes]) -> bytes:
        """The answer to a question (everything that it depends on) about an upload, worked out at most once."""
        place = self.folder / f"{self._about(id).stem}.{derive(*question):016x}.answer"
        with contextlib.suppress(FileNotFoundError):
            return place.read_bytes()
        answer = make()
        if len(answer) <= CACHED_BYTES:
            _write(place, answer)
        return answer

    def _keep(self, part: Path, id: str, size: int) -> Upload:
        try:
            info: VideoInfo = run(str(part), probe, str(part))
        except VideoError as error:
            why = str(error).replace(f"{part}: ", "").replace(str(part), "the file")
            raise Refused(415, f"this cannot be read as a video or a picture: {why}") from None
        if info.duration_seconds > self.limits.seconds:
            raise Refused(
                422,
                f"the video lasts {info.duration_seconds:.0f} s, at most {self.limits.seconds:g} s are taken: cut out the part",
            )
        if info.width * info.height > self.limits.megapixels * 1e6:
            raise Refused(
                422,
                f"its pictures are {info.width}x{info.height}, at most {self.limits.megapixels:g} megapixels: scale it",
            )
        upload = Upload(id, size, info.duration_seconds, info.frame_count, info.fps, info.width, info.height, info.codec)
        with self._writing:
            os.replace(part, self.folder / id)
            _write(self._about(id), json.dumps(asdict(upload)).encode())
            self._make_room(id)
        return upload

    def _make_room(self, newest: str) -> None:
        """Removes the oldest uploads, and what is known of them, until the rest fits."""
        files = sorted((f for f in self.folder.iterdir() if _ID.fullmatch(f.name)), key=lambda f: f.stat().st_mtime)
        held = sum(f.stat().st_size for f in files)
        for file in files:
            if held <= self.limits.gigabytes_kept * 1e9 or file.name == newest:
                continue
            held -= file.stat().st_size
            for piece in (self._about(file.name), *self.folder.glob(f"{file.name}.*.answer"), file):
                piece.unlink(missing_ok=True)

    def _about(self, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise Refused(404, "no such video: an id is 64 hexadecimal digits, as the upload answers it")
        return self.folder / f"{id}.json"


def _write(place: Path, data: bytes) -> None:
    """A file that appears whole."""
    waiting = place.with_name(f"{place.name}.{os.urandom(8).hex()}.part")
    waiting.write_bytes(data)
    os.replace(waiting, place)


async def _in_thread(function: Callable[..., Upload], *args: Any) -> Upload:
    import asyncio

    return await asyncio.to_thread(function, *args)
