"""Images: a root folder for containers, a disk for virtual machines, each cached by what went into it."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.processes import run, run_contained, say
from lab.state import FILES, lab_dir, locked
from lab.tools import require_space

SUITE = "bookworm"
PACKAGES = FILES.parent / "packages.txt"

# A bare Debian server that can be reached: what the suite needs beyond this it installs itself.
BASE = (
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "python3-venv",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
    "util-linux",
)
# What a baked image has on top, installed and never started.
BAKED = ("acl", "chrony", "cron", "ethtool", "numactl", "postgresql", "redis-server")


def images_dir() -> Path:
    return lab_dir() / "images"


def key(kind: str, *ingredients: str) -> str:
    """An image's folder name. Package versions are not part of it: a cached image never needs the network."""
    digest = hashlib.sha256("\0".join([kind, SUITE, *ingredients]).encode()).hexdigest()
    return f"{kind}-{digest[:12]}"


def container_key() -> str:
    return key("container", *BASE, *read_files("customize.sh"))


def baked_key() -> str:
    return key("baked", container_key(), *BAKED, *read_files("bake.sh"))


def read_files(*files: str) -> list[str]:
    return [PACKAGES.read_text(), *((FILES / file).read_text() for file in files)]


def container_image() -> Path:
    """The root folder of a bare host."""
    return cached(container_key(), 2.0, _build_container) / "root"


def baked_layer() -> Path:
    """What lies on top of the bare host's root folder when the servers are installed."""
    base = container_image()
    return cached(baked_key(), 1.0, lambda folder: _build_baked(folder, base)) / "upper"


def cached(name: str, gibibytes: float, build: Callable[[Path], None]) -> Path:
    """The image's folder, built first if it is not there. Two runs at once build it once."""
    done = images_dir() / name
    if done.exists():
        return done
    with locked(images_dir() / f"{name}.lock", f"another run that builds the image {name}"):
        if done.exists():
            return done
        require_space(images_dir(), gibibytes)
        building = images_dir() / f"{name}.building"
        shutil.rmtree(building, ignore_errors=True)  # a killed run's; its processes and mounts died with it
        building.mkdir()
        started = time.monotonic()
        say(f"building image {name} (once; log: {building}/log)")
        build(building)
        building.rename(done)
        say(f"image {name} is ready after {time.monotonic() - started:.0f} s")
    return done


def bootstrap(folder: Path, include: Sequence[str], hooks: Sequence[str], **environment: str) -> Path:
    """A Debian root folder below `folder`, from the mirrors this machine uses itself."""
    root = folder / "root"
    command: list[str | Path] = ["mmdebstrap", "--variant=minbase", "--format=directory"]
    command += [f"--include={','.join(include)}", "--skip=cleanup/apt"]
    command += [f"--aptopt={option}" for option in machine_apt_options()]
    command += hooks
    command += [SUITE, root, *machine_mirrors()]
    environment |= {"LAB_PACKAGES": str(PACKAGES), "DEBIAN_FRONTEND": "noninteractive"}
    words = [f"{name}={value}" for name, value in environment.items()]
    run_contained(["env", *words, *command], folder / "log")
    return root


def hook(when: str, file: str) -> str:
    """An mmdebstrap option that runs one of our scripts with the new root as its argument."""
    return f"--{when}-hook='{FILES / file}' \"$1\""


def machine_mirrors() -> list[str]:
    """The Debian mirrors in this machine's own apt sources, as source lines for the images' suite.

    Empty on a machine that is not Debian: mmdebstrap then takes Debian's own mirror.
    """
    form = "$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)"
    described = run("apt-get", "indextargets", "--format", form, "Created-By: Packages", check=False)
    return mirrors_from(described)


def mirrors_from(described: str) -> list[str]:
    lines = []
    for line in described.splitlines():
        origin, component, codename, uri = line.split("|")
        release, dash, pocket = codename.partition("-")
        # A third-party source may call itself Debian; only Debian's releases have these names.
        if origin == "Debian" and component == "main" and pocket in ("", "updates", "security") and release:
            lines.append(f"deb {uri} {SUITE}{dash}{pocket} main")
    return list(dict.fromkeys(lines))


def machine_apt_options() -> list[str]:
    """How this machine's apt reaches its mirrors: proxies, certificates, and checks it has to leave out."""
    return apt_options_from(run("apt-config", "dump", check=False))


def apt_options_from(dump: str) -> list[str]:
    wanted = re.compile(r'^Acquire::(https?::.*|Retries|Check-Valid-Until|Check-Date) "..*";$')
    return [line.rstrip(";") for line in dump.splitlines() if wanted.match(line)]


def _build_container(folder: Path) -> None:
    bootstrap(folder, BASE, [hook("customize", "customize.sh")])


def _build_baked(folder: Path, base: Path) -> None:
    for name in ("upper", "work", "merged"):
        (folder / name).mkdir()
    # One shell, so that the mount lives in the build's own mount namespace and goes with it.
    script = (
        'mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/merged"; shift; '
        'cd "$1"; cp "$2" merged/bake.sh; mount -t proc proc merged/proc; mount --rbind /dev merged/dev; '
        'shift 2; chroot merged sh /bake.sh "$@"; rm merged/bake.sh'
    )
    run_contained(["sh", "-euc", script, "sh", base, folder, FILES / "bake.sh", *BAKED], folder / "log")
