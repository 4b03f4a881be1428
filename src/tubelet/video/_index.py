"""The index of a video file: what every frame of a full sequential decode is, and which packets it takes to decode it.

For mp4/mov and mkv/webm with H.264, HEVC, VP8, VP9 or AV1 the index is made from the packets alone (1 to 5 ms for ten seconds
of video) where they prove it: whole, in one piece, each with its own time stamp, starting at a picture that needs no other. The
first two frames are decoded to be sure. Everything else is decoded once, from the first packet to the last.

F frames in the order they are shown, P packets in the order they are stored.
"""

import contextlib
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import BinaryIO, cast

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import PictureType
from av.video.stream import VideoStream

from tubelet import storage
from tubelet.errors import VideoError
from tubelet.video._bitstream import READABLE, PacketFacts, nal_length_bytes, read_packet
from tubelet.video._container import cut_off, is_empty, open_video, reason

CACHED_PACKETS = 4_000_000  # about 150 MB: some 10,000 clips of ten seconds
SENT_PACKETS = 20_000  # of 13 minutes: about 1 MB

# Codecs without their own line in _bitstream whose key frames are dependable starts (gif, for one, is not among them).
KEYED = ("mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "h263", "flv1", "prores", "dnxhd")


@dataclass(frozen=True)
class Index:
    """seconds float64 (F,): time of every frame, the first at 0. stamps int64 (F,): its time stamp in `time_base` units.

    packet int64 (F,): the packet that holds frame i; None where only decoding from the start finds a frame surely.
    offset int64 (P,): where a packet's bytes lie in the file; None where they do not lie there in one piece (MPEG-TS).
    turns, mirrored: how a stored picture becomes the shown one: quarter turns anticlockwise, after a left-right flip.
    """

    seconds: np.ndarray
    stamps: np.ndarray
    packet: np.ndarray | None
    packet_stamp: np.ndarray
    offset: np.ndarray | None
    size: np.ndarray
    entries: np.ndarray
    droppable: np.ndarray
    codec: str
    decoder: str
    codec_tag: str
    extradata: bytes | None
    time_base: Fraction
    duration_seconds: float
    stored_size: tuple[int, int]
    turns: int
    mirrored: bool
    pixel_format: str
    container: str

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) of the first frame as it is shown."""
        height, width = self.stored_size
        return (width, height) if self.turns % 2 else (height, width)


_cache: OrderedDict[tuple[str, int, object], Index] = OrderedDict()
_lock = threading.Lock()


def read_index(path: str, certain: bool = False) -> Index:
    """The index of a file, kept in memory until the file changes.

    certain: made by decoding all of it, whatever it looks like, and every later frame found by counting from the first.
    """
    try:
        key = (os.path.abspath(path), *storage.stat(path))
    except (OSError, ValueError) as error:  # the latter: a name that no file can have
        raise VideoError(f"{path}: {reason(error).lower()}") from error
    with _lock:
        if not certain and key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    index = replace(_make_index(path, certain=True), packet=None) if certain else _make_index(path, certain=False)
    with _lock:
        _put(key, index)
    return index


def known_index(path: str) -> Index | None:
    """What `read_index` has kept of a local file as it is now, to be sent to another process; None where that is nothing, or more
    than is soon sent."""
    try:
        key = (os.path.abspath(path), *storage.stat(path)) if not storage.is_remote(path) else None
    except (OSError, ValueError):
        return None
    with _lock:
        index = _cache.get(key) if key else None
    return index if index is not None and len(index.size) <= SENT_PACKETS else None


def keep_index(path: str, index: Index) -> None:
    """As if `read_index` had made it here, where it has not."""
    with contextlib.suppress(OSError, ValueError):
        key = (os.path.abspath(path), *storage.stat(path))
        with _lock:
            if key not in _cache:
                _put(key, index)


def _put(key: tuple[str, int, object], index: Index) -> None:
    _cache[key] = index
    _cache.move_to_end(key)
    while len(_cache) > 1 and sum(len(i.size) for i in _cache.values()) > CACHED_PACKETS:
        _cache.popitem(last=False)


def decoded_seconds(path: str) -> np.ndarray:
    """The times of all frames of a file that was just written, by decoding all of it; what later reads find is not touched."""
    return _make_index(path, certain=True).seconds


def _make_index(path: str, certain: bool) -> Index:
    missing = cut_off(path) if os.path.isfile(path) or not storage.is_plain(path) else ""
    if missing:
        raise VideoError(f"{path}: {missing}: copy or download it again")
    with open_video(path) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        provable = codec in READABLE and container.format.name.startswith(("mov,", "matroska"))
        scan = _scan(path, container, stream, codec, decode_all=certain or not provable)
        if certain or not provable:
            return _build(path, container, stream, scan, *_decoded_frames(scan, codec))
        proven = _proven_frames(scan)
        if proven is not None:
            return _build(path, container, stream, scan, *proven)
    return _make_index(path, certain=True)


@dataclass
class _Scan:
    """What one pass over the packets of a file collects. Time stamps are None where the file gives none."""

    stamps: list[int | None] = field(default_factory=list)
    dated: bool = True  # every packet says when it is shown, not only when it is decoded
    discarded: bytearray = field(default_factory=bytearray)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))  # -1: not in the file in one piece
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    in_file: bool = True
    facts: list[PacketFacts] = field(default_factory=list)
    kinds: dict[PacketFacts, PacketFacts] = field(default_factory=dict)  # packets whose facts are the same share them
    whole: bool = True
    changes: bool = False  # of the decoder's settings, on the way
    encrypted: bool = False
    frames: list[int | None] = field(default_factory=list)  # time stamps of the decoded frames
    incomplete: int | None = None  # the first frame that the decoder could only complete by guessing
    b_pictures: bool = False
    first: av.VideoFrame | None = None
    last_duration: int = 0


def _scan(path: str, container: InputContainer, stream: VideoStream, codec: str, decode_all: bool) -> _Scan:
    """Read every packet of the stream; decode all of them, or until two frames are out.

    VideoError where the decoder refuses a packet. Only before the first frame is a refusal no damage: a recording may begin
    between two key frames.
    """
    scan = _Scan(dated=container.format.name != "avi")  # AVI stores no presentation times, FFmpeg guesses them
    decoder = stream.codec_context
    length_bytes = nal_length_bytes(codec, decoder.extradata)
    try:
        with storage.open_bytes(path) as file:
            for packet in container.demux(stream):
                if is_empty(packet):
                    continue
                if packet.size:
                    _note_packet(scan, packet, codec, length_bytes, file)
                if not decode_all and len(scan.frames) >= 2:
                    continue
                try:
                    _note_frames(scan, decoder.decode(packet if packet.size else None))
                except av.FFmpegError:
                    if scan.frames or not packet.size or (packet.is_keyframe and len(scan.sizes) > 1):
                        raise
                if scan.incomplete is not None:
                    raise VideoError(
                        f"{path}: damaged: frame {scan.incomplete} is incomplete, {scan.incomplete} before it are whole"
                    )
    except av.FFmpegError as error:
        count = f"{len(scan.frames)} frames before it can" if scan.frames else "none before it can either"
        raise VideoError(f"{path}: damaged: packet {len(scan.sizes)} cannot be decoded ({reason(error)}), {count}") from error
    if scan.first is None:
        why = "it is encrypted" if scan.encrypted else "damaged, or only the beginning of a recording"
        raise VideoError(f"{path}: no frame can be decoded from its {len(scan.sizes)} video packets ({why})")
    return scan


def _note_packet(scan: _Scan, packet: av.Packet, codec: str, length_bytes: int, file: BinaryIO) -> None:
    data = bytes(packet)
    scan.stamps.append(packet.dts if packet.pts is None else packet.pts)
    scan.dated = scan.dated and packet.pts is not None
    scan.discarded.append(packet.is_discard)
    scan.offsets.append(_offset(packet, data, file) if scan.in_file else -1)
    scan.in_file = scan.offsets[-1] >= 0
    scan.sizes.append(packet.size)
    scan.last_duration = packet.duration or 0
    facts = read_packet(codec, data, packet.is_keyframe, length_bytes) if codec in READABLE else PacketFacts(packet.is_keyframe)
    scan.facts.append(scan.kinds.setdefault(facts, facts))
    kinds = [data.data_type for data in packet.iter_sidedata()]  # mostly none: asking for one by its name takes longer
    scan.encrypted = scan.encrypted or "encryption_info" in kinds
    scan.changes = scan.changes or "new_extradata" in kinds or "param_change" in kinds
    scan.whole = scan.whole and facts.sound and not packet.is_corrupt


def _offset(packet: av.Packet, data: bytes, file: BinaryIO) -> int:
    """Where the packet's bytes lie in the file, compared byte by byte; -1 where they do not.

    mp4 and AVI give the place itself, Matroska that of the block, whose header has 4 bytes up to track 127.
    """
    for shift in (0, 4):
        if packet.pos is not None:
            file.seek(packet.pos + shift)
            if file.read(len(data)) == data:
                return packet.pos + shift
    return -1


def _note_frames(scan: _Scan, frames: list[av.VideoFrame]) -> None:
    for frame in frames:
        if frame.is_corrupt and scan.incomplete is None:
            scan.incomplete = len(scan.frames)
        scan.first = scan.first or frame
        scan.frames.append(frame.pts)
        scan.b_pictures = scan.b_pictures or frame.pict_type == PictureType.B


def _proven_frames(scan: _Scan) -> tuple[np.ndarray, np.ndarray] | None:
    """(stamps, packets) of the frames where the packets alone prove them, else None: the file has to be decoded."""
    facts = scan.facts
    plain = scan.dated and scan.whole and not scan.changes and not scan.encrypted and facts[0].entry
    if not plain or not all(f.shown for f in facts) or any(f.resets for f in facts[1:]):
        return None
    stamps = np.array(scan.stamps, np.int64)
    if len(np.unique(stamps)) < len(stamps) or stamps[0] > stamps.min():  # the latter: pictures that lean on what is missing
        return None
    packets = np.flatnonzero(np.array(scan.discarded) == 0)
    packets = packets[np.argsort(stamps[packets])]
    return (stamps[packets], packets) if list(stamps[packets][:2]) == scan.frames[:2] else None


def _decoded_frames(scan: _Scan, codec: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(stamps, packets) of the frames that came out of a full decode; packets is None where a frame has no packet of its own.

    Time stamps that are missing continue the rhythm; one that steps back begins there anew (recordings joined to one file).
    """
    given = [stamp for stamp in scan.frames if stamp is not None]
    steps = [b - a for a, b in pairwise(given) if b > a]
    usual = int(np.median(steps)) if steps else max(scan.last_duration, 1)
    stamps = [scan.frames[0] if scan.frames[0] is not None else 0]
    for before, now in pairwise(scan.frames):
        step = usual if before is None or now is None or now < before else now - before
        stamps.append(stamps[-1] + step)
    place = {stamp: number for number, stamp in enumerate(scan.stamps)}
    packets = [place.get(stamp, -1) for stamp in scan.frames]
    unique = len(place) == len(scan.stamps) and None not in place and -1 not in packets and stamps == scan.frames
    in_order = unique and all(b > a for a, b in pairwise(stamps))
    if not in_order or scan.changes or not (codec in READABLE or codec in KEYED):
        return np.array(stamps, np.int64), None
    if not scan.dated and (scan.b_pictures or scan.frames != scan.stamps):  # decoding times say nothing about reordered frames
        return np.array(stamps, np.int64), None
    return np.array(stamps, np.int64), np.array(packets, np.int64)


