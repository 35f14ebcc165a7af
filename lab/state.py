"""Where things stand: images in a cache shared by all clones, one folder under run/ per prefix.

Everything that will be made is written down before it is made, so a killed `up` can always be cleaned.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.errors import LabError
from lab.processes import say

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = Path(__file__).resolve().parent / "files"


def lab_dir() -> Path:
    chosen = os.environ.get("HOSTTUNE_LAB_DIR")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "hosttune"


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def give_to_user(path: Path) -> None:
    """Under sudo, hand a file to who called: Ansible runs as that user and reads keys and inventory."""
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


def make_lab_dir() -> None:
    """Make the cache as who called, not as root: the suite keeps more there than the lab's own things."""
    missing = [path for path in (lab_dir(), *lab_dir().parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir()
        give_to_user(path)


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)


@contextmanager
def locked(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold an flock; the kernel frees it when we die, so a stale lock cannot exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {waiting_for}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def held(path: Path) -> bool:
    """Whether somebody holds that lock now."""
    try:
        with path.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


@dataclass
class Host:
    name: str
    address: str
    port: int


@dataclass
class Lab:
    """The hosts of one prefix. `slot` numbers its bridge, subnet and cgroups machine-wide."""

    prefix: str
    driver: str  # container or metal
    image: str  # the image's key: another image means other hosts
    baked: bool = False
    slot: int = -1
    complete: bool = False  # every host was seen healthy once
    boot: str = ""  # the machine's boot: after another one nothing of this is left but files
    accel: str = ""  # metal: kvm or tcg
    inventory: str = ""  # where the inventory was written
    hosts: list[Host] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return folder(self.prefix)

    def host_folder(self, host: Host) -> Path:
        return self.folder / host.name

    def save(self) -> None:
        write_atomically(self.folder / "lab.json", json.dumps(asdict(self), indent=1))

    def host(self, name: str) -> Host:
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise LabError(f"no lab host is named {name}: there are {known}")


def folder(prefix: str) -> Path:
    return lab_dir() / "run" / prefix


def prefix_lock(prefix: str) -> Path:
    return lab_dir() / "run" / f"{prefix}.lock"


def load(prefix: str) -> Lab | None:
    try:
        data = json.loads((folder(prefix) / "lab.json").read_text())
    except (FileNotFoundError, ValueError):  # never made, or the machine crashed over it
        return None
    return Lab(**{**data, "hosts": [Host(**host) for host in data["hosts"]]})


def load_all() -> list[Lab]:
    found = (load(path.parent.name) for path in sorted((lab_dir() / "run").glob("*/lab.json")))
    return [lab for lab in found if lab]


def prefixes() -> list[str]:
    """Every lab there is anything of, whole or not."""
    return sorted(path.name for path in (lab_dir() / "run").glob("*/"))


def find(host: str) -> Lab:
    """The lab a host belongs to."""
    labs = load_all()
    for lab in labs:
        if any(one.name == host for one in lab.hosts):
            return lab
    known = ", ".join(one.name for lab in labs for one in lab.hosts)
    raise LabError(f"no lab host is named {host}: " + (f"there are {known}" if known else "none is up"))
