"""A corpus of hostile files: tiny whole videos in five containers, and what a seed makes of them."""

import io
import os
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

FORMATS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4", ".ts": "mpeg2video"}
HUGE = (100_000, 2**31 - 1, 10**9, 2**32 - 1)
TITLE = b"a title that is here to be spoiled"
# Field of an mp4 file: the box it lies in, its offset from the box's name, and values that no honest file has there.
BOX_FIELDS: dict[str, tuple[bytes, int, tuple[int, ...]]] = {
    "zero fps": (b"mdhd", 16, (0,)),
    "absurd time scale": (b"mdhd", 16, HUGE),
    "absurd duration": (b"mdhd", 20, HUGE),
    "absurd movie duration": (b"mvhd", 20, HUGE),
    "100,000 pixels wide and high": (b"avc1", 28, (0xFFFFFFFF, 0xC350C350)),
    "1,000,000,000 samples of a byte": (b"stsz", 8, (1,)),
    "a sample that is too large": (b"stsz", 16, HUGE),
    "1,000,000,000 frames": (b"stts", 12, (10**9, 2**31 - 1)),
    "absurd frame duration": (b"stts", 16, HUGE),
    "absurd rotation": (b"tkhd", 44, (0, 0x7FFFFFFF, 0x80000000, 12345)),
    "absurd offset": (b"stco", 12, HUGE),
    "absurd box size": (b"trak", -4, (0, 1, 7, 2**31, 2**32 - 1)),
}
RIFF_FIELDS: dict[str, tuple[bytes, int, tuple[int, ...]]] = {
    "zero fps": (b"strh", 28, (0,)),
    "absurd fps": (b"strh", 32, HUGE),
    "1,000,000,000 frames": (b"avih", 24, (10**9,)),
    "1,000,000,000 frames in a stream": (b"strh", 40, (10**9,)),
    "100,000 pixels wide": (b"strf", 12, HUGE),
    "absurd chunk size": (b"movi", -8, HUGE),
}
EBML_FIELDS: dict[str, tuple[bytes, int, tuple[int, ...]]] = {
    "absurd duration": (b"\x44\x89\x88", 3, HUGE),
    "absurd width": (b"\xb0\x81", 1, (0x84FFFFFF, 0x84000186)),
    "absurd time scale": (b"\x2a\xd7\xb1", 4, (0, *HUGE)),
}

Change = Callable[[bytearray, random.Random], None]


