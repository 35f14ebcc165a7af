"""`python -m orchestrator serve | migrate | quote SYMBOL PRICE`"""

from __future__ import annotations

import argparse
import logging
import sys

import psycopg
import uvicorn

from . import __version__, app, log, schema
from .config import Config, ConfigError, load
from .money import parse_price
from .orders import SYMBOL

#: Seconds running requests have after SIGTERM; below the unit's TimeoutStopSec.
GRACE = 10


def serve(config: Config) -> int:
    host, port = ("", 0) if config.unix_socket else config.address
    uvicorn.run(
        app.build(config),
        **({"uds": config.unix_socket} if config.unix_socket else {"host": host, "port": port}),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        # One worker: /metrics then is the whole truth, and scaling is another unit, not another child.
        workers=1,
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="orchestrator", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer HTTP until SIGTERM")
    commands.add_parser("migrate", help="bring the database's schema up; nothing to do is success")
    quote = commands.add_parser("quote", help="set the last price of a symbol")
    quote.add_argument("symbol")
    quote.add_argument("price")
    options = parser.parse_args(arguments)
    log.configure()
    logger = logging.getLogger("orchestrator")
    try:
        config = load()
        if options.command == "serve":
            return serve(config)
        if options.command == "migrate":
            done = schema.migrate(config.database)
            logger.info("schema is up", extra={"done": done})
            return 0
        if not SYMBOL.fullmatch(options.symbol):
            parser.error(f"symbol must be of the form {SYMBOL.pattern}")
        schema.set_quote(config.database, options.symbol, parse_price(options.price))
    except (ConfigError, schema.MigrationError, ValueError, psycopg.Error) as failure:
        logger.critical(str(failure).strip())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
