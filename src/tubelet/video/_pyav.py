"""Frames by number with PyAV (FFmpeg), exactly those of a full sequential decode.

Nothing here seeks by time. The index says which packets a frame needs, so the decoder is given the packets from the nearest
start before it to its own, unneeded ones that no other picture refers to left out, and is then emptied. Packets are read
straight from the file where they lie in one piece (no container is opened at all), else demuxed from the beginning.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

import av
import av.filter
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from tubelet import storage
from tubelet.errors import VideoError
from tubelet.records import Interpolation
from tubelet.video._container import is_empty, open_video, reason
from tubelet.video._index import Index
from tubelet.video.resize import Box, resize

ALIGNED = 4  # pixels: a chroma sample covers 1, 2 or 4 in each direction
CLIP_BYTES = 4_000_000  # of RGB pixels of a cut: up to here all its frames are scaled in one call, which makes the clip itself
RESIZED_BYTES = 250_000  # above it so much at a time: larger buffers cost more in page faults than calls do
CROPPED_PIXELS = 50_000  # outside of the box: fewer become RGB sooner than a filter cuts them off

OPTIONS: dict[bool, dict[str, str]] = {False: {}, True: {"skip_loop_filter": "all"}}  # of the decoder: exact, approximate

Cut = tuple[np.ndarray, Box | None]  # frame numbers int64 (T,), any order, and what is wanted of them (None: all of the frame)
Fed = tuple[int, av.Packet, av.VideoCodecContext]  # the number of a packet, itself, the decoder to give it to


class NotAsIndexed(Exception):
    """What the decoder gave back is not what the index promised: the file has to be decoded from its start."""


def frames(
    path: str, index: Index, wanted: Sequence[int] | np.ndarray, approximate: bool = False
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) of every wanted frame (sorted, without repeats), in that order. NotAsIndexed, VideoError."""
    wanted = np.asarray(wanted, np.int64)
    if index.packet is None:
        yield from _from_start(path, wanted, approximate)
        return
    left = iter(wanted)
    try:
        for number, frame in _by_packet(path, index, wanted, approximate):
            if number != next(left):  # frames come out in the order they are shown: one of them was left out
                raise NotAsIndexed
            yield number, frame
    except av.FFmpegError as error:
        raise NotAsIndexed from error
    if next(left, None) is not None:
        raise NotAsIndexed


def _by_packet(path: str, index: Index, wanted: np.ndarray, approximate: bool) -> Iterator[tuple[int, av.VideoFrame]]:
    """The wanted frames, known by their time stamps, from runs of packets that each begin where decoding may begin. What is
    looked up is held for one run at a time: all frames of hours may be wanted."""
    assert index.packet is not None
    packets, droppable = index.packet[wanted], index.droppable
    runs = _runs(index, wanted)
    starts, ends = {first for first, _ in runs}, {last for _, last in runs}
    # Runs follow one another in the file, and so do the wanted frames: where those of each run begin, and all end.
    run_of = np.searchsorted([first for first, _ in runs], packets, side="right") - 1
    bounds = np.searchsorted(run_of, np.arange(len(runs) + 1)).tolist()

    def feed() -> Iterator[int]:
        for (first, last), (begin, end) in zip(runs, pairwise(bounds), strict=True):
            needed = ~droppable[first : last + 1]
            needed[packets[begin:end] - first] = True
            yield from (first + np.flatnonzero(needed)).tolist()

    source = _read_packets if index.offset is not None else _demux_packets
    shown_from, own, number_of = 0, pairwise(bounds), dict[int, int]()
    for number, packet, decoder in source(path, index, feed(), starts, approximate):
        if number in starts:
            shown_from = int(index.packet_stamp[number])
            numbers = wanted[slice(*next(own))]
            number_of = dict(zip(index.stamps[numbers].tolist(), numbers.tolist(), strict=True))
        decoded = decoder.decode(packet)
        if number in ends:
            decoded += decoder.decode(None)
        for frame in decoded:
            # Concealed damage; frames shown before the start of a run may lack what they lean on, and are not wanted.
            if frame.is_corrupt and (frame.pts is None or frame.pts >= shown_from):
                raise NotAsIndexed
            if frame.pts in number_of:
                yield number_of[frame.pts], frame


