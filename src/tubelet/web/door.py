"""Who is let in, and what everybody is told: looks at requests before they are answered, and makes a status and one line of
what goes wrong."""

import hmac
import ipaddress
import math
import time
from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tubelet.errors import TubeletError, printable
from tubelet.video.guard import Stopped
from tubelet.web.desk import Numbers, Options
from tubelet.web.refused import Refused, unforeseen

# No script, style, picture or connection but our own; nobody may frame the page or guess types.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src "
    "'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
COOKIE = "tubelet_token"
WATCHED = ("/healthz", "/readyz")  # for whoever watches over the process: always answered
QUESTION_BYTES = 4_000_000  # of a body that is no upload
MOST_ADDRESSES = 10_000  # that are remembered before those that are free again are forgotten


class Rate:
    """How much each address asks: `per_minute` requests at once, then as many a minute as come free again, evenly.

    An address is an IPv4 address or an IPv6 network of 64 bits, which one machine may have whole. This machine's own is free: what
    runs here is its owner's. Behind a proxy on this machine it is what `X-Forwarded-For` says.
    """

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.now = per_minute, now
        self.busy: dict[str, float] = {}  # address -> until when what it asked for takes all of its share
        self.most = MOST_ADDRESSES

    def take(self, host: str) -> None:
        """Counts a request; Refused with 429 where it is one too many."""
        address = _sharer(host)
        if not self.per_minute or address is None:
            return
        now, each = self.now(), 60 / self.per_minute
        busy = max(self.busy.get(address, now), now) + each
        if busy - now > 60 + 1e-6:
            why = f"{self.per_minute} requests a minute are answered to one address: try again in a moment"
            raise Refused(429, why, retry_seconds=math.ceil(busy - now - 60 - 1e-6))
        self.busy[address] = busy
        if len(self.busy) > self.most:  # those that are free again need not be remembered
            self.busy = {address: busy for address, busy in self.busy.items() if busy > now}
            self.most = max(MOST_ADDRESSES, 2 * len(self.busy))


def _sharer(host: str) -> str | None:
    """What shares one rate; None for this machine."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return None if address.is_loopback else str(ipaddress.IPv6Network((address, 64), strict=False))
        address = address.ipv4_mapped
    return None if address.is_loopback else str(address)


class Narrow:
    """Lets no body pass that is larger than a question may be, but for uploads, which count for themselves."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] == "/api/videos":
            return await self.app(scope, receive, send)
        body, going = b"", True
        while going:
            message = await receive()
            body += message.get("body", b"")
            going = message.get("more_body", False)
            if len(body) > QUESTION_BYTES:
                refuse = problem(413, f"a question has at most {QUESTION_BYTES / 1e6:g} MB")
                return await refuse(scope, receive, send)
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return first.pop() if first else await receive()

        await self.app(scope, again, send)


class Checked:
    """Looks at every request before it is answered: who asks, how much, by what name, and with what right; and puts HEADERS on
    every answer. (Not a middleware of functions: under one of those nobody learns that the caller has gone.)"""

    def __init__(self, app: ASGIApp, options: Options, numbers: Numbers) -> None:
        self.app, self.options, self.numbers = app, options, numbers
        self.rate = Rate(options.per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, request, status = time.monotonic(), Request(scope), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await (self._let_in(request) or self.app)(scope, receive, answer)
        except Exception as error:
            if status:  # half of it is out: what is left to do is to break it off
                raise
            await _what_went_wrong(error)(scope, receive, answer)
        finally:
            self.numbers.add(request, status, time.monotonic() - began)

    def _let_in(self, request: Request) -> Response | None:
        """Refused, or what is answered at the door already."""
        if request.url.path not in WATCHED and request.client is not None:
            self.rate.take(request.client.host)
        refuse_strangers(request, self.options)
        shown = request.query_params.get("token", "") if request.url.path == "/" else ""
        if not (self.options.token and shown):
            return None
        response = RedirectResponse("/", 303)  # so that it does not stay in the address
        response.set_cookie(COOKIE, shown, httponly=True, samesite="strict")
        return response


def _what_went_wrong(error: Exception) -> Response:
    if isinstance(error, Refused):
        return problem(error.status, error.message, error.retry_seconds)
    if isinstance(error, ClientDisconnect):
        return problem(499, "whoever asked has gone")
    known = unforeseen(error)
    return problem(known.status, known.message)


def refuse_strangers(request: Request, options: Options) -> None:
    """Refused: a host that is not ours (400), a page of another site (403), a missing or wrong token (401)."""
    host = (request.headers.get("host") or "").lower()
    if "*" not in options.hosts and _without_port(host) not in options.hosts:
        raise Refused(
            400, f"this server is not called {printable(host[:80])!r}: use {options.hosts[0]}, or start it with --host"
        )
    origin = request.headers.get("origin")
    if origin and origin.lower() not in (f"http://{host}", f"https://{host}"):
        raise Refused(403, "a page of another site may not use this server")
    if options.token and request.scope["path"] not in WATCHED:
        given = [request.headers.get("authorization", "").removeprefix("Bearer "), request.cookies.get(COOKIE, "")]
        if request.scope["path"] == "/":
            given.append(request.query_params.get("token", ""))
        if not any(hmac.compare_digest(value.encode(), options.token.encode()) for value in given):
            raise Refused(
                401, "a token is wanted: open the address that the server printed, or send Authorization: Bearer TOKEN"
            )


def answer_errors(app: FastAPI) -> None:
    """What goes wrong becomes a status and one line."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return problem(error.status, error.message, error.retry_seconds)

    @app.exception_handler(TubeletError)
    async def mistake(request: Request, error: TubeletError) -> Response:
        return problem(422, printable(" ".join(str(error).split())))

    @app.exception_handler(Stopped)
    async def stopped(request: Request, error: Stopped) -> Response:
        return problem(499, "whoever asked has gone")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return problem(422, f"{'.'.join(map(str, first['loc'][1:])) or 'the request'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        answer = problem(error.status_code, f"{error.detail}: {printable(request.method)} {printable(request.url.path[:200])}")
        answer.headers.update(error.headers or {})
        return answer


def problem(status: int, message: str, retry_seconds: int | None = None) -> JSONResponse:
    headers = {"Retry-After": str(retry_seconds)} if retry_seconds is not None else None
    return JSONResponse({"error": message}, status, headers)


def _without_port(host: str) -> str:
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
