"""Last prices: from Redis while fresh, else from PostgreSQL. Without Redis all still works, only slower."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis
from redis.exceptions import RedisError

from .metrics import Metrics
from .money import format_ticks

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Quote:
    symbol: str
    price_ticks: int
    as_of: datetime  # when the price was true, not when it was cached

    def as_json(self) -> dict[str, Any]:
        return {
            "symbol": self.symbol,
            "price": format_ticks(self.price_ticks),
            "as_of": self.as_of.astimezone(timezone.utc).isoformat(),
        }


class MarketData:
    """Reads through the cache. Cached as JSON: who can write to Redis must not be able to run code here."""

    def __init__(self, pool: AsyncConnectionPool, redis: Redis, metrics: Metrics, ttl: float) -> None:
        self._pool, self._redis, self._metrics, self._ttl_ms = pool, redis, metrics, max(1, int(ttl * 1000))

    async def quote(self, symbol: str) -> tuple[Quote, bool] | None:
        """The quote and whether it came from the cache; None for an unknown symbol."""
        cached = await self._get(symbol)
        if cached is not None:
            return cached, True
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT price_ticks, as_of FROM market_data WHERE symbol = %s", [symbol]
            )
            row = await cursor.fetchone()
        if row is None:
            return None
        quote = Quote(symbol, row[0], row[1])
        await self._put(quote)
        return quote, False

    async def _get(self, symbol: str) -> Quote | None:
        try:
            raw = await self._redis.get(f"quote:{symbol}")
        except RedisError as error:
            self._metrics.cache.labels("error").inc()
            log.warning("cache not readable", extra={"error": str(error)})
            return None
        quote = None
        if raw is not None:
            try:
                fields = json.loads(raw)
                quote = Quote(symbol, int(fields["price_ticks"]), datetime.fromisoformat(fields["as_of"]))
            except (ValueError, KeyError, TypeError):
                log.warning("cache entry is not ours and is ignored", extra={"symbol": symbol})
        self._metrics.cache.labels("miss" if quote is None else "hit").inc()
        return quote

    async def _put(self, quote: Quote) -> None:
        value = json.dumps({"price_ticks": quote.price_ticks, "as_of": quote.as_of.isoformat()})
        try:
            await self._redis.set(f"quote:{quote.symbol}", value, px=self._ttl_ms)
        except RedisError as error:
            self._metrics.cache.labels("error").inc()
            log.warning("cache not writable", extra={"error": str(error)})
