"""The HTTP side: routes, answers, readiness."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import schema
from .config import Config
from .market import MarketData
from .metrics import Metrics
from .orders import SYMBOL, Conflict, Invalid, OrderRequest, Orders

log = logging.getLogger(__name__)

#: Bytes; an order is below 300.
MAX_BODY = 4096
#: Seconds. An order that waits longer for a connection is refused: late is worse than no.
POOL_TIMEOUT = 1.0
#: Seconds a cache operation may take before the database is asked instead.
CACHE_TIMEOUT = 0.25
#: Seconds each dependency has to answer /ready.
READY_TIMEOUT = 1.0


def error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


class Measured:
    """Times every request into the histogram. Plain ASGI: it costs no task and buffers nothing."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = scope.get("route")
            path = route.path if isinstance(route, Route) else "none"
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
            self.metrics.requests.labels(method, path, status).observe(time.perf_counter() - started)


class Service:
    """The endpoints, with what they need."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics = Metrics(config.release)
        self.pool = AsyncConnectionPool(
            config.database,
            min_size=config.pool_min,
            max_size=config.pool_max,
            timeout=POOL_TIMEOUT,
            reconnect_timeout=5,
            open=False,
            kwargs={"autocommit": True, "connect_timeout": 2, "application_name": "orchestrator"},
        )
        self.redis = Redis(
            unix_socket_path=config.redis_socket,
            username=config.redis_user,
            password=config.redis_password(),
            socket_timeout=CACHE_TIMEOUT,
            socket_connect_timeout=CACHE_TIMEOUT,
            retry=Retry(NoBackoff(), 1),
            max_connections=64,
        )
        self.orders = Orders(self.pool)
        self.market = MarketData(self.pool, self.redis, self.metrics, config.quote_ttl)

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        # Not waited for: without its database the service is alive, not ready, and heals when that comes.
        await self.pool.open(wait=False)
        log.info("started", extra={"release": self.config.release, "listen": self.config.listen})
        yield
        await self.pool.close()
        await self.redis.aclose()
        log.info("stopped", extra={"release": self.config.release})

    async def health(self, _request: Request) -> Response:
        """Liveness: this process answers. Says which release it is, so that a deployment can tell."""
        return JSONResponse({"status": "alive", "release": self.config.release})

    async def ready(self, _request: Request) -> Response:
        """Readiness: 200 if database and cache answer, else 503 saying which one does not and why."""
        checks: dict[str, Callable[[], Awaitable[str]]] = {"database": self._database, "cache": self._cache}
        answers = await asyncio.gather(*(self._within(check) for check in checks.values()))
        failed = {name: answer for name, answer in zip(checks, answers, strict=True) if answer}
        for name in checks:
            self.metrics.ready.labels(name).set(name not in failed)
        body = {name: failed.get(name, "ok") for name in checks}
        status = "not ready" if failed else "ready"
        return JSONResponse(
            {"status": status, "release": self.config.release, **body}, 503 if failed else 200
        )

    async def _within(self, check: Callable[[], Awaitable[str]]) -> str:
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                return await check()
        except TimeoutError:
            return f"no answer within {READY_TIMEOUT:g} s"
        except (psycopg.Error, RedisError, OSError) as failure:
            return f"{type(failure).__name__}: {failure}".splitlines()[0]

    async def _database(self) -> str:
        """Empty if the database answers and has at least our schema."""
        async with self.pool.connection(timeout=READY_TIMEOUT * 0.8) as connection:
            try:
                cursor = await connection.execute("SELECT max(version) FROM schema_version")
            except psycopg.errors.UndefinedTable:
                return "not migrated: run `orchestrator migrate`"
            row = await cursor.fetchone()
        version = row[0] if row else None
        if version is None or version < schema.VERSION:
            return f"schema is at version {version}, this release needs {schema.VERSION}: migrate"
        return ""

    async def _cache(self) -> str:
        await self.redis.ping()
        return ""

    async def show_metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def market_data(self, request: Request) -> Response:
        """One quote by `?symbol=`, or several by repeating it."""
        symbols = request.query_params.getlist("symbol")
        if not 1 <= len(symbols) <= 20:
            return error(422, "give 1 to 20 symbols: ?symbol=AAPL")
        quotes: list[dict[str, Any]] = []
        for symbol in symbols:
            found = await self.market.quote(symbol) if SYMBOL.fullmatch(symbol) else None
            if found is None:
                return error(404, f"symbol {symbol[:16]!r} is not traded here")
            quote, cached = found
            quotes.append({**quote.as_json(), "cached": cached})
        return JSONResponse({"quotes": quotes})

    async def positions(self, request: Request) -> Response:
        return JSONResponse({"positions": await self.orders.positions(request.query_params.get("account"))})

    async def list_orders(self, request: Request) -> Response:
        """The newest orders first, `?limit=` of them (100)."""
        text = request.query_params.get("limit", "100")
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
        if not 1 <= limit <= 1000:
            return error(422, "limit must be from 1 to 1000")
        return JSONResponse({"orders": await self.orders.newest(limit)})

    async def one_order(self, request: Request) -> Response:
        order_id: int = request.path_params["order_id"]
        found = await self.orders.get(order_id) if order_id < 2**63 else None
        return error(404, f"no order {order_id}") if found is None else JSONResponse(found)

    async def place_order(self, request: Request) -> Response:
        """201 for a new order, 200 for the same one again, 409 for its id with other contents."""
        if not self.config.takes_orders:
            return error(503, "this is a release candidate: it takes no orders")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return error(413, f"the body is over {MAX_BODY} bytes")
        try:
            wanted = OrderRequest.parse(json.loads(body))
            order, created = await self.orders.place(wanted)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            return error(400, "the body is not JSON")
        except Invalid as refusal:
            self.metrics.orders.labels("invalid").inc()
            return error(422, str(refusal))
        except Conflict as refusal:
            self.metrics.orders.labels("conflict").inc()
            return error(409, str(refusal))
        self.metrics.orders.labels("filled" if created else "repeated").inc()
        return JSONResponse(order, 201 if created else 200)


async def busy(_request: Request, failure: Exception) -> Response:
    """The database is away or all its connections are taken: say so at once, nothing was booked."""
    log.warning("database not reachable", extra={"error": str(failure)})
    return JSONResponse({"error": "the database is not reachable; nothing was booked"}, 503)


async def undecided(_request: Request, failure: Exception) -> Response:
    """The connection broke with a statement under way: whether it took effect only a repeat can tell."""
    log.error("database connection broke", extra={"error": str(failure)})
    return JSONResponse({"error": "the database connection broke: repeat with the same client_order_id"}, 503)


def build(config: Config) -> Starlette:
    """The application; connects to nothing before its lifespan starts."""
    service = Service(config)
    return Starlette(
        routes=[
            Route("/health", service.health),
            Route("/ready", service.ready),
            Route("/metrics", service.show_metrics),
            Route("/api/v1/market-data", service.market_data),
            Route("/api/v1/positions", service.positions),
            Route("/api/v1/orders", service.list_orders),
            Route("/api/v1/orders", service.place_order, methods=["POST"]),
            Route("/api/v1/orders/{order_id:int}", service.one_order),
        ],
        middleware=[Middleware(Measured, metrics=service.metrics)],
        exception_handlers={PoolTimeout: busy, TooManyRequests: busy, psycopg.OperationalError: undecided},
        lifespan=service.lifespan,
    )
