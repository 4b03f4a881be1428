"""A server of `tubelet serve` from Python, with nothing but the standard library.

client = Client("http://127.0.0.1:8765")
video = client.upload("clip.mp4")
print(client.predict(video["id"])["top"])
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import Request, urlopen

from tubelet.errors import DataError, VideoError
from tubelet.web.refused import Refused

BLOCK = 1 << 20


class Client:
    """Asks the server at `address`, which is what it printed. Every answer is the JSON of /openapi.json; Refused has the status and
    the line of what the server does not do, DataError is raised where there is no server."""

    def __init__(self, address: str, token: str = "", timeout: float = 300.0) -> None:
        parts = urlsplit(address)
        self.address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.token, self.timeout = token or parse_qs(parts.query).get("token", [""])[0], timeout

    def models(self) -> list[dict[str, Any]]:
        """The models that answer."""
        found: list[dict[str, Any]] = json.loads(self.get("/api/models"))
        return found

    def upload(self, path: str | Path) -> dict[str, Any]:
        """Sends a file; its "id" is what the others want. VideoError where there is no such file."""
        try:
            size = Path(path).stat().st_size
            file = open(path, "rb")  # noqa: SIM115 - closed below, where what the network says is told apart
        except OSError as error:
            raise VideoError(f"{path} cannot be read: {error.strerror}") from error
        with file:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            return dict(json.loads(self._ask("/api/videos", file, headers)))

    def predict(self, id: str, model: str = "", clips: int = 5, top: int = 5) -> dict[str, Any]:
        """The most probable classes, and the times of the frames that were looked at."""
        return dict(json.loads(self.get(f"/api/videos/{id}/prediction", model=model, clips=clips, top=top)))

    def timeline(self, id: str, model: str = "") -> dict[str, Any]:
        """The probability of every class over the whole length."""
        return dict(json.loads(self.get(f"/api/videos/{id}/timeline", model=model)))

    def reconstruction(self, id: str, mask: str = "tube", ratio: float = 0.9, seed: int = 0, model: str = "") -> bytes:
        """PNG: the clip, what the model was shown, what it made of that."""
        return self.get(f"/api/videos/{id}/reconstruction.png", mask=mask, ratio=ratio, seed=seed, model=model)

    def search(self, words: str = "", video: str = "", top: int = 12) -> list[dict[str, Any]]:
        """Moments of the library that fit the words, or are like the upload `video`."""
        return list(self._post("/api/search", {"words": words, "video": video, "top": top})["hits"])

    def teach(self, tags: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A classifier from moments of the library, each {"key", "start_seconds", "end_seconds", "label"}, applied to all of it."""
        return self._post("/api/heads", {"tags": list(tags)})

    def get(self, address: str, **query: Any) -> bytes:
        """The bytes of an address of the API."""
        return self._ask(f"{address}?{urlencode(query)}" if query else address, None, {})

    def _post(self, address: str, value: Any) -> dict[str, Any]:
        return dict(json.loads(self._ask(address, json.dumps(value).encode(), {"Content-Type": "application/json"})))

    def _ask(self, address: str, body: Any, headers: dict[str, str]) -> bytes:
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            with urlopen(Request(self.address + address, body, headers), timeout=self.timeout) as answer:
                return bytes(answer.read())
        except HTTPError as error:
            try:
                message = json.load(error)["error"]
            except (ValueError, KeyError):
                message = str(error)
            raise Refused(error.code, message) from None
        except (URLError, OSError) as error:
            if isinstance(getattr(error, "reason", error), ConnectionResetError | BrokenPipeError):
                raise DataError(f"{self.address} closed the connection: is the file larger than it takes?") from error
            why = getattr(error, "reason", error)
            raise DataError(f"no server at {self.address}: {why}; start one with `tubelet serve MODEL`") from error
