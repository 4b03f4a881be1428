"""What the server says no with. It stands alone, so that the client need not load what the server needs."""

import traceback


class Refused(Exception):
    """A request that is not carried out: an HTTP status, and one line that says why and what to try."""

    def __init__(self, status: int, message: str, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_seconds = status, message, retry_seconds


def unforeseen(error: Exception) -> Refused:
    """What is said of an error that nobody foresaw: of the disk, or a mistake of ours, which the log has whole."""
    if isinstance(error, OSError):
        return Refused(507, f"the server cannot keep this: {error.strerror or 'its disk'}; make room, or name another --folder")
    traceback.print_exception(error)
    return Refused(500, "a mistake in the server; its log has the details")
