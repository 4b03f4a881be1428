"""The library that the page searches: an index of `tubelet index`, its files, and heads that people teach on it.

A file is called by its key, a hash of its path; a path that comes from outside is never opened.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import search, storage
from tubelet.classify import fit
from tubelet.errors import CheckpointError, DataError, printable
from tubelet.features import fingerprint
from tubelet.models._model import Model
from tubelet.search import Hit, Index
from tubelet.train.device import choose_device
from tubelet.video.guard import check_stop
from tubelet.web.refused import Refused
from tubelet.weights.load import load_model


@dataclass(frozen=True)
class Moment:
    """A stretch of a file of the library. score: how near it is, or the probability of `label` where a head said it."""

    key: str
    name: str
    start_seconds: float
    end_seconds: float
    score: float
    label: str
    text: str
    gone: bool


class Library:
    """An index, and the model that it was made with. `network`: that model, where it is loaded already."""

    def __init__(self, uri: str, device: str, networks: Sequence[Model] = ()) -> None:
        self.index = Index.open(uri)
        about = self.index.about
        fitting = [one for one in networks if (fingerprint(one), one.spec) == (about.fingerprint, about.clip)]
        try:
            self.network = fitting[0] if fitting else load_model(about.model_path, choose_device(device), about.precision)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {uri} was made with it: serve it beside the others if it has moved") from error
        self.index.check(self.network)
        self.paths: dict[str, str] = {}  # by key
        self.roots: dict[str, str] = {}  # by path: where its folder really was when the path was first seen
        self.version = -1
        self._looking = threading.Lock()  # one looks for all
        self.refresh()

    def refresh(self) -> None:
        """Looks again at what is in the library, if that has changed."""
        with self._looking:
            version = self.index.version()
            if version == self.version:
                return
            found = sorted(set(self.index.files().values()))
            plain = [path for path in found if storage.is_plain(path)]
            for path in plain:
                self.roots.setdefault(path, os.path.dirname(os.path.realpath(storage.from_utf8(path))))
            self.paths = {key_of(path): path for path in found}
            self.common = os.path.commonpath([os.path.dirname(path) for path in plain]) if plain else ""
            self.windows, self.version = len(self.index), version

    def about(self) -> dict[str, Any]:
        """How much it holds, and whether its model reads words."""
        self.refresh()
        network = self.network
        return {"windows": self.windows, "files": len(self.paths), "reads_words": network.reads_text, "model": network.name}

    def path(self, key: str) -> str:
        """The file of that key; Refused with 404 where there is none, or it is not where it was indexed."""
        if key not in self.paths:
            self.refresh()
        path = self.paths.get(key, "")
        if not path:
            raise Refused(404, "no such file in the library: a key is 32 hexadecimal digits, as a search answers it")
        if not storage.is_plain(path):
            raise Refused(404, "this file lies in a shard or behind an address, and cannot be played from here")
        real = os.path.realpath(storage.from_utf8(path))
        if os.path.dirname(real) not in self.roots.values():  # a link to elsewhere has taken its place
            raise Refused(404, "this file is not in the library's folders any more")
        if not os.path.isfile(real):
            raise Refused(404, "this file has vanished since it was indexed: run `tubelet index` again")
        return real

    def by_words(self, words: str, top: int) -> list[Moment]:
        """The moments nearest to a sentence; ConfigError for an empty one, and where the model reads none."""
        return self._moments(self.index.search(search.text_vector(self.network, words), top))

    def by_video(
        self, path: Path, start: float | None, end: float | None, top: int, tell: Callable[[float], object]
    ) -> list[Moment]:
        """The moments nearest to a video, to a part of it, or to a picture. tell(part) of the way again and again."""

        def on_window(done: int, of: int) -> None:
            check_stop()
            tell(done / of)

        return self._moments(self.index.search(search.video_vector(self.network, path, start, end, on_window), top))

    def teach(self, tags: Sequence[tuple[str, float, float, str]], top: int) -> dict[str, Any]:
        """A linear head from (key, start, end, label) of moments found, and what it says of the whole library: the surest moments
        of every class, and those between whose two likeliest classes it hesitates most."""
        begun = time.perf_counter()
        self.refresh()
        stored, seconds = self.index.windows()
        places = {
            (path, round(start, 3), round(end, 3)): number
            for number, (path, (start, end)) in enumerate(zip(stored.paths, seconds.tolist(), strict=True))
        }
        named: dict[tuple[str, float, float], str] = {}
        for key, start, end, label in tags:
            if named.setdefault((self.paths.get(key, ""), round(start, 3), round(end, 3)), label) != label:
                raise DataError(f"a moment is tagged both {label!r} and otherwise: give each one tag")
        unknown = sum(place not in places for place in named)
        if unknown:
            raise DataError(f"{unknown} of {len(named)} tagged moments are not in the library (any more): search again")
        tagged = [places[place] for place in named]
        head = fit(stored, {stored.ids[number]: label for number, label in zip(tagged, named.values(), strict=True)})
        chances = head.probabilities(stored.vectors)
        best, which = chances.max(dim=1)
        margin = chances.topk(2, dim=1).values.diff(dim=1).abs()[:, 0]
        free = torch.ones(len(best), dtype=torch.bool)
        free[tagged] = False
        each = max(1, top // len(head.classes))
        surest = [n for label in range(len(head.classes)) for n in _largest(best, free & (which == label), each)]
        doubtful = _largest(1 - margin, free, top)

        def moments(numbers: Sequence[int]) -> list[Moment]:
            return [
                self._moment(stored.paths[n], start, end, float(best[n]), head.classes[int(which[n])])
                for n in numbers
                for start, end in [seconds[n].tolist()]
            ]

        return {
            "classes": list(head.classes), "seconds": time.perf_counter() - begun,
            "surest": moments(surest), "uncertain": moments(doubtful),
        }  # fmt: skip

    def _moments(self, hits: Sequence[Hit]) -> list[Moment]:
        self.refresh()
        return [
            self._moment(hit.path, hit.start_seconds, hit.end_seconds, hit.score, hit.label or "", hit.text or "", hit.gone)
            for hit in hits
        ]

    def _moment(
        self, path: str, start: float, end: float, score: float, label: str = "", text: str = "", gone: bool = False
    ) -> Moment:
        name = os.path.relpath(path, self.common) if self.common and storage.is_plain(path) else path
        return Moment(key_of(path), printable(name), start, end, score, label, text, gone)


def key_of(path: str) -> str:
    """What a file is called by, whether the library still has it or not."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _largest(values: Tensor, among: Tensor, count: int) -> list[int]:
    """Places of the `count` largest values, among those that are True."""
    places = among.nonzero()[:, 0]
    order = values[places].argsort(descending=True, stable=True)[:count]
    return [int(place) for place in places[order]]
