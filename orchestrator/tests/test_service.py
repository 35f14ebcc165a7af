"""The endpoints, on the real thing."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import REDIS_PASSWORD, Api, App, wait_for


@pytest.fixture(scope="module")
def api(app: App) -> Iterator[Api]:
    assert app.command("migrate").returncode == 0
    with app.serve(ORCHESTRATOR_QUOTE_TTL="0.5") as running:
        wait_for(lambda: running.get("/ready").status == 200, "readiness")
        yield running


def test_health_names_the_release(api: Api) -> None:
    answer = api.get("/health")
    assert (answer.status, answer.body) == (200, {"status": "alive", "release": "test-release"})


def test_a_quote_is_served_from_the_cache_with_its_own_time(api: Api, app: App) -> None:
    time.sleep(0.6)  # whatever was cached has expired
    first = api.get("/api/v1/market-data?symbol=NVDA").body["quotes"][0]
    second = api.get("/api/v1/market-data?symbol=NVDA").body["quotes"][0]
    assert first == {"symbol": "NVDA", "price": "120.1000", "as_of": first["as_of"], "cached": False}
    assert second == {**first, "cached": True}
    assert app.command("quote", "NVDA", "121.5").returncode == 0
    time.sleep(0.6)
    assert api.get("/api/v1/market-data?symbol=NVDA").body["quotes"][0]["price"] == "121.5000"


@pytest.mark.parametrize(("query", "status"), [("", 422), ("?symbol=NONE", 404), ("?symbol=%00", 404)])
def test_a_quote_that_is_not_there(api: Api, query: str, status: int) -> None:
    assert api.get(f"/api/v1/market-data{query}").status == status


def test_an_order_is_filled_and_booked(api: Api, app: App) -> None:
    bought = api.order("a-1", account="booked", quantity=10)
    sold = api.order("a-2", account="booked", quantity=4, side="sell")
    assert (bought.status, sold.status) == (201, 201)
    assert (bought.body["status"], bought.body["price"]) == ("filled", "187.4200")
    assert app.command("quote", "AAPL", "190").returncode == 0
    try:
        position = api.get("/api/v1/positions?account=booked").body["positions"]
    finally:
        assert app.command("quote", "AAPL", "187.42").returncode == 0
    assert [(one["quantity"], one["cash"], one["market_value"], one["profit"]) for one in position] == [
        (6, "-1124.5200", "1140.0000", "15.4800")
    ]
    assert api.get(f"/api/v1/orders/{bought.body['id']}").body == bought.body
    assert api.get("/api/v1/orders?limit=1").body == {"orders": [sold.body]}


def test_the_same_order_again_is_the_same_order(api: Api, app: App) -> None:
    first, again = api.order("same"), api.order("same")
    assert (first.status, again.status) == (201, 200)
    assert first.body == again.body
    assert (
        app.sql("SELECT count(*) FROM trades JOIN orders o ON o.id = order_id WHERE client_order_id = 'same'")
        == "1"
    )


@pytest.mark.parametrize(
    "change", [{"quantity": 4}, {"side": "sell"}, {"symbol": "MSFT"}, {"account": "other"}]
)
def test_the_same_id_for_another_order_is_a_conflict(api: Api, app: App, change: dict[str, object]) -> None:
    assert api.order("taken").status in (200, 201)
    before = app.sql("SELECT * FROM positions ORDER BY 1, 2")
    assert api.order("taken", **change).status == 409
    assert app.sql("SELECT * FROM positions ORDER BY 1, 2") == before


def test_fifty_senders_of_one_order_make_one_trade(api: Api, app: App) -> None:
    together = threading.Barrier(25)

    def send(_number: int) -> int:
        together.wait(20)
        return api.order("race", account="race", quantity=7).status

    with ThreadPoolExecutor(25) as senders:
        statuses = sorted(senders.map(send, range(50)))
    assert statuses == [200] * 49 + [201]
    assert app.sql("SELECT quantity FROM positions WHERE account = 'race'") == "7"


def test_money_adds_up_after_many_orders_at_once(api: Api, app: App) -> None:
    def send(number: int) -> int:
        side = "buy" if number % 3 else "sell"
        return api.order(f"many-{number}", account="many", quantity=number % 7 + 1, side=side).status

    with ThreadPoolExecutor(16) as senders:
        assert set(senders.map(send, range(120))) == {201}
    expected = sum((number % 7 + 1) * (1 if number % 3 else -1) for number in range(120))
    booked = app.sql("SELECT quantity, cash_ticks FROM positions WHERE account = 'many'")
    assert booked == f"{expected}|{-expected * 1_874_200}"


@pytest.mark.parametrize(
    "change",
    [
        {"quantity": 0},
        {"quantity": -1},
        {"quantity": 1.0},
        {"quantity": True},
        {"quantity": "3"},
        {"quantity": 1_000_001},
        {"side": "hold"},
        {"symbol": "aapl"},
        {"symbol": "UNKNOWN"},
        {"client_order_id": ""},
        {"client_order_id": "x" * 65},
        {"client_order_id": 7},
        {"account": None},
        {"price": "1"},
    ],
    ids=str,
)
def test_a_wrong_order_is_refused_and_books_nothing(api: Api, app: App, change: dict[str, object]) -> None:
    before = app.sql("SELECT count(*) FROM orders")
    answer = api.order(**{"client_order_id": "wrong", **change})  # type: ignore[arg-type]
    assert answer.status == 422
    assert answer.body["error"]
    assert app.sql("SELECT count(*) FROM orders") == before


@pytest.mark.parametrize(
    ("raw", "status"),
    [(b"", 400), (b"{", 400), (b"\xff", 400), (b"[" * 4000, 400), (b"[]", 422), (b" " * 5000, 413)],
)
def test_a_body_that_is_no_order(api: Api, raw: bytes, status: int) -> None:
    assert api.call("POST", "/api/v1/orders", raw=raw).status == status


def test_a_position_cannot_overflow(api: Api, app: App) -> None:
    app.sql("INSERT INTO positions VALUES ('full', 'AAPL', 9223372036854775807, 0)")
    answer = api.order("over", account="full")
    app.sql("DELETE FROM positions WHERE account = 'full'")
    assert (answer.status, app.sql("SELECT count(*) FROM orders WHERE client_order_id = 'over'")) == (
        422,
        "0",
    )


@pytest.mark.parametrize("target", ["/api/v1/orders/0", "/api/v1/orders/99999999999999999999999", "/nothing"])
def test_what_is_not_there_is_404(api: Api, target: str) -> None:
    assert api.get(target).status == 404


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1", "9" * 5000])
def test_a_wrong_limit_is_refused(api: Api, limit: str) -> None:
    assert api.get(f"/api/v1/orders?limit={limit}").status == 422


def test_metrics_have_bounded_labels(api: Api) -> None:
    api.get("/api/v1/orders/1")
    api.get("/nothing/at/all")
    text = api.get("/metrics").body
    assert 'orchestrator_request_seconds_count{method="GET",route="/api/v1/orders/{order_id:int}"' in text
    assert 'orchestrator_release{release="test-release"} 1.0' in text
    assert "/nothing" not in text


def test_a_candidate_takes_no_orders(app: App, api: Api, tmp_path: Path) -> None:
    candidate = App(app.python, app.servers, app.database, app.servers.folder)
    with candidate.serve(ORCHESTRATOR_MODE="candidate") as running:
        wait_for(lambda: running.get("/ready").status == 200, "readiness")
        assert running.order("never").status == 503
    assert api.get("/health").status == 200
    assert app.sql("SELECT count(*) FROM orders WHERE client_order_id = 'never'") == "0"


def test_the_password_is_nowhere_to_be_seen(api: Api) -> None:
    process = Path("/proc", str(api.process.pid))
    seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes() + api.log.read_bytes()
    assert REDIS_PASSWORD.encode() not in seen
    assert api.get("/ready").body["cache"] == "ok"  # so it did use it


def test_without_the_cache_quotes_come_from_the_database(api: Api, app: App) -> None:
    app.servers.stop("redis")
    try:
        answer = api.get("/ready")
        assert (answer.status, answer.body["database"]) == (503, "ok")
        assert answer.body["cache"] != "ok"
        assert api.get("/health").status == 200
        assert api.get("/api/v1/market-data?symbol=AAPL").body["quotes"][0]["cached"] is False
        assert api.order("no-cache").status == 201
    finally:
        app.servers.start("redis")
    wait_for(lambda: api.get("/ready").status == 200, "readiness after the cache came back")


def test_without_the_database_it_is_alive_not_ready_and_heals(api: Api, app: App) -> None:
    app.servers.stop("postgres")
    try:
        started = time.monotonic()
        answer = api.get("/ready")
        assert time.monotonic() - started < 3
        assert (answer.status, answer.body["cache"]) == (503, "ok")
        assert answer.body["database"] != "ok"
        assert api.get("/health").status == 200
        assert api.order("no-database").status == 503
    finally:
        app.servers.start("postgres")
    wait_for(lambda: api.get("/ready").status == 200, "readiness after the database came back")
    assert api.order("no-database").status == 201


def test_the_log_is_json_lines(api: Api) -> None:
    lines = [json.loads(line) for line in api.log.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert any(line.get("release") == "test-release" for line in lines)


def test_sigterm_ends_it_gracefully(app: App, api: Api, tmp_path: Path) -> None:
    other = App(app.python, app.servers, app.database, tmp_path)
    with other.serve() as running:
        wait_for(lambda: running.get("/ready").status == 200, "readiness")
        running.process.send_signal(signal.SIGTERM)
        # uvicorn gives the signal back to itself after its shutdown: systemd counts that as clean
        assert running.process.wait(15) in (0, -signal.SIGTERM)
        assert '"message": "stopped"' in running.log.read_text()


def test_an_unmigrated_database_is_not_ready(app: App, api: Api, tmp_path: Path) -> None:
    empty = App(app.python, app.servers, app.servers.database, tmp_path)
    with empty.serve() as running:
        wait_for(lambda: "not migrated" in running.get("/ready").body["database"], "the reason", 10)
        assert running.get("/ready").status == 503
