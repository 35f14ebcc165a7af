"""Builds the release artefact on the controller: one tar.gz with the source, the lock and its wheels.

    python orchestrator/build.py [--python-version 3.11] [--arch x86_64] [--output FOLDER]

Prints one line of JSON: path, sha256, id, version, python_version. The same source and lock give the same
bytes, so the same ID, on every controller: entries are sorted, carry no time and no owner, and nothing is
compressed (wheels are already, and compressors differ between builds of zlib). Wheels are downloaded once a
lock and target. Exit status 1 and one line on standard error where something is missing.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent
LOCK = HERE.parent / "requirements" / "orchestrator.txt"
ARCHITECTURES = ("x86_64", "aarch64")


class BuildError(Exception):
    """What is missing, and what to do."""


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hosttune"


def wheels(lock_file: Path, python_version: str, arch: str, cache: Path) -> Path:
    """The folder with exactly the lock's wheels for that Python; downloaded where the cache has none."""
    digest = hashlib.sha256(lock_file.read_bytes()).hexdigest()[:16]
    folder = cache / "wheels" / f"{digest}-{python_version}-{arch}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one play builds for many hosts at once: one of them downloads
        if not folder.exists():
            _download(lock_file, folder, python_version, arch)
    return folder


def _download(lock: Path, folder: Path, python_version: str, arch: str) -> None:
    # glibc 2.36 is Debian 12's; pip wants every older tag named too.
    platforms = [f"manylinux_2_{minor}_{arch}" for minor in range(36, 4, -1)]
    platforms += [f"manylinux{year}_{arch}" for year in ("2014", "2010", "1")]
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
        words += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python_version]
        words += ["--abi", f"cp{python_version.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
        words += [word for platform in platforms for word in ("--platform", platform)]
        words += ["--requirement", str(lock), "--dest", f"{part}/wheels"]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            problems = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = "; ".join(problems or done.stderr.splitlines()[-3:])
            raise BuildError(f"no wheels for Python {python_version} on {arch}: {reason}")
        Path(part, "wheels").rename(folder)


def contents(
    lock: Path, wheel_folder: Path, python_version: str, arch: str, version: str
) -> dict[str, bytes]:
    """Path in the artefact -> content."""
    about = {"version": version, "python_version": python_version, "arch": arch}
    files = {"release.json": json.dumps(about, sort_keys=True).encode() + b"\n"}
    files["requirements.txt"] = lock.read_bytes()
    for source in HERE.glob("orchestrator/**/*.py"):
        files[f"app/{source.relative_to(HERE)}"] = source.read_bytes()
    for wheel in wheel_folder.glob("*.whl"):
        files[f"wheels/{wheel.name}"] = wheel.read_bytes()
    return files


def pack(files: dict[str, bytes]) -> bytes:
    """The same files give the same bytes."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=0, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def build(python_version: str, arch: str, output: Path | None = None) -> dict[str, str]:
    """Writes the artefact (into the cache, or `output`) and says what it is."""
    if not LOCK.exists():
        raise BuildError(f"{LOCK} is missing: run `make lock`")
    version = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["version"]
    cache = cache_folder()
    content = pack(contents(LOCK, wheels(LOCK, python_version, arch, cache), python_version, arch, version))
    digest = hashlib.sha256(content).hexdigest()
    release = f"{version}-{digest[:12]}"
    path = (output or cache / "artefacts") / f"orchestrator-{release}.tar.gz"
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            part.write(content)
        Path(part.name).replace(path)
        path.chmod(0o644)
    about = {"path": str(path), "sha256": digest, "id": release}
    return {**about, "version": version, "python_version": python_version}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python-version", default="3.11", help="the hosts' Python: 3.11 Debian 12, 3.13 Debian 13"
    )
    parser.add_argument("--arch", default="x86_64", choices=ARCHITECTURES)
    parser.add_argument("--output", type=Path, help="folder for the artefact; default: the cache")
    parser.add_argument(
        "--clean", action="store_true", help="forget all cached wheels and artefacts, build nothing"
    )
    options = parser.parse_args()
    if not re.fullmatch(r"3\.[0-9]{1,2}", options.python_version):
        parser.error("--python-version must look like 3.11")
    try:
        if options.clean:
            for name in ("wheels", "artefacts"):
                if (cache_folder() / name).exists():
                    shutil.rmtree(cache_folder() / name)
            return 0
        print(json.dumps(build(options.python_version, options.arch, options.output)))
    except (BuildError, OSError) as failure:
        print(f"orchestrator artefact: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
