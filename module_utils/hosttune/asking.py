"""Which settings somebody means who types a name."""

from __future__ import annotations

from collections.abc import Iterable

from .kinds.base import did_you_mean
from .model import Refusal


def find(known: Iterable[tuple[str, str]], asked: str, where: str, remedy: str) -> list[tuple[str, str]]:
    """The (kind, name) of `known` that `NAME` or `KIND NAME` means.

    Raises Refusal where there is none: `where` ends "no such setting ...", `remedy` is said where no known
    name is near.
    """
    known, asked = list(known), asked.strip()
    # A name may hold blanks (a path), a kind never does.
    kind, _, name = asked.partition(" ")
    found = [key for key in known if key[1] == asked or key == (kind, name.strip())]
    if not found:
        # Against names alone where no kind was given: the kind's letters would make all look alike.
        texts = [" ".join(key) for key in known] if kind in {key[0] for key in known} else []
        texts = texts or list(dict.fromkeys(key[1] for key in known))
        raise Refusal(
            f"no such setting {where}",
            thing=asked or "setting",
            remedy=did_you_mean(asked, texts) or remedy,
        )
    return found
