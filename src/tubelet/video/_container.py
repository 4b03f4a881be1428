"""Opening a video file: one clear error for whatever is not a whole video, and the stream that is meant."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from tubelet import storage
from tubelet.errors import VideoError
from tubelet.video.guard import check_header

BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"wide", b"free", b"skip", b"sidx", b"styp", b"mfra", b"uuid")  # of an mp4 file
PLAYLISTS = ("hls", "concat", "dash", "tty", "sdp", "rtsp", "imf")  # text files that point elsewhere, or are drawn as pictures


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The open container and its first video stream that is not a cover picture; decoding is single-threaded.

    One thread keeps the result of decoding (of damaged files too) the same everywhere; parallel work is done by file.
    VideoError: empty, cut off, not a video, audio only, beyond the limits of `guard`.
    """
    if os.path.isdir(path):
        raise VideoError(f"{path}: is a folder, not a video file")
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe or a device may wait, or read, for ever
        raise VideoError(f"{path}: is a pipe, a device or a socket, not a video file")
    with ExitStack() as opened:
        try:
            if storage.stat(path)[0] == 0:
                raise VideoError(f"{path}: the file is empty (0 bytes)")
            # "file:" keeps names such as a:b.mp4 from being read as an address; the white list keeps hostile files local.
            source = f"file:{path}" if storage.is_plain(path) else opened.enter_context(storage.open_bytes(path))
            container = av.open(source, mode="r", options={"protocol_whitelist": "file"}, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path}: not a readable video file ({cut_off(path) or reason(error)})") from error
        opened.enter_context(container)
        if container.format.name in PLAYLISTS:
            raise VideoError(f"{path}: is a {container.format.name} text file that names other files, not a video")
        streams = [s for s in container.streams.video if not Disposition(s.disposition) & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise VideoError(f"{path}: no video stream (the file holds: {kinds})")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{path}: the video is in a codec that this FFmpeg build cannot decode")
        check_header(path, stream.codec_context.width, stream.codec_context.height, stream.frames)
        stream.codec_context.thread_count = 1
        yield container, stream


def reason(error: BaseException) -> str:
    """FFmpeg's own words, without the path that the caller already names."""
    return getattr(error, "strerror", None) or str(error)


def is_empty(packet: av.Packet) -> bool:
    """Whether a packet holds nothing and is not the last one, after which a decoder gives what it still holds: Theora says so that
    a picture stays as it is."""
    return not packet.size and packet.dts is not None


def cut_off(path: str) -> str:
    """What is missing at the end of a file that says itself how long it is (mp4/mov boxes, mkv/webm, AVI), or "" (also
    where it cannot be read)."""
    try:
        size, end = storage.stat(path)[0], _stated_end(path)
    except OSError:
        return ""
    return f"the file is cut off: {size} of {end} bytes are there" if end > size else ""


def _stated_end(path: str) -> int:
    """The length that a file says it has, 0 where it does not say."""
    with storage.open_bytes(path) as file:
        head = file.read(64)
        if head[:4] == b"\x1aE\xdf\xa3" and len(head) == 64:
            return _matroska_end(head)
        if head[:4] == b"RIFF":
            return int.from_bytes(head[4:8], "little") + 8
        end, size = 0, file.seek(0, os.SEEK_END)
        while head[4:8] in BOXES and end + 8 <= size:
            file.seek(end)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            length = int.from_bytes(box[8:16], "big") if length == 1 else length
            if length < 8 or box[4:8] not in BOXES:
                return 0  # runs to the end of the file, or is no box at all (padding, a signature): nothing to compare
            end += length
    return end


def _matroska_end(head: bytes) -> int:
    """Where the Segment of a Matroska file ends, 0 where it does not say (a live recording)."""

    def number(at: int) -> tuple[int, int]:
        """An EBML size at `at`: its value (-1: unknown) and the offset behind it."""
        length = 9 - head[at].bit_length()
        value = int.from_bytes(head[at : at + length], "big") & ((1 << 7 * length) - 1)
        return (-1 if value == (1 << 7 * length) - 1 else value), at + length

    header, at = number(4)
    at += header
    if header < 0 or head[at : at + 4] != b"\x18\x53\x80\x67" or at + 13 > len(head) or not head[at + 4]:
        return 0
    size, at = number(at + 4)
    return 0 if size < 0 else at + size
