"""Whoever goes away, or asks for too long a work, costs nothing more: the process that reads for them is ended at whatever it is.

The process is stopped (SIGSTOP) before it is asked, so it never gets done by itself; one worker thread answers everybody.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tubelet.web.client import Client
from tubelet.web.folder import uploads_folder
from tubelet.web.refused import Refused

Served = tuple[Client, int]


@pytest.fixture(scope="module")
def served(serve: Callable[..., tuple[str, subprocess.Popen[str]]], indexed: tuple[Path, Path, Path]) -> Served:
    """(client, id of the process) of a server that gives up after some seconds."""
    address, process = serve("--workers", "1", "--timeout", "6", "--per-minute", "2", "--library", str(indexed[2]))
    return Client(address), process.pid


@pytest.fixture
def frozen(served: Served, motion_folder: Path) -> Iterator[tuple[str, set[int]]]:
    """(id of an upload, the processes that read files for the server, which stand still)."""
    client, process = served
    id = client.upload(sorted(motion_folder.glob("val/*/*.mp4"))[0])["id"]
    readers = children(process)
    assert readers
    for reader in readers:
        os.kill(reader, signal.SIGSTOP)
    yield id, readers
    for reader in readers & children(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(reader, signal.SIGCONT)


def children(process: int) -> set[int]:
    found = set()
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = place.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == process and state != "Z":
                found.add(int(place.parent.name))
    return found


def until(holds: Callable[[], bool]) -> None:
    """Waits for what will come; half as long as a process that stands still is given by the decoder itself."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def number(client: Client, row: str) -> float:
    """Of /metrics."""
    rows = [line for line in client.get("/metrics").decode().splitlines() if line.startswith(row)]
    return float(rows[0].rpartition(" ")[2]) if rows else 0.0


@pytest.mark.parametrize(
    "what",
    ["timeline", "timeline/events", "prediction?clips=2", "prediction/events?clips=2", "strip.png?seconds=0", "search/events"],
)
def test_whoever_goes_away_is_read_for_no_longer(served: Served, frozen: tuple[str, set[int]], what: str) -> None:
    (client, _), (id, readers) = served, frozen
    go_away(served, readers, f"GET /api/videos/{id}/{what} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answered(client, id)
    if "events" not in what:  # those were answered with 200 before the work began
        row = what.partition("?")[0]
        assert number(client, f'tubelet_requests_total{{address="/api/videos/{{id}}/{row}",method="GET",status="499"}}') >= 1


def test_whoever_searches_and_goes_away_is_read_for_no_longer(served: Served, frozen: tuple[str, set[int]]) -> None:
    (client, _), (id, readers) = served, frozen
    body = json.dumps({"video": id})
    headers = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    go_away(served, readers, f"POST /api/search HTTP/1.1\r\n{headers}\r\n\r\n{body}")
    answered(client, id)
    assert number(client, 'tubelet_requests_total{address="/api/search",method="POST",status="499"}') >= 1


def test_what_takes_too_long_is_ended(served: Served, frozen: tuple[str, set[int]]) -> None:
    (client, process), (id, readers) = served, frozen
    with pytest.raises(Refused, match="not done within 6 s") as refused:
        client.get(f"/api/videos/{id}/prediction", clips=3)
    assert refused.value.status == 504
    until(lambda: len(readers & children(process)) == len(readers) - 1)
    answered(client, id)


def go_away(served: Served, readers: set[int], request: str) -> None:
    """Somebody asks and closes, a little later each time, until the work had begun: then a process that read is gone."""
    client, process = served
    patience = iter([0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2])  # seconds; after 6 the server itself would end it

    def one_is_gone() -> bool:
        with socket.create_connection(("127.0.0.1", int(client.address.rpartition(":")[2])), timeout=30) as asking:
            asking.sendall(request.encode())
            until(lambda: number(client, "tubelet_requests_in_progress") == 1)
            time.sleep(next(patience))
        until(lambda: number(client, "tubelet_requests_in_progress") == 0)
        for _ in range(40):  # the thread that reads sees it a little later than the request ends
            if len(readers & children(process)) < len(readers):
                return True
            time.sleep(0.05)
        return False

    until(one_is_gone)


def answered(client: Client, id: str) -> None:
    """The next one is, and nothing was worked out for the one before."""
    assert client.get(f"/api/videos/{id}/strip.png", seconds="0,0.5").startswith(b"\x89PNG")
    assert number(client, "tubelet_requests_in_progress") == 0 and number(client, 'tubelet_clips{model="classifier"}') == 0


def test_addresses_behind_a_proxy_on_this_machine_count_by_themselves(served: Served) -> None:
    client, _ = served
    statuses = []
    for _ in range(3):
        try:
            statuses.append(bool(client._ask("/api/models", None, {"X-Forwarded-For": "192.0.2.9"})))
        except Refused as refused:
            statuses.append(refused.status)
    assert statuses == [True, True, 429]
    assert all(client.models() for _ in range(20))


def test_what_a_killed_server_left_goes_when_the_next_begins(
    serve: Callable[..., tuple[str, subprocess.Popen[str]]],
    motion_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / "of others" / "kept"
    other.parent.mkdir()
    other.touch()
    link = tmp_path / "tubelet-serve-link"
    link.symlink_to(other.parent)
    with uploads_folder() as living:
        (living / "of the living").touch()
        address, process = serve("--workers", "1", TMPDIR=str(tmp_path))
        Client(address).upload(sorted(motion_folder.glob("val/*/*.mp4"))[0])
        [left] = set(tmp_path.glob("tubelet-serve-*")) - {living, link}
        with uploads_folder():
            assert len(list(left.iterdir())) == 2  # of one that lives
        process.kill()
        process.wait()
        assert len(list(left.iterdir())) == 2
        with uploads_folder() as mine:
            assert not left.exists() and mine.exists() and (living / "of the living").exists()
    assert not living.exists() and not mine.exists() and other.exists()


def test_a_folder_that_stays_loses_only_what_was_not_finished_by_a_killed_server(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with uploads_folder(str(folder)) as held:
        assert held == folder
        for name in ("whole", "begun.part"):
            (folder / name).touch()
        with uploads_folder(str(folder)):
            assert (folder / "begun.part").exists()  # somebody may be at it
    with uploads_folder(str(folder)):
        assert [place.name for place in folder.iterdir()] == ["whole"]
