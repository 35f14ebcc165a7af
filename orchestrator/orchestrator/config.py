"""Configuration: `ORCHESTRATOR_*` of the environment, and nothing else. Secrets come as file paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class ConfigError(Exception):
    """A variable is missing or wrong; the text names it and what it takes."""


@dataclass(frozen=True, slots=True)
class Config:
    #: `HOST:PORT` or `unix:/path`
    listen: str
    #: libpq connection string; over the unix socket PostgreSQL knows us by our user (peer): no password
    database: str
    #: connections kept open, and the most there may be; the role checks the sum against max_connections
    pool_min: int
    pool_max: int
    #: path of Redis' unix socket
    redis_socket: str
    redis_user: str
    #: file that holds the password alone; None: no authentication
    redis_password_file: Path | None
    #: seconds a cached quote may be served
    quote_ttl: float
    #: what the deploy engine named this release; `unreleased` when run from a checkout
    release: str
    #: a candidate answers everything but takes no orders: two orchestrators must never both trade
    takes_orders: bool

    @property
    def unix_socket(self) -> str | None:
        """Path to listen on; None: TCP."""
        return self.listen[5:] if self.listen.startswith("unix:") else None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on, where `unix_socket` is None."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    def redis_password(self) -> str | None:
        """Read at use, so that neither the configuration nor a traceback of it holds the secret."""
        if self.redis_password_file is None:
            return None
        try:
            return self.redis_password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"ORCHESTRATOR_REDIS_PASSWORD_FILE: {error}") from error


def load(environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration of this process. Raises ConfigError naming the variable."""

    def text(name: str, default: str) -> str:
        return environment.get(f"ORCHESTRATOR_{name}", "") or default

    def number(name: str, default: str, least: float, most: float) -> float:
        raw = text(name, default)
        try:
            value = float(raw)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:  # also false for nan
            raise ConfigError(
                f"ORCHESTRATOR_{name} is {raw!r}, but must be a number from {least:g} to {most:g}"
            )
        return value

    listen = text("LISTEN", "127.0.0.1:8000")
    host, _, port = listen.rpartition(":")
    tcp = bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not listen.startswith("unix:/") and not tcp:
        raise ConfigError(f"ORCHESTRATOR_LISTEN is {listen!r}, but must be HOST:PORT or unix:/path")
    mode = text("MODE", "live")
    if mode not in ("live", "candidate"):
        raise ConfigError(f"ORCHESTRATOR_MODE is {mode!r}, but must be live or candidate")
    password_file = text("REDIS_PASSWORD_FILE", "")
    credentials = environment.get("CREDENTIALS_DIRECTORY", "")
    if not password_file and credentials and Path(credentials, "redis-password").exists():
        password_file = str(Path(credentials, "redis-password"))
    pool_min, pool_max = int(number("POOL_MIN", "2", 1, 100)), int(number("POOL_MAX", "10", 1, 100))
    if pool_max < pool_min:
        raise ConfigError(f"ORCHESTRATOR_POOL_MAX is {pool_max}, below ORCHESTRATOR_POOL_MIN {pool_min}")
    return Config(
        listen=listen,
        database=text("DATABASE", "host=/var/run/postgresql dbname=orchestrator"),
        pool_min=pool_min,
        pool_max=pool_max,
        redis_socket=text("REDIS_SOCKET", "/run/redis/redis-server.sock"),
        redis_user=text("REDIS_USER", "default"),
        redis_password_file=Path(password_file) if password_file else None,
        quote_ttl=number("QUOTE_TTL", "1", 0.01, 60),
        release=text("RELEASE", "unreleased"),
        takes_orders=mode == "live",
    )
