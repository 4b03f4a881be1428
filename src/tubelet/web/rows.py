"""What goes in and out as JSON, as /openapi.json describes it, beside `uploads.Upload` and `library.Moment`."""

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, Field

from tubelet.web.library import Moment


class Problem(BaseModel):
    error: str


class ModelRow(BaseModel):
    """One of the models that answer."""

    name: str
    variant: str
    classes: list[str]
    frames: int
    stride_frames: int
    size: int
    rebuilds: bool
    attends: bool


class ClassRow(BaseModel):
    name: str
    probability: float


class PredictionRow(BaseModel):
    """seconds: for each clip the times of the frames that were looked at."""

    model: str
    top: list[ClassRow]
    seconds: list[list[float]]
    crops: int
    warnings: list[str]


class TimelineRow(BaseModel):
    """seconds: the borders of the moments, one more than there are; probabilities: of every moment, of each of `classes`."""

    model: str
    classes: list[str]
    seconds: list[float]
    probabilities: list[list[float]]


class LibraryRow(BaseModel):
    """How much the library holds; without one, nothing."""

    windows: int = 0
    files: int = 0
    reads_words: bool = False
    model: str = ""


class Question(BaseModel):
    """Words, or the id of an upload (or a part of it, in seconds)."""

    words: str = Field("", max_length=1000)
    video: str = ""
    start_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    end_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    top: int = Field(12, ge=1, le=100)


class Found(BaseModel):
    hits: list[Moment]
    seconds: float


class Tag(BaseModel):
    key: str
    start_seconds: float = Field(allow_inf_nan=False)
    end_seconds: float = Field(allow_inf_nan=False)
    label: str = Field(min_length=1, max_length=200)


class Tags(BaseModel):
    tags: list[Tag] = Field(max_length=10_000)
    top: int = Field(12, ge=1, le=100)


class Taught(BaseModel):
    """surest: of every class the moments that the head is surest of; uncertain: those worth a tag next."""

    classes: list[str]
    seconds: float
    surest: list[Moment]
    uncertain: list[Moment]


Clips = Annotated[int, Query(ge=1, le=32, description="windows in time")]
Top = Annotated[int, Query(ge=1, le=100, description="how many classes")]
Hits = Annotated[int, Query(ge=1, le=100, description="how many moments")]
Second = Annotated[float | None, Query(ge=0, allow_inf_nan=False)]
Times = Annotated[str, Query(max_length=2000, description="seconds, with commas between them")]
Which = Annotated[str, Query(description="name of a model; empty: the first that can")]
