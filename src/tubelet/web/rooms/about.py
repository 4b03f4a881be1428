"""The page itself, and what a program wants to know first: is the server well, which models answer, which masks there are."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Response

from tubelet import masking
from tubelet.web.house import Here
from tubelet.web.refused import Refused
from tubelet.web.rows import ModelRow

PAGE = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
router = APIRouter()


def _static(file: str, kind: str) -> Callable[[], Awaitable[Response]]:
    data = (files("tubelet.web") / "page" / file).read_bytes()

    async def page() -> Response:
        return Response(data, media_type=kind)

    return page


for _address, (_name, _kind) in PAGE.items():
    router.add_api_route(_address, _static(_name, _kind), include_in_schema=False)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process lives."""
    return {"status": "alive"}


@router.get("/readyz")
async def readyz(here: Here) -> dict[str, str]:
    """Whether it takes new work: 503 when it is about to end."""
    if not here.desk.ready:
        raise Refused(503, "about to end", retry_seconds=5)
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(here: Here) -> Response:
    """Counts and times in the format of Prometheus."""
    return Response(here.numbers.text(), media_type="text/plain; version=0.0.4")


@router.get("/api/models")
async def list_models(here: Here) -> list[ModelRow]:
    """The models that answer."""
    return [
        ModelRow(
            name=m.name, variant=m.network.name, classes=list(m.network.class_names), frames=m.network.spec.frames,
            stride_frames=m.network.spec.stride_frames, size=m.network.spec.size, rebuilds=m.rebuilds, attends=m.attends,
        )
        for m in here.models
    ]  # fmt: skip


@router.get("/api/masks")
async def list_masks() -> list[str]:
    """The kinds of mask that a reconstruction may be asked for."""
    return list(masking.KINDS)
