"""What one packet of compressed video says about itself, read from its first bytes without decoding it.

The index needs to know, packet by packet: may decoding start here, may it be left out when its own frame is not wanted,
does it show a frame, and is it in one piece. Sources: H.264 (ITU-T H.264 7.3.1, D.1.8), HEVC (H.265 7.3.1.2, table 7-1),
VP8 (RFC 6386 9.1), VP9 (bitstream specification 6.2, Annex B).
"""

from typing import NamedTuple

READABLE = ("h264", "hevc", "vp8", "vp9", "av1")  # the codecs that `read_packet` understands


class PacketFacts(NamedTuple):
    """entry: decoding may start here (with later pictures exact). droppable: no other picture needs this one.

    shown: a frame comes out for it. sound: its inner lengths add up. resets: a point (end of sequence, BLA picture) after which
    some leading pictures vanish, so that frames cannot be counted without decoding. layer: temporal layer (HEVC only).
    """

    entry: bool
    droppable: bool = False
    shown: bool = True
    sound: bool = True
    resets: bool = False
    layer: int = 0


def nal_length_bytes(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length in front of every NAL unit: 1 to 4 in mp4 and mkv, 0 where start codes are used (MPEG-TS, AVI)."""
    if codec == "h264" and extradata and len(extradata) > 6 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and extradata and len(extradata) > 22 and extradata[:3] not in (b"\0\0\0", b"\0\0\1"):
        return (extradata[21] & 3) + 1
    return 0


def read_packet(codec: str, data: bytes, key: bool, length_bytes: int) -> PacketFacts:
    """The facts of one packet; `key` is what the container says about it."""
    if codec == "h264":
        return _h264(data, *_nal_units(data, length_bytes), key, length_bytes)
    if codec == "hevc":
        return _hevc(data, *_nal_units(data, length_bytes), length_bytes)
    if codec == "vp8":
        return PacketFacts(entry=key, shown=bool(data[0] & 0x10), sound=bool(data[0] & 1) != key)
    if codec == "vp9":
        return _vp9(data, key)
    assert codec == "av1", codec
    return PacketFacts(entry=key, sound=not data[0] & 0x80)  # the forbidden bit of the first OBU header


def _nal_units(data: bytes, length_bytes: int) -> tuple[list[int], bool]:
    """Offsets of the NAL unit headers in a packet, and whether the lengths add up to the packet's size."""
    units: list[int] = []
    if length_bytes == 0:
        at = data.find(b"\0\0\1")
        while at >= 0:
            units.append(at + 3)
            at = data.find(b"\0\0\1", at + 3)
        return [at for at in units if at < len(data)], bool(units)
    at, sound = 0, True
    while at + length_bytes <= len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if size == 0 or at + size > len(data):
            sound = False
            break
        units.append(at)
        at += size
    return units, sound and at == len(data)


def _h264(data: bytes, units: list[int], sound: bool, key: bool, length_bytes: int) -> PacketFacts:
    kinds = {data[at] & 31 for at in units}
    slices = [at for at in units if data[at] & 31 in (1, 2, 5)]
    sound = sound and bool(slices) and not any(data[at] & 0x80 for at in units)
    recovers = key and any(data[at] & 31 == 6 and _recovers_at_once(data[at + 1 : at + 64]) for at in units)
    # With start codes the parameter sets travel in the stream: a start without them would use whatever came before.
    entry = bool(slices) and (5 in kinds or recovers) and (length_bytes > 0 or {7, 8} <= kinds)
    droppable = bool(slices) and all(data[at] & 0x60 == 0 for at in slices) and not kinds & {7, 8, 10, 11}
    return PacketFacts(entry, droppable, bool(slices), sound)


def _recovers_at_once(sei: bytes) -> bool:
    """Whether an SEI NAL unit holds a recovery point with a frame count of 0: an open-GOP I frame."""
    at = 0
    while at + 2 < len(sei) and sei[at] not in (0x80, 0xFF) and sei[at + 1] != 0xFF:
        if sei[at] == 6:
            return bool(sei[at + 2] & 0x80)
        at += 2 + sei[at + 1]
    return False


def _hevc(data: bytes, units: list[int], sound: bool, length_bytes: int) -> PacketFacts:
    kinds = {data[at] >> 1 & 63 for at in units}
    slices = [at for at in units if data[at] >> 1 & 63 < 32]
    sound = sound and bool(slices) and not any(data[at] & 0x80 or at + 1 >= len(data) for at in units)
    entry = bool(slices) and all(16 <= data[at] >> 1 & 63 <= 21 for at in slices)
    entry = entry and (length_bytes > 0 or {32, 33, 34} <= kinds)
    droppable = bool(slices) and all(data[at] >> 1 & 63 in (0, 2, 4, 6, 8) for at in slices) and max(kinds) < 32
    layer = data[slices[0] + 1] & 7 if sound else 0
    return PacketFacts(entry, droppable, bool(slices), sound, bool(kinds & {16, 17, 18, 36, 37}), layer)


def _vp9(data: bytes, key: bool) -> PacketFacts:
    sound = data[0] >> 6 == 2
    if data[-1] & 0xE0 == 0xC0:  # a superframe: hidden frames and, last, the shown one
        return PacketFacts(entry=key, sound=sound)
    bit = 3 - (data[0] & 0x30 == 0x30)  # a reserved bit follows profile 3
    existing, show = data[0] >> bit & 1, data[0] >> (bit - 2) & 1
    return PacketFacts(entry=key, shown=bool(existing or show), sound=sound)
