"""A secret told to the suite is told to nobody else: not in results, not in public files, not hashed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from fake_host import FakeHost, as_root
from hosttune import demand, keys, store
from hosttune.model import Refusal
from test_engine import run_module

SECRET = "marker-5f0c-of-the-exchange"  # noqa: S105 - looked for in every output
OTHER = "marker-77aa-of-the-exchange"
PATH = "/etc/app/password"
DIGESTS = [hashlib.sha256(one.encode()).hexdigest() for one in (SECRET, OTHER)]


@pytest.fixture
def host(tmp_path, monkeypatch):
    as_root(monkeypatch)
    return FakeHost(tmp_path)


def owners(content=SECRET, **more):
    return {"app": {"file": {PATH: {"content": content, "mode": "0600", "secret": True, **more}}}}


def told(report) -> str:
    return json.dumps(
        [report.diff, report.undone, report.failures, report.aside, report.pending()]
    ) + json.dumps([one.as_dict() for one in report.settings])


def telling_files(host, *markers: str) -> set[str]:
    """Files below the host that hold a marker, plain or as its unkeyed digest."""
    found = set()
    for folder, _folders, files in os.walk(host.folder):
        for name in files:
            path = Path(folder, name)
            text = path.read_bytes().decode("utf-8", "replace")
            if any(one in text for one in (*markers, *DIGESTS)):
                found.add("/" + str(path.relative_to(host.folder)))
    return found


def test_no_file_but_the_secret_itself_holds_it_or_its_plain_digest(host):
    host.apply(owners())
    assert telling_files(host, SECRET, OTHER) == {PATH}
    host.apply(owners(OTHER))
    assert telling_files(host, SECRET, OTHER) == {PATH}
    host.apply({}, present=False)
    assert telling_files(host, SECRET, OTHER) == set()


def test_an_edited_secret_is_kept_aside_and_an_unedited_one_is_not(host):
    host.apply(owners())
    assert host.apply({}, present=False).aside == []
    host.apply(owners())
    host.put(PATH, OTHER, 0o600)
    undone = host.apply({}, present=False)
    assert [line.split()[0] for line in undone.aside] == [PATH]
    aside = Path(host.path(f"/var/lib/hosttune/aside{PATH}"))
    assert aside.read_text() == OTHER
    assert aside.stat().st_mode & 0o777 == 0o600
    assert Path(host.path("/var/lib/hosttune/aside")).stat().st_mode & 0o777 == 0o700
    assert SECRET not in told(undone) + OTHER
    assert OTHER not in told(undone)


def test_a_ledger_that_still_holds_a_plain_digest_knows_our_file_and_loses_the_digest(host):
    host.apply(owners())
    ledger = store.Ledger(host)
    ledger.files[PATH]["written"] = DIGESTS[0]
    ledger.save()
    assert host.apply(owners(reload="app.service"), check=True).diff == []
    host.apply(owners(reload="app.service"))
    assert telling_files(host, SECRET) == {PATH}
    assert host.apply({}, present=False).aside == []


def test_the_key_is_on_disk_before_what_it_keyed(host, monkeypatch):
    """Else a power cut between the two would make our own file look edited by somebody."""
    monkeypatch.setattr(store.Ledger, "save", lambda _ledger, _run: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        host.apply(owners())
    assert host.exists(keys.PATH)


@pytest.mark.parametrize("step", ["check", "apply"])
def test_a_file_that_becomes_secret_later_is_one_for_good(host, step):
    host.apply(owners("plain words", secret=False))
    host.apply(owners())
    report = host.apply({"app": {"file": {}}}, check=step == "check")
    assert [one["before_header"] for one in report.diff] == [PATH]
    assert report.diff[0]["before"] == "(secret)\n"
    assert SECRET not in told(report)


def test_a_file_that_is_a_secret_no_longer_does_not_show_the_one_it_held(host):
    host.apply(owners())
    for check in (True, False):
        report = host.apply(owners("plain words", secret=False), check=check)
        assert report.diff
        assert SECRET not in told(report)
        assert DIGESTS[0] not in told(report)


def test_a_secret_that_everybody_could_read_is_refused(host):
    for mode in ("0644", "0604", "0602"):
        with pytest.raises(Refusal, match="everybody") as refusal:
            host.apply(owners(mode=mode))
        assert SECRET not in str(refusal.value)
    with pytest.raises(Refusal, match="everybody"):
        host.apply({"app": {"file": {PATH: {"content": SECRET, "secret": True}}}})
    assert not host.exists(PATH)


def test_the_text_of_a_file_without_options_is_refused_untold(host):
    """Taken for the digest, it would be shown as the desired value."""
    with pytest.raises(Refusal, match="has no content") as refusal:
        host.apply({"app": {"file": {PATH: SECRET}}})
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"owner": "app", "file": owners()["app"]["file"]},  # beside owners
        {"no_such_option": 1},
        {"lock_wait_seconds": "soon"},
        {"state": "perhaps"},
        {"owners": json.dumps(owners()), "state": "perhaps"},
    ],
    ids=lambda one: next(reversed(one)),
)
def test_a_call_that_ansible_refuses_by_its_options_tells_no_secret(host, monkeypatch, wrong):
    result, everything = run_module(host, monkeypatch, **{"owners": owners(), **wrong})
    assert result["failed"]
    assert SECRET not in everything


def test_content_that_is_no_text_is_refused_untold(host):
    with pytest.raises(Refusal, match="cannot be written as UTF-8") as refusal:
        host.apply(owners(SECRET + "\udcff"))
    assert SECRET not in str(refusal.value)
    assert telling_files(host, SECRET) == set()


@pytest.mark.parametrize("where", ["unwritable", "not a file"])
def test_a_failure_tells_no_secret(host, monkeypatch, where):
    if where == "unwritable":
        monkeypatch.setattr(
            os, "rename", lambda *_args: (_ for _ in ()).throw(OSError(5, "Input/output error"))
        )
    else:
        os.mkdir(host.path(PATH))
    result, everything = run_module(host, monkeypatch, owners=owners())
    assert result["failed"], result
    assert SECRET not in everything
    assert telling_files(host, SECRET) == set()


def test_secrets_are_found_wherever_a_call_holds_them():
    content = 'line "one"\nline two\n'
    options = {"setting": "a", "owners": {"o": {"file": {"/x": {"content": content, "secret": True}}}}}
    assert demand.secrets(options) == {content, content.strip(), 'line \\"one\\"\\nline two\\n'}
    assert demand.secrets(json.dumps(options)) == demand.secrets(options)
    options["owners"]["o"]["file"]["/x"]["secret"] = False
    assert demand.secrets(options) == set()
    for blank in ("", "\n"):
        assert demand.secrets({"/x": {"content": blank, "secret": True}}) == set()