def whole_video(path: Path, codec: str, seed: int = 0, frames: int = 12) -> Path:
    """48x64 pixels, 12 frames, with a title."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 256, (48, 64 + frames, 3), np.uint8)
    with av.open(str(path), "w") as container:
        container.metadata["title"] = TITLE.decode()
        stream = container.add_stream(codec, rate=Fraction(25), options={"g": "6"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.thread_count = 1
        for t in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(texture[:, t : t + 64].copy(), format="rgb24")))
        container.mux(stream.encode())
    return path


def flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 4, 32, 256])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_bits_of_the_header(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 4, 16])):
        data[chance.randrange(min(len(data), 800))] ^= 1 << chance.randrange(8)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def overwrite(data: bytearray, chance: random.Random) -> None:
    start, length = chance.randrange(len(data)), chance.choice([16, 256, 2048])
    data[start : start + length] = chance.choice([bytes(length), b"\xff" * length, chance.randbytes(length)])[
        : len(data) - start
    ]


def take_out(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.choice([1, 7, 188, 1000])]


def put_in_twice(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    piece = data[start : start + chance.choice([8, 188, 1000])]
    data[chance.randrange(len(data)) : 0] = piece


def swap_parts(data: bytearray, chance: random.Random) -> None:
    """Boxes of an mp4 file, top ones or those of its index; stretches of any other."""
    boxes = _boxes(data, 0, len(data))
    if len(boxes) > 1:
        inside = [box for box in boxes if data[box[0] + 4 : box[0] + 8] == b"moov"]
        if inside and chance.random() < 0.7:
            boxes = _boxes(data, inside[0][0] + 8, inside[0][1])
            nested = [box for box in boxes if data[box[0] + 4 : box[0] + 8] == b"trak"]
            if nested and chance.random() < 0.5:
                boxes = _boxes(data, nested[0][0] + 8, nested[0][1])
    else:
        cuts = sorted(chance.sample(range(len(data)), 5))
        boxes = list(pairwise(cuts))
    pieces = [bytes(data[start:end]) for start, end in boxes]
    chance.shuffle(pieces)
    data[boxes[0][0] : boxes[-1][1]] = b"".join(pieces)


def _boxes(data: bytearray, start: int, end: int) -> list[tuple[int, int]]:
    found = []
    while start + 8 <= end:
        length = int.from_bytes(data[start : start + 4], "big")
        if length < 8 or start + length > end:
            break
        found.append((start, start + length))
        start += length
    return found


def spoil_title(data: bytearray, chance: random.Random) -> None:
    """Metadata that is not UTF-8."""
    place = data.find(TITLE)
    if place >= 0:
        data[place : place + len(TITLE)] = chance.randbytes(len(TITLE)).replace(b"\0", b"\xff")


CHANGES: dict[str, Change] = {
    "flipped bits": flip_bits, "flipped bits of the header": flip_bits_of_the_header, "truncated": truncate,
    "overwritten": overwrite, "a piece taken out": take_out, "a piece twice": put_in_twice, "swapped parts": swap_parts,
    "a title that is not UTF-8": spoil_title,
}  # fmt: skip


def set_field(data: bytearray, suffix: str, chance: random.Random) -> str:
    """A field of the header gets an absurd value; its name, "" where the format has none."""
    fields = {".mp4": BOX_FIELDS, ".avi": RIFF_FIELDS, ".mkv": EBML_FIELDS, ".webm": EBML_FIELDS}.get(suffix, {})
    present = [(name, data.find(mark) + at, values) for name, (mark, at, values) in fields.items() if mark in data]
    if not present:
        return ""
    name, place, values = chance.choice(present)
    order = "<" if suffix == ".avi" else ">"
    data[place : place + 4] = struct.pack(f"{order}I", chance.choice(values))
    if name == "1,000,000,000 samples of a byte":
        data[place + 4 : place + 8] = struct.pack(">I", 10**9)
    return name


def special_files(folder: Path, video: bytes) -> dict[Path, str]:
    """What is no mutation: archives, links, pipes and strange names. Path -> kind."""
    made: dict[Path, str] = {}

    def file(name: str | bytes, content: bytes, kind: str) -> None:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        path.write_bytes(content)
        made[path] = kind

    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("video.mp4", video)
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w:gz") as tar:
        entry = tarfile.TarInfo("inner.zip")
        entry.size = len(inner.getvalue())
        tar.addfile(entry, io.BytesIO(inner.getvalue()))
    file("archive.mp4", inner.getvalue(), "archive")
    file("nested archive.mkv", outer.getvalue(), "archive")
    file("empty.mp4", b"", "empty")
    file("huge.mp4", b"YUV4MPEG2 W100000 H100000 F25:1\nFRAME\n" + bytes(1000), "a header of 100,000 x 100,000 pixels")
    picture = whole_video(folder / "bomb.gif", "gif").read_bytes()
    file("bomb.gif", picture[:6] + struct.pack("<HH", 15_000, 15_000) + picture[10:], "a small file of huge pictures")
    file("playlist.avi", b"ffconcat version 1.0\nfile /etc/passwd\n", "playlist")
    file("stream.ts", b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/x.ts\n", "playlist")
    for name in (
        "two\nlines.mp4",
        "\u202egpj.mp4",
        "\x1b[31mred.mp4",
        "ünï 𝄞 視.mp4",
        "-rf.mp4",
        "a:b.mp4",
        "%03d.mp4",
        "q'\".mp4",
    ):
        file(name, video, "a whole video with a strange name")
    file(b"not \xff utf-8.mp4", video, "a whole video with a strange name")
    file("x" * 240 + ".mp4", video, "a whole video with a strange name")
    for name, target in {"dangling.mp4": "nowhere.mp4", "loop.mp4": "loop.mp4", "zero.mp4": "/dev/zero"}.items():
        (folder / name).symlink_to(target)
        made[folder / name] = "a link to nothing"
    (folder / "again").symlink_to(folder)
    os.mkfifo(folder / "pipe.mp4")
    made[folder / "pipe.mp4"] = "a pipe"
    return made


@pytest.fixture(scope="session")
def corpus() -> Callable[[Path, int, int], dict[Path, str]]:
    """Writes `count` mutated files of a seed into a new folder, a few whole ones and special files: path -> kind."""

    def write(folder: Path, count: int, seed: int) -> dict[Path, str]:
        chance = random.Random(seed)
        folder.mkdir()
        whole = {suffix: whole_video(folder / f"whole{suffix}", codec) for suffix, codec in FORMATS.items()}
        sources = {suffix: path.read_bytes() for suffix, path in whole.items()}
        found = dict.fromkeys(whole.values(), "whole") | special_files(folder, sources[".mp4"])
        for number in range(count):
            suffix = chance.choice([".mp4", ".mp4", *FORMATS])
            data = bytearray(sources[suffix])
            kind = set_field(data, suffix, chance) if number % 2 else ""
            if not kind:
                kind, change = chance.choice(list(CHANGES.items()))
                change(data, chance)
            path = folder / f"{number:04d}{suffix}"
            path.write_bytes(data)
            found[path] = kind
        return found

    return write
