"""Money and configuration: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from orchestrator.config import ConfigError, load
from orchestrator.money import format_ticks, parse_price


@pytest.mark.parametrize(
    ("text", "ticks"), [("187.42", 1_874_200), ("0.0001", 1), ("7", 70_000), ("1000000", 10_000_000_000)]
)
def test_a_price_is_whole_ticks(text: str, ticks: int) -> None:
    assert parse_price(text) == ticks
    assert parse_price(format_ticks(ticks)) == ticks


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1e3", "1.00001", "nan", "٣", "1,5", " 1", "1000000.0001", "1."]
)
def test_what_is_not_a_price_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_price(text)


def test_negative_amounts_keep_their_sign_below_one_unit() -> None:
    assert format_ticks(-5) == "-0.0005"
    assert format_ticks(-12_345) == "-1.2345"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN", "8000"),
        ("LISTEN", "127.0.0.1:0"),
        ("LISTEN", "unix:relative"),
        ("POOL_MAX", "many"),
        ("POOL_MAX", "1"),
        ("POOL_MIN", "0"),
        ("QUOTE_TTL", "nan"),
        ("MODE", "shadow"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"ORCHESTRATOR_{name}"):
        load({f"ORCHESTRATOR_{name}": value})


def test_the_password_comes_from_systemds_credentials_when_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "redis-password").write_text("hidden\n")
    config = load({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert config.redis_password() == "hidden"
    assert "hidden" not in repr(config)


def test_an_unreadable_password_file_is_an_error_not_an_empty_password(tmp_path: Path) -> None:
    config = load({"ORCHESTRATOR_REDIS_PASSWORD_FILE": str(tmp_path / "absent")})
    with pytest.raises(ConfigError, match="absent"):
        config.redis_password()
