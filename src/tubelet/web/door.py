"""Who is let in, and what everybody is told: looks at requests before they are answered, and makes a status and one line of
what goes wrong."""

import hmac
import time
import traceback
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tubelet.errors import TubeletError, printable
from tubelet.video.guard import Stopped
from tubelet.web.desk import Numbers, Options
from tubelet.web.refused import Refused

Answerer = Callable[[Request], Awaitable[Response]]
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
QUESTION_BYTES = 4_000_000  # of a body that is no upload


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


def checked(options: Options, numbers: Numbers) -> Callable[[Request, Answerer], Awaitable[Response]]:
    """Looks at every request before it is answered: who asks, by what name, and with what right."""

    async def middleware(request: Request, go_on: Answerer) -> Response:
        began = time.monotonic()
        response: Response
        try:
            refuse_strangers(request, options)
            shown = request.query_params.get("token", "") if request.url.path == "/" else ""
            if options.token and shown:
                response = RedirectResponse("/", 303)  # so that it does not stay in the address
                response.set_cookie(COOKIE, shown, httponly=True, samesite="strict")
            else:
                response = await go_on(request)
        except Refused as refused:
            response = problem(refused.status, refused.message, refused.retry_seconds)
        except ClientDisconnect:
            response = problem(499, "whoever asked has gone")
        except OSError as error:
            why = error.strerror or "its disk"
            response = problem(507, f"the server cannot keep this: {why}; make room, or name another --folder")
        except Exception:
            traceback.print_exc()
            response = problem(500, "a mistake in the server; its log has the details")
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        numbers.add(request, response.status_code, time.monotonic() - began)
        return response

    return middleware


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
    if options.token and request.scope["path"] not in ("/healthz", "/readyz"):
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
