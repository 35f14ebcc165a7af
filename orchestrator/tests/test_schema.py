"""Migration: twice is once, broken indexes are rebuilt, two at a time wait for each other."""

from __future__ import annotations

import subprocess
import time

import pytest
from conftest import App, wait_for

GUIDE_INDEXES = {
    "idx_orders_timestamp",
    "idx_orders_symbol_status",
    "idx_positions_symbol",
    "idx_trades_timestamp",
    "idx_active_orders",
    "idx_trades_symbol_date",
}


@pytest.fixture(scope="module")
def migrated(app: App) -> App:
    done = app.command("migrate")
    assert done.returncode == 0, done.stdout
    return app


def valid_indexes(app: App) -> set[str]:
    rows = app.sql(
        "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
        " WHERE indisvalid AND relname LIKE 'idx%'"
    )
    return set(rows.split())


def test_all_of_the_guides_indexes_are_there_and_valid(migrated: App) -> None:
    assert valid_indexes(migrated) == GUIDE_INDEXES
    assert "WHERE (status = 'pending'" in migrated.sql(
        "SELECT pg_get_indexdef('idx_active_orders'::regclass)"
    )


def test_a_second_run_does_nothing(migrated: App) -> None:
    before = migrated.sql("SELECT oid, relfilenode FROM pg_class WHERE relname LIKE 'idx%' ORDER BY 1")
    done = migrated.command("migrate")
    assert (done.returncode, '"done": []' in done.stdout) == (0, True), done.stdout
    assert (
        migrated.sql("SELECT oid, relfilenode FROM pg_class WHERE relname LIKE 'idx%' ORDER BY 1") == before
    )


def test_an_invalid_index_is_built_again(migrated: App) -> None:
    # As a CREATE INDEX CONCURRENTLY that was cut off leaves it behind: a deadlock, a timeout, a crash.
    # A snapshot older than the index makes its build wait; its session is then ended.
    migrated.sql("DROP INDEX idx_trades_timestamp")
    holder = subprocess.Popen(
        ["psql", "-qX", migrated.database], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert holder.stdin is not None
    holder.stdin.write(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT INTO market_data VALUES ('X', 1, now());\n"
    )
    holder.stdin.write("SELECT count(*) FROM trades;\n")
    holder.stdin.flush()
    wait_for(
        lambda: (
            migrated.sql(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE state = 'idle in transaction' AND datname = current_database()"
            )
            == "1"
        ),
        "the old transaction",
    )
    cut_off = subprocess.run(
        [
            *("psql", "-qX", "-c", "SET lock_timeout = '300ms'"),
            *(
                "-c",
                "CREATE INDEX CONCURRENTLY idx_trades_timestamp ON trades (executed_at)",
                migrated.database,
            ),
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    holder.stdin.write("ROLLBACK;\n")
    holder.stdin.close()
    holder.wait(10)
    assert "lock timeout" in cut_off.stderr
    assert valid_indexes(migrated) == GUIDE_INDEXES - {"idx_trades_timestamp"}

    done = migrated.command("migrate")
    assert "index idx_trades_timestamp rebuilt" in done.stdout
    assert valid_indexes(migrated) == GUIDE_INDEXES


def test_two_at_once_do_not_wait_for_each_other_for_ever(migrated: App) -> None:
    migrated.sql("DROP INDEX idx_orders_timestamp, idx_active_orders")
    words = [str(migrated.python), "-m", "orchestrator", "migrate"]
    started = time.monotonic()
    both = [
        subprocess.Popen(words, env=migrated.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    outputs = [one.communicate(timeout=60)[0].decode() for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    assert time.monotonic() - started < 50
    assert valid_indexes(migrated) == GUIDE_INDEXES
    assert "".join(outputs).count("index idx_active_orders created") == 1


def test_an_unreachable_database_is_one_clear_line(migrated: App) -> None:
    done = migrated.command("migrate", ORCHESTRATOR_DATABASE="host=/nowhere dbname=x")
    assert done.returncode == 1
    assert "/nowhere" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
