"""Money as whole ticks: one tick is 1/10000 of the currency. No float ever holds a price."""

from __future__ import annotations

import re

TICKS_PER_UNIT = 10_000
#: one million a share: with MAX_QUANTITY an order stays far below a PostgreSQL bigint (9.2e18)
MAX_PRICE_TICKS = 10_000_000_000
MAX_QUANTITY = 1_000_000

_PRICE = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,4}))?", re.ASCII)


def parse_price(text: str) -> int:
    """Ticks of a decimal text like `187.42`. Raises ValueError: not a price, zero, or finer than a tick."""
    match = _PRICE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a price: write it like 187.42, with at most four decimals")
    whole, fraction = match.group(1), match.group(2) or ""
    ticks = int(whole) * TICKS_PER_UNIT + int(fraction.ljust(4, "0"))
    if not 0 < ticks <= MAX_PRICE_TICKS:
        raise ValueError(f"{text} is outside 0.0001 to {format_ticks(MAX_PRICE_TICKS)}")
    return ticks


def format_ticks(ticks: int) -> str:
    """`-12.5000` for -125000 ticks: always four decimals, so that equal amounts are equal texts."""
    sign = "-" if ticks < 0 else ""
    whole, fraction = divmod(abs(ticks), TICKS_PER_UNIT)
    return f"{sign}{whole}.{fraction:04d}"
