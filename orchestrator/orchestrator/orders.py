"""Paper orders: checked, filled at the last price, booked into the position, once per client order id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from psycopg.errors import NumericValueOutOfRange
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from .money import MAX_QUANTITY, format_ticks

SYMBOL = re.compile(r"[A-Z][A-Z0-9.]{0,11}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)
_FIELDS = frozenset({"client_order_id", "account", "symbol", "side", "quantity"})

_COLUMNS = "id, client_order_id, account, symbol, side, quantity, price_ticks, status, created_at"

# One statement is one transaction and one round trip: the order, its trade and the position stand together or
# not at all. It gives no row where the id is taken or the symbol unknown.
_PLACE = f"""
WITH placed AS (
    INSERT INTO orders (client_order_id, account, symbol, side, quantity, price_ticks, status)
    SELECT %(client_order_id)s, %(account)s, symbol, %(side)s, %(quantity)s, price_ticks, 'filled'
    FROM market_data WHERE symbol = %(symbol)s
    ON CONFLICT (client_order_id) DO NOTHING
    RETURNING {_COLUMNS}
), traded AS (
    INSERT INTO trades (order_id, symbol, quantity, price_ticks)
    SELECT id, symbol, quantity * CASE side WHEN 'buy' THEN 1 ELSE -1 END, price_ticks FROM placed
    RETURNING symbol, quantity, price_ticks
), booked AS (
    INSERT INTO positions (account, symbol, quantity, cash_ticks)
    SELECT %(account)s, symbol, quantity, -quantity * price_ticks FROM traded
    ON CONFLICT (account, symbol) DO UPDATE
    SET quantity = positions.quantity + EXCLUDED.quantity,
        cash_ticks = positions.cash_ticks + EXCLUDED.cash_ticks
)
SELECT {_COLUMNS} FROM placed
"""  # noqa: S608 -- only our own column list is put in
_BY_CLIENT_ID = f"SELECT {_COLUMNS} FROM orders WHERE client_order_id = %(client_order_id)s"  # noqa: S608


class Invalid(Exception):
    """The request is wrong; the text says which field and what it takes."""


class Conflict(Exception):
    """The client order id stands for another order already."""


@dataclass(frozen=True, slots=True)
class OrderRequest:
    client_order_id: str
    symbol: str
    side: str
    quantity: int
    account: str = "paper"

    @classmethod
    def parse(cls, body: object) -> OrderRequest:
        """Raises Invalid."""
        if not isinstance(body, dict):
            raise Invalid("the body must be a JSON object")
        if unknown := sorted(map(str, set(body) - _FIELDS)):
            raise Invalid(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
        account = body.get("account", "paper")
        for field, value, pattern in (
            ("client_order_id", body.get("client_order_id"), _NAME),
            ("account", account, _NAME),
            ("symbol", body.get("symbol"), SYMBOL),
        ):
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise Invalid(f"{field} must be text of the form {pattern.pattern}")
        side, quantity = body.get("side"), body.get("quantity")
        if side not in ("buy", "sell"):
            raise Invalid("side must be buy or sell")
        if type(quantity) is not int or not 0 < quantity <= MAX_QUANTITY:  # bool is an int, 1.0 is not
            raise Invalid(f"quantity must be a whole number from 1 to {MAX_QUANTITY}")
        return cls(body["client_order_id"], body["symbol"], side, quantity, account)

    def as_parameters(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in _FIELDS}


class Orders:
    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def place(self, request: OrderRequest) -> tuple[dict[str, Any], bool]:
        """The order as JSON, and whether this call made it.

        Raises Conflict where the id belongs to an order with other contents, Invalid for an unknown symbol.
        """
        wanted = request.as_parameters()
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            try:
                await cursor.execute(_PLACE, wanted)
            except NumericValueOutOfRange:
                raise Invalid(
                    f"the position in {request.symbol} would grow beyond what can be booked"
                ) from None
            row = await cursor.fetchone()
            if row is not None:
                return _order_json(row), True
            # A statement of its own, with a newer snapshot: the other order may just have been committed.
            await cursor.execute(_BY_CLIENT_ID, wanted)
            row = await cursor.fetchone()
        if row is None:
            raise Invalid(f"symbol {request.symbol} is not traded here")
        if any(row[field] != value for field, value in wanted.items()):
            raise Conflict(f"client_order_id {request.client_order_id} stands for another order")
        return _order_json(row), False

    async def get(self, order_id: int) -> dict[str, Any] | None:
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(f"SELECT {_COLUMNS} FROM orders WHERE id = %s", [order_id])  # noqa: S608
            row = await cursor.fetchone()
        return None if row is None else _order_json(row)

    async def newest(self, limit: int) -> list[dict[str, Any]]:
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(f"SELECT {_COLUMNS} FROM orders ORDER BY id DESC LIMIT %s", [limit])  # noqa: S608
            return [_order_json(row) for row in await cursor.fetchall()]

    async def positions(self, account: str | None) -> list[dict[str, Any]]:
        """Quantity, cash paid (negative) or received, and both valued at the last price."""
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                "SELECT p.account, p.symbol, p.quantity, p.cash_ticks, m.price_ticks, m.as_of"
                " FROM positions p JOIN market_data m USING (symbol)"
                " WHERE %(account)s::text IS NULL OR p.account = %(account)s ORDER BY p.account, p.symbol",
                {"account": account},
            )
            rows = await cursor.fetchall()
        return [
            {
                "account": row["account"],
                "symbol": row["symbol"],
                "quantity": row["quantity"],
                "cash": format_ticks(row["cash_ticks"]),
                "market_value": format_ticks(row["quantity"] * row["price_ticks"]),
                "profit": format_ticks(row["cash_ticks"] + row["quantity"] * row["price_ticks"]),
                "as_of": _instant(row["as_of"]),
            }
            for row in rows
        ]


def _order_json(row: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in row.items() if name not in ("price_ticks", "created_at")}
    return {**rest, "price": format_ticks(row["price_ticks"]), "created_at": _instant(row["created_at"])}


def _instant(value: datetime) -> str:
    return value.astimezone(timezone.utc).isoformat()