def _runs(index: Index, wanted: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    """(first, last) packets that decode the wanted frames; between runs the decoder starts afresh.

    A frame needs all packets from a start that is shown no later than itself: pictures shown before the start they follow in
    the file lean on the one before.
    """
    assert index.packet is not None
    runs: list[tuple[int, int]] = []
    for packet in map(int, index.packet[wanted]):
        at = int(np.searchsorted(index.entries, packet, side="right")) - 1
        while at >= 0 and index.packet_stamp[index.entries[at]] > index.packet_stamp[packet]:
            at -= 1
        start = int(index.entries[at]) if at >= 0 else 0
        while runs and start <= runs[-1][1]:  # within what is decoded already
            before = runs.pop()
            start, packet = min(start, before[0]), max(packet, before[1])
        runs.append((start, packet))
    return runs


def _read_packets(path: str, index: Index, feed: Iterable[int], starts: set[int], approximate: bool) -> Iterator[Fed]:
    """Packets straight from the file, and for every run a fresh decoder set up as the container would set it up.

    Fresh rather than flushed, so that nothing of one run can leak into the next.
    """
    assert index.offset is not None
    with storage.open_bytes(path) as file:
        for number in feed:
            if number in starts:
                decoder = _new_decoder(index, approximate)
            file.seek(index.offset[number])
            packet = av.Packet(int(index.size[number]))  # allocated by FFmpeg, with the padding its decoders rely on
            packet.update(file.read(packet.size))
            packet.pts = int(index.packet_stamp[number])
            packet.time_base = index.time_base
            yield number, packet, decoder


def _new_decoder(index: Index, approximate: bool) -> av.VideoCodecContext:
    decoder = av.CodecContext.create(index.decoder, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.extradata = index.extradata
    decoder.codec_tag = index.codec_tag
    decoder.height, decoder.width = index.stored_size
    decoder.thread_count = 1
    decoder.options = OPTIONS[approximate]
    return decoder


def _demux_packets(path: str, index: Index, feed: Iterable[int], starts: set[int], approximate: bool) -> Iterator[Fed]:
    """Packets by counting them from the beginning of the file: always the right ones, where seeking by time may not be."""
    with open_video(path) as (container, stream):
        stream.codec_context.options = OPTIONS[approximate]
        todo = iter(feed)
        target = next(todo, None)
        packets = (packet for packet in container.demux(stream) if packet.size)
        for number, packet in enumerate(packets):
            if number == target:
                if number in starts:
                    stream.codec_context.flush_buffers()
                yield number, packet, stream.codec_context
                target = next(todo, None)
            if target is None:
                return


def _from_start(path: str, wanted: np.ndarray, approximate: bool) -> Iterator[tuple[int, av.VideoFrame]]:
    """The wanted frames by counting the frames of a sequential decode."""
    todo = iter(wanted)
    target = next(todo)
    count = 0
    with open_video(path) as (container, stream):
        decoder = stream.codec_context
        decoder.options = OPTIONS[approximate]
        try:
            for packet in container.demux(stream):
                if is_empty(packet):
                    continue
                try:
                    decoded = decoder.decode(packet if packet.size else None)
                except av.FFmpegError:
                    if count or not packet.size or packet.is_keyframe:
                        raise
                    continue  # a recording may begin between two key frames
                for frame in decoded:
                    if frame.is_corrupt:
                        raise VideoError(f"{path}: damaged: frame {count} is incomplete")
                    if count == target:
                        yield count, frame
                        following = next(todo, None)
                        if following is None:
                            return
                        target = following
                    count += 1
        except av.FFmpegError as error:
            raise VideoError(f"{path}: damaged: decoding stops after frame {count - 1} ({reason(error)})") from error
    raise VideoError(f"{path}: frame {target} was asked for and only {count} can be decoded")


def read_frames(
    path: str, index: Index, cuts: Sequence[Cut], size: tuple[int, int], interpolation: Interpolation, approximate: bool = False
) -> list[Tensor]:
    """RGB uint8 (T,3,H,W) of `size` (H, W) for every cut, all from one decode; in memory (T,H,W,C).

    approximate: without the in-loop deblocking filter of H.264, HEVC and their like.
    """
    parts = [Part(index, numbers, box, size, interpolation) for numbers, box in cuts]
    wanted = np.unique(np.concatenate([numbers for numbers, _ in cuts]))
    takers: dict[int, list[Part]] = {}  # by frame: of hundreds of cuts few want the same
    for part in parts:
        for number in part.places:
            takers.setdefault(number, []).append(part)
    for number, frame in frames(path, index, wanted, approximate):
        for part in takers[number]:
            part.take(number, frame)
    return [part.whole() for part in parts]


def each_piece(
    path: str, index: Index, pieces: list[np.ndarray], box: Box, size: tuple[int, int], interpolation: Interpolation
) -> Iterator[Tensor]:
    """The box of the frames of each piece (numbers in rising order, none twice) as RGB uint8 (n,3,H,W) of `size`: one decode of
    which one piece is held. NotAsIndexed, VideoError."""
    todo = iter(pieces)
    part: Part | None = None
    for number, frame in frames(path, index, np.concatenate(pieces)):
        part = part or Part(index, next(todo), box, size, interpolation)
        part.take(number, frame)
        if not part.left:
            yield part.whole()
            part = None


class Part:
    """One cut while its frames come in.

    Only the box is converted to RGB (and what lies around it, where that is little), unscaled: swscale has a fast path for that,
    exactly the pixels of a converted whole frame. Torch then scales it, as Pillow would, all frames at once where they are small.
    Scaling within swscale takes longer at 240 to 720 lines and is further from Pillow, for it halves the colour resolution of the
    small picture. tools: for several parts of one file, whose making takes longer than a small frame.
    """

    def __init__(
        self,
        index: Index,
        numbers: np.ndarray,
        box: Box | None,
        size: tuple[int, int],
        interpolation: Interpolation,
        tools: "Tools | None" = None,
    ) -> None:
        self.index, self.box, self.size, self.interpolation = index, box or (0, 0, *index.shown_size), size, interpolation
        self.places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers.tolist()):
            self.places.setdefault(number, []).append(place)
        self.left = len(self.places)
        height, width = self.box[2:]
        together = max(1, self.left)
        # Frames that come in the order in which they are wanted, none twice, and fit into one call are the clip as they come out.
        self.at_once = together * height * width * 3 <= CLIP_BYTES and numbers.tolist() == sorted(self.places)
        if not self.at_once:
            together = min(max(1, RESIZED_BYTES // (height * width * 3)), together)
        self.frames = np.empty((0 if self.at_once else len(numbers), *size, 3), np.uint8)
        self.rows_shape = (together, height, width, 3)
        self.rows: np.ndarray | None = None  # from the first frame to the last: many cuts in turn use the same memory
        self.held: list[list[int]] = []  # places of the frames in `rows`
        self.converter, self.crop = tools or new_tools()

    def take(self, number: int, frame: av.VideoFrame) -> None:
        """Keep what the cut wants of a decoded frame."""
        if number not in self.places:
            return
        if self.rows is None:
            self.rows = np.empty(self.rows_shape, np.uint8)
        self.rows[len(self.held)] = self._pixels(frame)
        self.held.append(self.places[number])
        self.left -= 1
        if len(self.held) == len(self.rows) or not self.left:
            small = resize(torch.from_numpy(self.rows[: len(self.held)]).permute(0, 3, 1, 2), self.size, self.interpolation)
            pictures = small.permute(0, 2, 3, 1).numpy()
            if self.at_once:
                self.frames = np.ascontiguousarray(pictures)
            else:
                for places, picture in zip(self.held, pictures, strict=True):
                    for place in places:
                        self.frames[place] = picture
            self.held = []
        if not self.left:  # of many cuts only those that are not whole yet take memory beyond their pixels
            del self.rows, self.converter, self.crop

    def whole(self) -> Tensor:
        assert not self.left, f"{self.left} frames never came"
        return torch.from_numpy(self.frames).permute(0, 3, 1, 2)

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) RGB uint8 of the box as it is shown."""
        index, (height, width) = self.index, self.box[2:]
        top, left, tall, wide = _stored_box(index, self.box)
        changed = (frame.height, frame.width) != index.stored_size
        if changed:  # on the way: the same part of the picture
            down, right = frame.height / index.stored_size[0], frame.width / index.stored_size[1]
            top, left = min(int(top * down), frame.height - 1), min(int(left * right), frame.width - 1)
            tall = min(max(1, round(tall * down)), frame.height - top)
            wide = min(max(1, round(wide * right)), frame.width - left)
        above, before, part = top, left, frame
        if frame.height % 2 or frame.height * frame.width - tall * wide > CROPPED_PIXELS:
            # Whole chroma samples, and an even number of lines, which the fast conversion asks for.
            above, before = top % ALIGNED, left % ALIGNED
            below, behind = -(top + tall) % ALIGNED, -(left + wide) % ALIGNED
            part = self.crop(
                frame, top - above, left - before, min(frame.height, top + tall + below), min(frame.width, left + wide + behind)
            )
        plane = self.converter.reformat(part, format="rgb24", threads=1).planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pixels = lines[above : above + tall, before * 3 : (before + wide) * 3].reshape(tall, wide, 3)
        shown = np.rot90(pixels[:, ::-1] if index.mirrored else pixels, index.turns)
        if changed:
            picture = torch.from_numpy(shown.copy()).permute(2, 0, 1)[None]
            shown = resize(picture, (height, width), self.interpolation)[0].permute(1, 2, 0).numpy()
        return shown


def _stored_box(index: Index, box: Box) -> Box:
    """The box of a shown picture in the stored one, which was mirrored and then turned to be shown."""
    (top, left, height, width), (shown_height, shown_width) = box, index.shown_size
    for _ in range(index.turns):  # back by a quarter turn
        top, left, height, width = left, shown_height - top - height, width, height
        shown_height, shown_width = shown_width, shown_height
    return top, (shown_width - left - width if index.mirrored else left), height, width


class _Crop:
    """A part of a frame by FFmpeg's crop filter, which copies no pixel. The filter is made anew when the frames change."""

    def __init__(self) -> None:
        self.made_for: object = None

    def __call__(self, frame: av.VideoFrame, top: int, left: int, bottom: int, right: int) -> av.VideoFrame:
        if (top, left, bottom, right) == (0, 0, frame.height, frame.width):
            return frame
        kind = (frame.width, frame.height, frame.format.name, top, left, bottom, right)
        if kind != self.made_for:
            self.graph, self.made_for = av.filter.Graph(), kind
            source = self.graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
            )
            crop = self.graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1")
            self.graph.link_nodes(source, crop, self.graph.add("buffersink")).configure()
        self.graph.vpush(frame)
        return self.graph.vpull()


Tools = tuple[VideoReformatter, _Crop]


def new_tools() -> Tools:
    return VideoReformatter(), _Crop()


def all_frames(
    path: str, index: Index, size: tuple[int, int], interpolation: Interpolation = "bilinear", wanted: range | None = None
) -> Iterator[np.ndarray]:
    """Every frame of a sequential decode, one at a time: (H, W, 3) RGB uint8 of `size` (H, W), as shown. VideoError.

    wanted: the frames of a part of the file, of which as little is decoded as they need; NotAsIndexed.
    """
    whole = range(len(index.seconds))
    numbers = np.array(whole if wanted is None else wanted)
    found = _from_start(path, numbers, approximate=False) if wanted in (None, whole) else frames(path, index, numbers)
    for number, frame in found:
        part = Part(index, np.array([number]), None, size, interpolation)
        part.take(number, frame)
        yield part.frames[0]
