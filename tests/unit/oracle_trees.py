"""What the comparisons with the system's own tools share: made-up trees, the tools, and the count of cases.

A tree maps paths below a root to what stands there: bytes (a file), `Link(target)`, or `FOLDER`. A comparison
gives a list of disagreements in words; `Comparison.agree` counts the case and fails on any, and
`Comparison.catches` shows that a seeded fault of ours would have failed it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

import pytest
from hypothesis import strategies as st

#: The whole number of cases is tried on the controller's Python only, a sample on those of managed hosts.
FULL = sys.version_info[:2] == (3, 11) and not os.environ.get("HOSTTUNE_ENGINE_ONLY")


@dataclass(frozen=True)
class Link:
    """A symbolic link, here also to what is not there."""

    target: str


FOLDER = Link("a folder, not a link")
Content = Union[bytes, Link]
Tree = Mapping[str, Content]


def cases(full: int) -> int:
    """How many examples a comparison tries on this Python."""
    return full if FULL else max(20, full // 20)


def mostly(common: st.SearchStrategy, *rare: st.SearchStrategy, of: int = 10) -> st.SearchStrategy:
    """One of `of` draws from a rare strategy: one_of() counts a strategy once, however often named."""
    choice = st.sampled_from([*range(len(rare)), *[-1] * (of * len(rare) - len(rare))])
    return choice.flatmap(lambda found: common if found < 0 else rare[found])


def put(root: Path, tree: Tree) -> None:
    """Makes a tree below `root`."""
    for path, content in tree.items():
        target = f"{root}/{path.lstrip('/')}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if content is FOLDER:
            os.mkdir(target)
        elif isinstance(content, Link):
            os.symlink(content.target, target)
        else:
            with open(target, "wb") as stream:
                stream.write(content)


def clear(root: Path, folders: Iterable[str]) -> None:
    for folder in folders:
        shutil.rmtree(root / folder, ignore_errors=True)


def need(reason: str, *programs: str) -> str:
    """The first of these programs that is there.

    Without one the test is skipped on a developer's machine only: as root or in CI a missing oracle is a
    failure, since the comparison would never be made.
    """
    for program in programs:
        found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if found:
            return found
    return absent(f"{reason}: none of {', '.join(programs)} is here")


def absent(reason: str) -> str:
    """Ends a test whose oracle is not here: see `need`."""
    if os.environ.get("CI") or not os.geteuid():
        pytest.fail(f"no oracle: {reason}")
    pytest.skip(f"no oracle: {reason}")


def need_root(reason: str) -> None:
    if os.geteuid():
        absent(f"{reason}: needs root")


def jail(root: Path, *binaries: str) -> Path:
    """A root with these binaries and the libraries they name: whoever is in it can reach nothing else."""
    wanted = list(binaries)
    for binary in binaries:
        said = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
        wanted += [word for word in said.split() if word.startswith("/")]
    for path in wanted:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root


@dataclass
class Comparison:
    """One of our resolvers against one tool of the system."""

    name: str
    compared: int = 0
    disagreed: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        COMPARISONS.append(self)

    def agree(self, disagreements: Sequence[str]) -> None:
        """Counts one case; fails where it disagrees."""
        self.compared += 1
        self.disagreed += bool(disagreements)
        assert not disagreements, "\n".join(disagreements)

    def catches(self, fault: str, trial: Callable[[int], Sequence[str]], within: int) -> None:
        """Asserts that with a fault seeded one of the cases 0 to `within` - 1 disagrees."""
        number = next((number for number in range(within) if trial(number)), None)
        assert number is not None, f"{fault}: {within} cases and none disagrees"
        self.faults.append(fault)

    def __str__(self) -> str:
        caught = f", {len(self.faults)} seeded faults caught" if self.faults else ""
        return f"oracle {self.name}: {self.compared} cases, {self.disagreed} disagreements{caught}"


COMPARISONS: list[Comparison] = []


@dataclass
class BadInput:
    """How many cases of bad input had their message in this run."""

    cases: int = 0

    def __str__(self) -> str:
        return f"bad input: {self.cases} cases, each with its message"


BAD_INPUT = BadInput()
