"""One process that serves: opens the models, says where it is, and ends in good order."""

import ipaddress
import re
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from tubelet.ahead import cores
from tubelet.errors import ConfigError, MissingExtraError
from tubelet.web.folder import uploads_folder
from tubelet.web.uploads import Limits, Uploads

if TYPE_CHECKING:
    from tubelet.web.desk import Desk

MOST_CONNECTIONS = 1000
NOTICE_SECONDS = 1.0  # between saying at /readyz that it ends and ending


@dataclass(frozen=True)
class Settings:
    """See `tubelet serve`; its flags are these."""

    host: str = "127.0.0.1"
    port: int = 8765
    token: str = ""
    folder: str = ""
    library: str = ""
    device: str = "auto"
    precision: str = "fp32"
    batch: int = 8
    workers: int | None = None
    places: int = 32
    timeout: float = 300.0
    per_minute: int = 600
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("places", 1), ("per_minute", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be {least} or more")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}: it must be 1 or more")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port}: it must be from 0 (any free one) to 65535")
        for name in ("megabytes", "seconds", "megapixels"):
            if not getattr(self.limits, name) > 0:
                raise ConfigError(f"{name} is {getattr(self.limits, name)}: it must be above 0")
        if not self.host:
            raise ConfigError("host is empty: 127.0.0.1 is this machine only, 0.0.0.0 every address of it")
        if not re.fullmatch(r"[A-Za-z0-9._~-]*", self.token):
            raise ConfigError("the token has letters that do not travel in an address: use A-Z, a-z, 0-9 and . _ ~ -")
        if not 0 < self.timeout < float("inf"):
            raise ConfigError(f"timeout is {self.timeout}: it must be above 0, and finite")


def run(models: Sequence[tuple[str, str]], settings: Settings, say: Callable[[str], None]) -> int:
    """Serve (name, path) models until a signal ends it; gives the exit code. Raises CheckpointError and ConfigError before it
    listens."""
    try:
        import uvicorn

        from tubelet.web.app import make_app
        from tubelet.web.desk import Options
    except ImportError as error:
        raise MissingExtraError(f'the page needs {error.name}: pip install "tubelet[serve]"') from error
    from tubelet.web.library import Library
    from tubelet.web.work import open_model

    names = [name for name, _ in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two models are called {twice!r}: give one a name of its own, as in other={models[-1][1]}")
    own = is_own(settings.host)
    token = settings.token or ("" if own else secrets.token_urlsafe(24))
    listening = listen(settings.host, settings.port)
    port = listening.getsockname()[1]
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    hosts = ("127.0.0.1", "localhost", "[::1]", shown) if own else ("*",)
    with closing(listening), uploads_folder(settings.folder) as folder:
        served = [open_model(path, name, settings.device, settings.batch, settings.precision) for name, path in models]
        uploads = Uploads(folder, settings.limits)
        library = Library(settings.library, settings.device, [one.network for one in served]) if settings.library else None
        workers = settings.workers or cores()
        options = Options(hosts, token, workers, settings.places, settings.timeout, settings.per_minute)
        app = make_app(served, uploads, options, library)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=round(settings.timeout),
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.handle_exit = partial(_ending, app.state.house.desk, server.handle_exit)  # type: ignore[method-assign]
        print(f"http://{shown}:{port}/" + (f"?token={token}" if token else ""), flush=True)
        say("Ctrl-C ends it")
        # uvicorn raises the signal that ended it once more when it is done: it is how one ends a server, and no mishap.
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        server.run(sockets=[listening])
        for number, handler in before.items():
            signal.signal(number, handler)
        say("ended")
        return 0


def _ending(desk: "Desk", end: Callable[[int, FrameType | None], None], number: int, frame: FrameType | None) -> None:
    """What a signal does: no new work is taken and /readyz says so; a moment later the server ends. A second signal ends it now."""
    if desk.ready:
        desk.ready = False
        threading.Timer(NOTICE_SECONDS, end, (number, frame)).start()
    else:
        end(number, frame)


def is_own(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; ConfigError where it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(128)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        why = f"cannot listen at {host} port {port}: {error.strerror}"
        raise ConfigError(f"{why}; choose another --port (0 takes a free one), or --host") from error
    return opened
