"""What all addresses share. A route asks for it with an argument `here: Here`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from tubelet.web.desk import Desk, Numbers
from tubelet.web.library import Library
from tubelet.web.uploads import Uploads
from tubelet.web.work import Served


@dataclass(frozen=True)
class House:
    """The models that answer, in the order given; what was uploaded; what is searched; where work is done, and counted."""

    models: Sequence[Served]
    uploads: Uploads
    library: Library | None
    desk: Desk
    numbers: Numbers


async def _house(request: Request) -> House:
    found: House = request.app.state.house
    return found


Here = Annotated[House, Depends(_house)]