def _build(
    path: str, container: InputContainer, stream: VideoStream, scan: _Scan, stamps: np.ndarray, packets: np.ndarray | None
) -> Index:
    first, decoder = scan.first, stream.codec_context
    assert first is not None
    time_base = stream.time_base or Fraction(1, 1000)
    seconds = (stamps - stamps[0]) * float(time_base)
    last = scan.last_duration * float(time_base)
    if len(seconds) > 1:
        usual = float(np.median(np.diff(seconds)))
        last = last if 0 < last < 10 * usual else usual
    elif not last and stream.average_rate:
        last = float(1 / stream.average_rate)
    layers = max(f.layer for f in scan.facts)
    turns, mirrored = _orientation(first)
    return Index(
        seconds=seconds,
        stamps=stamps,
        packet=packets,
        packet_stamp=np.array([-1 if s is None else s for s in scan.stamps], np.int64),
        offset=np.array(scan.offsets, np.int64) if scan.in_file else None,
        size=np.array(scan.sizes, np.int64),
        entries=np.flatnonzero([f.entry for f in scan.facts]),
        droppable=np.array([f.droppable and f.layer == layers for f in scan.facts]),
        codec=decoder.codec.canonical_name,
        decoder=decoder.name,
        codec_tag=decoder.codec_tag,
        extradata=decoder.extradata,
        time_base=time_base,
        duration_seconds=float(seconds[-1]) + last,
        stored_size=(first.height, first.width),
        turns=turns,
        mirrored=mirrored,
        pixel_format=first.format.name,
        container=container.format.name,
    )


def _orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """(quarter turns anticlockwise, flipped left to right before turning) of the display matrix, rows (a b u)(c d v)(x y w).

    A stored pixel (x, y), y downwards, is shown at (a x + c y, b x + d y): see libavutil/display.h. Other angles are rounded.
    """
    # It iterates over the data, though its type stub, that of a mapping, says names.
    side_data = cast(Iterable[SideData], frame.side_data)
    matrices = [bytes(data) for data in side_data if data.type == SideDataType.DISPLAYMATRIX]
    if not matrices:
        return 0, False
    a, b, _, c, d = np.frombuffer(matrices[0], np.int32)[:5].astype(float)
    mirrored = bool(a * d - b * c < 0)
    if mirrored:
        a, b = -a, -b
    return round(-np.degrees(np.arctan2(b, a)) / 90) % 4, mirrored
