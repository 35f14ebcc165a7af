"""The database's shape. Migrations only add, so that the release before this one still works on it."""

from __future__ import annotations

import logging
import time

import psycopg
from psycopg import sql

log = logging.getLogger(__name__)

VERSION = 1

TABLES = """
CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY);
CREATE TABLE IF NOT EXISTS market_data (
    symbol      text PRIMARY KEY,
    price_ticks bigint NOT NULL CHECK (price_ticks > 0),
    as_of       timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS orders (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client_order_id text NOT NULL UNIQUE,
    account         text NOT NULL,
    symbol          text NOT NULL REFERENCES market_data,
    side            text NOT NULL CHECK (side IN ('buy', 'sell')),
    quantity        bigint NOT NULL CHECK (quantity > 0),
    price_ticks     bigint NOT NULL,
    status          text NOT NULL CHECK (status IN ('pending', 'filled')),
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS trades (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id    bigint NOT NULL UNIQUE REFERENCES orders,
    symbol      text NOT NULL,
    quantity    bigint NOT NULL,
    price_ticks bigint NOT NULL,
    executed_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS positions (
    account    text NOT NULL,
    symbol     text NOT NULL REFERENCES market_data,
    quantity   bigint NOT NULL,
    cash_ticks bigint NOT NULL,
    PRIMARY KEY (account, symbol)
);
"""

#: Paper prices to trade at until `quote` sets others: symbol -> ticks.
SEED = {"AAPL": 1_874_200, "AMZN": 1_781_500, "GOOG": 1_402_300, "MSFT": 4_101_500, "NVDA": 1_201_000}

#: The guide's indexes: name -> what follows ON.
INDEXES = {
    "idx_orders_timestamp": "orders (created_at)",
    "idx_orders_symbol_status": "orders (symbol, status)",
    "idx_positions_symbol": "positions (symbol)",
    "idx_trades_timestamp": "trades (executed_at)",
    "idx_active_orders": "orders (created_at) WHERE status = 'pending'",
    "idx_trades_symbol_date": "trades (symbol, executed_at)",
}

#: Any constant of our own: migrations of one database exclude each other by it.
_LOCK = 0x6F726368


class MigrationError(Exception):
    """The schema could not be brought up; the text says what stands in the way and what to do."""


def migrate(database: str, lock_wait: float = 60.0) -> list[str]:
    """Brings the schema to VERSION and returns what was done, empty if nothing was to do.

    Raises MigrationError, or psycopg.Error where the database itself refuses.
    """
    # autocommit: CREATE INDEX CONCURRENTLY cannot run inside a transaction
    with psycopg.connect(database, autocommit=True, application_name="orchestrator-migrate") as connection:
        _take_lock(connection, lock_wait)
        return _make_tables(connection) + _make_indexes(connection)


def _take_lock(connection: psycopg.Connection, wait: float) -> None:
    """Tries again and again instead of waiting in the server.

    A session that waits in pg_advisory_lock holds a snapshot, and CREATE INDEX CONCURRENTLY of the lock's
    holder waits for all older snapshots: the two would wait for each other.
    """
    deadline = time.monotonic() + wait
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK]).fetchone()
        if row is not None and row[0]:
            return
        if time.monotonic() >= deadline:
            raise MigrationError(f"another migration has held the lock for {wait:.0f} s; run again after it")
        time.sleep(0.2)


def _make_tables(connection: psycopg.Connection) -> list[str]:
    if current_version(connection) >= VERSION:
        return []
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '5s'")
        connection.execute(TABLES)
        for symbol, ticks in SEED.items():
            connection.execute(
                "INSERT INTO market_data VALUES (%s, %s, now()) ON CONFLICT DO NOTHING", [symbol, ticks]
            )
        connection.execute("INSERT INTO schema_version VALUES (%s)", [VERSION])
    return [f"tables at version {VERSION}"]


def current_version(connection: psycopg.Connection) -> int:
    """0 for a database that was never migrated."""
    row = connection.execute("SELECT to_regclass('schema_version') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
    return int(row[0]) if row else 0


def _make_indexes(connection: psycopg.Connection) -> list[str]:
    """Makes the missing indexes without blocking writers.

    A CREATE INDEX CONCURRENTLY that failed or was cut off leaves an INVALID index behind: it costs every
    write, serves no read, and its name makes IF NOT EXISTS believe that all is well.
    """
    done = []
    valid = {
        name: is_valid
        for name, is_valid in connection.execute(
            "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE c.relname = ANY(%s) AND pg_table_is_visible(c.oid)",
            [list(INDEXES)],
        )
    }
    for name, definition in INDEXES.items():
        if valid.get(name):
            continue
        if name in valid:
            log.warning("index is INVALID and is built again", extra={"index": name})
            connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(name)))
        connection.execute(
            sql.SQL("CREATE INDEX CONCURRENTLY {} ON {}").format(sql.Identifier(name), sql.SQL(definition))
        )
        done.append(f"index {name} {'rebuilt' if name in valid else 'created'}")
    return done


def set_quote(database: str, symbol: str, price_ticks: int) -> None:
    """Sets the last price of `symbol`, known or new. Served after the cache's TTL at the latest."""
    with psycopg.connect(database, application_name="orchestrator-quote") as connection:
        connection.execute(
            "INSERT INTO market_data VALUES (%s, %s, now())"
            " ON CONFLICT (symbol) DO UPDATE SET price_ticks = EXCLUDED.price_ticks, as_of = EXCLUDED.as_of",
            [symbol, price_ticks],
        )
