"""Ledger and manifest: what is kept is found again, whole or not at all."""

from __future__ import annotations

import json
import os

import pytest
from fake_host import FakeHost, as_root
from hosttune import atomic, store
from hosttune.model import FileImage, Refusal


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    return FakeHost(tmp_path)


def test_a_ledger_is_found_again_with_modes_that_keep_it_private(host):
    ledger = store.Ledger(host)
    ledger.note_setting("sysctl", "vm.swappiness", {"owner": "kernel", "live": "60"})
    ledger.note_file("/etc/a", "file", "app", FileImage(b"\xff\x00bytes", 0o640, 3, 4))
    ledger.note_file("/etc/b", "file", "app", None)
    ledger.save()
    again = store.Ledger(host)
    assert again.entry("sysctl", "vm.swappiness") == {"owner": "kernel", "live": "60"}
    assert again.original("/etc/a") == FileImage(b"\xff\x00bytes", 0o640, 3, 4)
    assert again.original("/etc/b") is None
    assert again.owners() == {"kernel", "app"}
    assert os.stat(host.path(store.LEDGER)).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(host.path(store.LEDGER))).st_mode & 0o777 == 0o700


def test_the_original_of_a_file_is_kept_once(host):
    ledger = store.Ledger(host)
    ledger.note_file("/etc/a", "file", "app", FileImage(b"theirs"))
    ledger.note_file("/etc/a", "file", "app", FileImage(b"ours"))
    assert ledger.original("/etc/a").content == b"theirs"


def test_forgetting_the_last_setting_of_a_kind_leaves_nothing(host):
    ledger = store.Ledger(host)
    ledger.note_setting("sysctl", "a", {"owner": "kernel"})
    ledger.forget_setting("sysctl", "a")
    ledger.forget_setting("sysctl", "never noted")
    assert ledger.settings == {}


def test_a_manifest_s_digest_is_of_its_settings_alone(host):
    manifest = store.Manifest(host)
    assert not manifest.exists
    manifest.owners = {"kernel": {"sysctl": {"a": {"value": "1", "notes": {}}}}}
    manifest.run = {"id": "one"}
    digest = manifest.digest
    manifest.run = {"id": "two"}
    assert manifest.digest == digest
    manifest.save()
    again = store.Manifest(host)
    assert again.exists
    assert again.intact
    assert again.digest == digest == json.loads(host.text(store.MANIFEST))["digest"]
    again.owners["kernel"]["sysctl"]["a"]["value"] = "2"
    assert again.digest != digest


def test_an_undone_manifest_takes_its_empty_folder_along(host):
    manifest = store.Manifest(host)
    manifest.owners = {"kernel": {"sysctl": {"a": {"value": "1", "notes": {}}}}}
    manifest.save()
    host.put("/etc/hosttune/waivers.json", "{}")
    manifest.remove()
    assert host.exists("/etc/hosttune/waivers.json")
    os.unlink(host.path("/etc/hosttune/waivers.json"))
    manifest.save()
    manifest.remove()
    assert not host.exists("/etc/hosttune")


def test_what_root_alone_may_read_says_so(host, monkeypatch):
    def denied(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(host, "read", denied)
    with pytest.raises(Refusal, match="Run as root"):
        store.Ledger(host)


def test_a_file_is_replaced_whole_or_not_at_all(host, monkeypatch):
    path = host.path("/etc/app/app.conf")

    def cut(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(OSError, match="No space left"):
        atomic.write(path, FileImage(b"new", 0o600, os.getuid(), os.getgid()))
    assert host.text("/etc/app/app.conf") == "as the vendor ships it\n"
    assert sorted(os.listdir(os.path.dirname(path))) == ["app.conf", "link"]
