"""Libraries of videos: made and kept by `Index`, asked by words, a video or a picture (`question`), answered with `Hit`s."""

from tubelet.search.answers import Filter, Hit, contact_sheet
from tubelet.search.lance import About
from tubelet.search.library import Added, Index
from tubelet.search.questions import picture_vector, question, text_vector, video_vector

__all__ = [
    "About", "Added", "Filter", "Hit", "Index", "contact_sheet", "picture_vector", "question", "text_vector", "video_vector",
]  # fmt: skip
