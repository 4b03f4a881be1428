"""Frames by number with PyAV (FFmpeg), exactly those of a full sequential decode.

Nothing here seeks by time. The index says which packets a frame needs, so the decoder is given the packets from the nearest
start before it to its own, unneeded ones that no other picture refers to left out, and is then emptied. Packets are read
straight from the file where they lie in one piece (no container is opened at all), else demuxed from the beginning.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation as Scaling
from av.video.reformatter import VideoReformatter
from torch import Tensor

from tubelet.errors import VideoError
from tubelet.records import Interpolation
from tubelet.video._container import open_video, reason
from tubelet.video._index import Index

SCALING = {"bilinear": Scaling.BILINEAR, "bicubic": Scaling.BICUBIC, "area": Scaling.AREA}

Fed = tuple[int, av.Packet, av.VideoCodecContext]  # the number of a packet, itself, the decoder to give it to


class NotAsIndexed(Exception):
    """What the decoder gave back is not what the index promised: the file has to be decoded from its start."""


def frames(path: str, index: Index, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) of every wanted frame (sorted, without repeats), in that order. NotAsIndexed, VideoError."""
    if index.packet is None:
        yield from _from_start(path, wanted)
        return
    left = iter(wanted)
    try:
        for number, frame in _by_packet(path, index, wanted):
            if number != next(left):  # frames come out in the order they are shown: one of them was left out
                raise NotAsIndexed
            yield number, frame
    except av.FFmpegError as error:
        raise NotAsIndexed from error
    if next(left, None) is not None:
        raise NotAsIndexed


def _by_packet(path: str, index: Index, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """The wanted frames, known by their time stamps, from runs of packets that each begin where decoding may begin."""
    assert index.packet is not None
    number_of = {int(index.stamps[number]): number for number in wanted}
    runs = _runs(index, wanted)
    needed = set(index.packet[wanted].tolist())
    feed = [p for a, b in runs for p in range(a, b + 1) if p in needed or not index.droppable[p]]
    starts = {first for first, _ in runs}
    ends = {last for _, last in runs}
    source = _read_packets if index.offset is not None else _demux_packets
    shown_from = 0
    for number, packet, decoder in source(path, index, feed, starts):
        if number in starts:
            shown_from = int(index.packet_stamp[number])
        decoded = decoder.decode(packet)
        if number in ends:
            decoded += decoder.decode(None)
        for frame in decoded:
            # Concealed damage; frames shown before the start of a run may lack what they lean on, and are not wanted.
            if frame.is_corrupt and (frame.pts is None or frame.pts >= shown_from):
                raise NotAsIndexed
            if frame.pts in number_of:
                yield number_of[frame.pts], frame


def _runs(index: Index, wanted: list[int]) -> list[tuple[int, int]]:
    """(first, last) packets that decode the wanted frames; between runs the decoder starts afresh.

    A frame needs all packets from a start that is shown no later than itself: pictures shown before the start they follow in
    the file lean on the one before.
    """
    assert index.packet is not None
    runs: list[tuple[int, int]] = []
    for packet in index.packet[wanted].tolist():
        at = int(np.searchsorted(index.entries, packet, side="right")) - 1
        while at >= 0 and index.packet_stamp[index.entries[at]] > index.packet_stamp[packet]:
            at -= 1
        start = int(index.entries[at]) if at >= 0 else 0
        while runs and start <= runs[-1][1]:  # within what is decoded already
            before = runs.pop()
            start, packet = min(start, before[0]), max(packet, before[1])
        runs.append((start, packet))
    return runs


def _read_packets(path: str, index: Index, feed: list[int], starts: set[int]) -> Iterator[Fed]:
    """Packets straight from the file, and for every run a fresh decoder set up as the container would set it up.

    Fresh rather than flushed, so that nothing of one run can leak into the next.
    """
    assert index.offset is not None
    with Path(path).open("rb") as file:
        for number in feed:
            if number in starts:
                decoder = _new_decoder(index)
            file.seek(index.offset[number])
            packet = av.Packet(int(index.size[number]))  # allocated by FFmpeg, with the padding its decoders rely on
            packet.update(file.read(packet.size))
            packet.pts = int(index.packet_stamp[number])
            packet.time_base = index.time_base
            yield number, packet, decoder


def _new_decoder(index: Index) -> av.VideoCodecContext:
    decoder = av.CodecContext.create(index.decoder, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.extradata = index.extradata
    decoder.codec_tag = index.codec_tag
    decoder.height, decoder.width = index.stored_size
    decoder.thread_count = 1
    return decoder


def _demux_packets(path: str, index: Index, feed: list[int], starts: set[int]) -> Iterator[Fed]:
    """Packets by counting them from the beginning of the file: always the right ones, where seeking by time may not be."""
    with open_video(path) as (container, stream):
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


def _from_start(path: str, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """The wanted frames by counting the frames of a sequential decode."""
    todo = iter(wanted)
    target = next(todo)
    count = 0
    with open_video(path) as (container, stream):
        decoder = stream.codec_context
        try:
            for packet in container.demux(stream):
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


def read_frames(path: str, index: Index, numbers: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """RGB uint8 (T,3,H,W) of the frames `numbers`, of `size` (H, W) as shown."""
    height, width = size
    rows = np.empty((len(numbers), height, width, 3), np.uint8)
    converter = VideoReformatter()
    wanted, place = np.unique(numbers, return_inverse=True)
    slots = [np.flatnonzero(place == i) for i in range(len(wanted))]
    filled = 0
    for at, (_, frame) in enumerate(frames(path, index, wanted.tolist())):
        rows[slots[at]] = _to_rgb(frame, converter, index, size, interpolation)
        filled += len(slots[at])
    assert filled == len(numbers), (filled, len(numbers))
    return torch.from_numpy(rows).permute(0, 3, 1, 2)  # (T,H,W,C) in memory, which crops and resizes fastest


def _to_rgb(
    frame: av.VideoFrame, converter: VideoReformatter, index: Index, size: tuple[int, int], interpolation: Interpolation
) -> np.ndarray:
    """(H, W, 3) uint8 as shown: colour conversion and scaling in one call, on stored pixels, then turned."""
    height, width = size[::-1] if index.turns % 2 else size
    scaling = SCALING[interpolation] if (height, width) != (frame.height, frame.width) else None
    rgb = converter.reformat(frame, width, height, "rgb24", interpolation=scaling, threads=1)
    plane = rgb.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height]
    pixels = lines[:, : width * 3].reshape(height, width, 3)
    return np.rot90(pixels[:, ::-1] if index.mirrored else pixels, index.turns)
