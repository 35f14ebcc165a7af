"""Files that are replaced whole, and what is said where that is not possible."""

from __future__ import annotations

import errno
import os

import pytest
from fake_host import as_root
from hosttune import atomic, lock
from hosttune.model import FileImage
from hosttune.system import System


def full(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    as_root(monkeypatch)
    path = tmp_path / "a.conf"
    path.write_text("old\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as said:
        atomic.write(str(path), FileImage(b"new\n"))
    assert (said.value.errno, said.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["a.conf"]


def test_a_full_disk_under_the_lock_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", full)
    path = str(tmp_path / "lock")
    with pytest.raises(OSError) as said, lock.hold(path, "us"):
        pass
    assert said.value.filename == path


def test_an_empty_folder_goes_and_any_other_stays(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty", "missing"):
        atomic.remove_folder(str(tmp_path / name))
    assert os.listdir(tmp_path) == ["full"]


def test_a_mount_point_stays(tmp_path, monkeypatch):
    def busy(path):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)

    monkeypatch.setattr(os, "rmdir", busy)
    atomic.remove_folder(str(tmp_path))
    assert tmp_path.is_dir()


def test_a_folder_that_cannot_be_removed_is_an_error(tmp_path, monkeypatch):
    def read_only(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "rmdir", read_only)
    with pytest.raises(OSError, match="Read-only"):
        atomic.remove_folder(str(tmp_path))


def test_a_command_that_cannot_be_run_is_an_answer(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)
    ran = System().run(str(program))
    assert (ran.status, ran.err) == (126, f"{program}: Permission denied")
