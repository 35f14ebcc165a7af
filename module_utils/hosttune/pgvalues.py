"""Values of PostgreSQL parameters: what the server makes of a text, and when two texts are one value to it.

Source: guc.c of PostgreSQL 13 to 18 (parse_int, parse_real, parse_bool, convert_to_base_unit).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .model import squeeze

#: Bytes and microseconds of the units a value can have, the largest first.
_BYTES = {"TB": 1024**4, "GB": 1024**3, "MB": 1024**2, "kB": 1024, "B": 1}
_MICROSECONDS = {"d": 86400 * 10**6, "h": 3600 * 10**6, "min": 60 * 10**6, "s": 10**6, "ms": 1000, "us": 1}
#: Units of pg_settings that are a block and no unit of a value.
_BLOCK = re.compile(r"(\d+)(kB|MB)\Z")
_INTEGER = re.compile(r"\s*([+-]?(?:0[xX][0-9a-fA-F]+|\d+))(?![\d.eE])")
_FLOAT = re.compile(
    r"\s*([+-]?(?:0[xX][0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?(?:[pP][+-]?\d+)?|"
    r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))"
)
_LARGEST_INTEGER = 2**31 - 1
#: Reals are printed with six digits, so that two within half of the last one cannot be told apart.
_PRINTED = 5.5e-6
#: What the server makes of less; -1 leaves the choice to it.
_RAISED = {"wal_buffers": 4.0}
#: Enum values that are another name of one that SHOW prints; pg_settings does not list all of them.
_ENUM_ALIASES = {
    ("wal_compression", "on"): "pglz",
    ("wal_level", "archive"): "replica",
    ("wal_level", "hot_standby"): "replica",
    ("client_min_messages", "debug"): "debug2",
    ("log_min_messages", "debug"): "debug2",
    ("log_min_error_statement", "debug"): "debug2",
    ("trace_recovery_messages", "debug"): "debug2",
}
#: Strings that are lists: blanks around the commas do not count.
_LISTS = frozenset(
    {
        "createrole_self_grant",
        "datestyle",
        "debug_io_direct",
        "io_direct",
        "listen_addresses",
        "local_preload_libraries",
        "log_connections",
        "log_destination",
        "oauth_validator_libraries",
        "restrict_nonsystem_relation_kind",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "synchronized_standby_slots",
        "synchronous_standby_names",
        "temp_tablespaces",
        "unix_socket_directories",
        "wal_consistency_checking",
    }
)
#: Strings of which SHOW prints the server's own spelling.
_ANY_CASE = frozenset({"client_encoding", "datestyle", "log_timezone", "timezone"})


@dataclass(frozen=True)
class Parameter:
    """A row of pg_settings; `setting` in units of `unit`, `shown` as SHOW prints it."""

    name: str
    setting: str
    unit: str
    context: str
    vartype: str
    source: str
    low: str
    high: str
    words: tuple[str, ...]
    pending: bool
    shown: str

    @property
    def numeric(self) -> bool:
        return self.vartype in ("integer", "real")


def same(known: Parameter, one: str, other: str) -> bool:
    """Whether two texts are one value to the server, as far as it prints the difference."""
    try:
        left, right = canonical(known, one), canonical(known, other)
    except ValueError:
        return squeeze(one) == squeeze(other)
    if known.vartype == "real" and isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=_PRINTED)
    return left == right


def check(known: Parameter, text: str) -> None:
    """Raises ValueError with the reason where the server would refuse the value."""
    value = canonical(known, text)
    if known.numeric and known.low and known.high and isinstance(value, float):
        # pg_settings prints the limits of reals with six digits: what lies on one is within.
        low, high = float(known.low), float(known.high)
        inside = low <= value <= high or (
            known.vartype == "real"
            and (math.isclose(value, low, rel_tol=_PRINTED) or math.isclose(value, high, rel_tol=_PRINTED))
        )
        if not inside:
            raise ValueError(f"{text} is out of range")


def allowed(known: Parameter) -> str:
    """What the server takes, for people."""
    if known.vartype == "enum":
        return f"Values are {', '.join(word or repr(word) for word in known.words)}"
    if known.vartype == "bool":
        return "Values are on and off"
    unit = f" in units of {known.unit}" if known.unit else ""
    return f"Give {known.low} to {known.high}{unit}"


def canonical(known: Parameter, text: str) -> object:
    """The value as the server keeps it: a number in units of the parameter, a boolean, a word, a text.

    Raises ValueError where the server would not read it; limits are not looked at here.
    """
    if known.vartype == "bool":
        return _boolean(text.strip())
    if known.vartype == "enum":
        return _enum(known, text.strip())
    if not known.numeric:
        return _string(known.name.lower(), text)
    number, unit = _number(text, whole=known.vartype == "integer")
    if unit:
        number = _in_units_of(known.unit, number, unit, text)
    if known.vartype == "integer":
        number = float(round(number))
        if abs(number) > _LARGEST_INTEGER:
            raise ValueError(f"{text} is out of range")
    if number >= 0:
        number = max(number, _RAISED.get(known.name, 0.0))
    return number


def in_bytes(known: Parameter, number: float) -> float:
    """A size in units of the parameter as bytes."""
    return number * _base(known.unit)[1]


def _number(text: str, *, whole: bool) -> tuple[float, str]:
    """The number a text begins with and the unit behind it, as strtol(3) and strtod(3) see them."""
    found = _INTEGER.match(text) if whole else None
    if found:
        digits = found[1].lstrip("+-")
        if digits[:2].lower() == "0x":
            number = float(int(digits, 16))
        elif digits.startswith("0") and set(digits) - set("01234567"):
            raise ValueError(f"'{text}' is no number: a leading 0 makes it octal")
        else:
            number = float(int(digits, 8 if digits.startswith("0") else 10))
        if found[1].startswith("-"):
            number = -number
    else:
        found = _FLOAT.match(text)
        # strtol(3) stops before the sign of "+.5", so that the server never comes to strtod(3).
        if found is None or (whole and found[1][0] in "+-" and found[1][1] == "."):
            raise ValueError(f"'{text}' is no number")
        number = float.fromhex(found[1]) if "x" in found[1].lower() else float(found[1])
        if math.isinf(number):
            raise ValueError(f"'{text}' is out of range")
    unit = text[found.end() :].strip()
    if unit and not unit.isalpha():
        raise ValueError(f"'{text}' is no number")
    return number, unit


def _base(unit: str) -> tuple[dict[str, int], int]:
    """The units that a parameter in `unit` takes, and bytes or microseconds of one of it."""
    block = _BLOCK.match(unit)
    if block:
        return _BYTES, int(block[1]) * _BYTES[block[2]]
    for table in (_BYTES, _MICROSECONDS):
        if unit in table:
            return table, table[unit]
    return {}, 1


def _in_units_of(base: str, number: float, unit: str, text: str) -> float:
    """A fraction is rounded to a whole number of the next smaller unit: 30.1GB are 30822MB."""
    table, size = _base(base)
    if unit not in table:
        raise ValueError(
            f"'{text}' has the unit '{unit}', units here are {', '.join(reversed(table))}"
            if table
            else f"'{text}' has a unit, but this parameter has none"
        )
    found = number * (table[unit] / size)
    if math.isinf(found):
        raise ValueError(f"'{text}' is out of range")
    smaller = next((other for other in table.values() if other < table[unit]), None)
    if smaller is not None:
        found = round(found / (smaller / size)) * (smaller / size)
    return found


def _boolean(text: str) -> bool:
    """A boolean as parse_bool() of the server takes it: whole words or unambiguous beginnings of them."""
    word = text.lower()
    if word and ("true".startswith(word) or "yes".startswith(word) or word in ("on", "1")):
        return True
    if word and ("false".startswith(word) or "no".startswith(word) or word in ("of", "off", "0")):
        return False
    raise ValueError(f"'{text}' is no boolean")


def _enum(known: Parameter, text: str) -> str:
    word = text.lower()
    words = [one.lower() for one in known.words]
    if word not in words and "on" in words and "off" in words and word in ("true", "yes", "1"):
        # Enums that were booleans once still take these, which pg_settings does not list.
        word = "on"
    elif word not in words and "on" in words and "off" in words and word in ("false", "no", "0"):
        word = "off"
    word = _ENUM_ALIASES.get((known.name, word), word)
    if word not in words:
        raise ValueError(f"'{text}' is none of its values")
    return word


def _string(name: str, text: str) -> str:
    text = squeeze(text)
    if name in _LISTS:
        text = re.sub(r"\s*,\s*", ",", text)
    return text.lower() if name in _ANY_CASE else text
