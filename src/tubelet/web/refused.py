"""What the server says no with. It stands alone, so that the client need not load what the server needs."""


class Refused(Exception):
    """A request that is not carried out: an HTTP status, and one line that says why and what to try."""

    def __init__(self, status: int, message: str, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_seconds = status, message, retry_seconds
