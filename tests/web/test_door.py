"""One address gets so many requests a minute, this machine as many as it likes."""

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tubelet.web.door import MOST_ADDRESSES, Rate
from tubelet.web.refused import Refused


def accepted(rate: Rate, host: str = "192.0.2.1") -> int:
    """0, or after how many seconds to come again."""
    try:
        rate.take(host)
    except Refused as refused:
        assert refused.status == 429 and refused.retry_seconds is not None
        return refused.retry_seconds
    return 0


@given(st.integers(1, 6), st.lists(st.integers(0, 90), max_size=60))
def test_it_is_a_bucket_of_a_minute(per_minute: int, gaps: list[int]) -> None:
    """Beside a bucket of `per_minute` tokens that fills evenly, counted in sixtieths of one."""
    now, tokens = 0, 60 * per_minute
    rate = Rate(per_minute, lambda: float(now))
    for gap in gaps:
        now += gap
        tokens = min(60 * per_minute, tokens + gap * per_minute)
        if tokens >= 60:
            tokens -= 60
            assert not accepted(rate)
        else:
            wanted = accepted(rate)
            assert wanted == math.ceil((60 - tokens) / per_minute)


def test_who_comes_again_when_told_is_answered() -> None:
    now = 1000.3
    rate = Rate(7, lambda: now)
    while not (again := accepted(rate)):
        pass
    now += again
    assert not accepted(rate)


def test_addresses_count_by_themselves_and_this_machine_does_not() -> None:
    rate = Rate(1, lambda: 0.0)
    for host in ("192.0.2.1", "192.0.2.2", "2001:db8:0:1::1", "2001:db8:0:2::1", "fe80::1%eth0", "testclient"):
        assert not accepted(rate, host) and accepted(rate, host)
    assert accepted(rate, "::ffff:192.0.2.1") and accepted(rate, "2001:db8:0:1:ffff::9")  # the same machine by another name
    for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert not any(accepted(rate, host) for _ in range(1000))
    assert not any(accepted(Rate(0), "192.0.2.1") for _ in range(1000))


def test_many_addresses_are_not_all_remembered() -> None:
    now = 0.0
    rate = Rate(60, lambda: now)
    for number in range(5 * MOST_ADDRESSES):
        now += 0.001
        rate.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        assert len(rate.busy) <= MOST_ADDRESSES + 1


def test_one_too_many_is_told_when_to_come_again(model_folders: dict[str, Path], tmp_path: Path) -> None:
    from tubelet.web.app import make_app
    from tubelet.web.desk import Options
    from tubelet.web.uploads import Limits, Uploads
    from tubelet.web.work import open_model

    served = [open_model(model_folders["classifier"], "classifier", "cpu")]
    app = make_app(served, Uploads(tmp_path / "uploads", Limits()), Options(per_minute=2, token="right"))
    right = {"authorization": "Bearer right"}
    with TestClient(app, base_url="http://localhost", client=("192.0.2.7", 1)) as client:
        assert client.get("/api/models", headers=right).status_code == 200
        assert client.get("/api/models", headers={"authorization": "Bearer guess"}).status_code == 401  # guesses count too
        answer = client.get("/api/models", headers=right)
        assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 30
        assert answer.json()["error"] == "2 requests a minute are answered to one address: try again in a moment"
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        for host, status in (("192.0.2.8", 200), ("127.0.0.1", 200), ("192.0.2.7", 429)):
            other = TestClient(app, base_url="http://localhost", client=(host, 1))
            assert other.get("/api/models", headers=right).status_code == status
