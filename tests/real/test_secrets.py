"""A planted secret is looked for everywhere after Ansible wrote, changed, undid and failed to write it."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import shutil

from conftest import BASE, ROOT, play

#: They keep what stood in the file before.
LEDGERS = ("/var/lib/hosttune/ledger.json", "/var/lib/hosttune/ledger.copy.json")
PATH = "/etc/hosttune-check/password"
DRIFT = "python3 -B -c 'import sys; from hosttune.cli import main; sys.exit(main())'"
FORMATS = ("table", "json", "junit", "prometheus")

#: Keeps every command line and environment that it sees until the file `stop` appears beside it.
SAMPLER = """
import glob, os, time
seen = set()
while not os.path.exists("/root/hosttune-sampler/stop"):
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
        try:
            seen.add(open(path, "rb").read())
        except OSError:
            pass
    time.sleep(0.002)
with open(os.open("/root/hosttune-sampler/new", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out:
    out.write(b"\\n".join(seen))
os.rename("/root/hosttune-sampler/new", "/root/hosttune-sampler/seen")
"""

#: Which files and which journal entries hold one of the needles; files with their mode.
SCAN = """
import json, os, stat, subprocess, sys
needles = [one.encode() for one in json.load(sys.stdin)]
found = {}
for top in ("etc", "var", "tmp", "run", "root", "home", "opt", "srv", "usr/local", "dev/shm"):
    for folder, folders, files in os.walk(f"/{top}"):
        for name in files:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            if not stat.S_ISREG(about.st_mode):
                continue
            try:
                text = open(path, "rb").read()
            except OSError:
                continue
            if any(one in text for one in needles):
                found[path] = about.st_mode & 0o7777
journal = subprocess.run(["journalctl", "--no-pager", "-o", "export"], capture_output=True, check=True).stdout
json.dump({"files": found, "journal": any(one in journal for one in needles)}, sys.stdout)
"""


def forms(content: str) -> list[str]:
    """The forms in which a secret may not turn up: plain, encoded, and as a digest without a key."""
    raw = content.encode()
    return [content.strip(), base64.b64encode(raw).decode(), hashlib.sha256(raw).hexdigest()]


def test_a_secret_turns_up_nowhere_but_in_its_file_and_where_only_root_reads(host, tmp_path):
    original, first, second, edited, failed = (f"marker-{secrets.token_hex(12)}\n" for _one in range(5))
    needles = [form for one in (original, first, second, edited, failed) for form in forms(one)]
    run = f"secrets-{secrets.token_hex(4)}"
    outputs: list[str] = []

    def call(content: str, *flags: str, ok: bool = True, path: str = PATH, **more: object) -> None:
        value = {"content": content, "mode": "0600", "secret": True, **more}
        options = {"owners": {"app": {"file": {path: value}}}}
        ended = play(tmp_path, options, "-vvv", "--diff", *flags, HOSTTUNE_RUN_ID=run)
        outputs.append(ended.stdout + ended.stderr)
        assert (ended.returncode == 0) is ok, ended.stdout + ended.stderr

    def undo() -> dict:
        ended = play(tmp_path, {"state": "absent"}, "-vvv", "--diff", HOSTTUNE_RUN_ID=run)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        outputs.append(ended.stdout + ended.stderr)

    def scan() -> dict[str, int]:
        found = host.python(SCAN, needles)
        assert not found["journal"]
        assert not any(mode & 0o077 for mode in found["files"].values()), found
        return found["files"]

    host.put({PATH: original}, mode=0o600)
    host.put({"/root/hosttune-sampler/sampler.py": SAMPLER})
    host.run("setsid python3 -B /root/hosttune-sampler/sampler.py >/dev/null 2>&1 </dev/null &")
    try:
        call(first, "--check")
        assert "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" in outputs[0]  # the call itself was shown
        assert "(another secret)" in outputs[0]
        assert scan() == {PATH: 0o600}
        call(first)
        assert scan() == {PATH: 0o600, **dict.fromkeys(LEDGERS, 0o600)}
        call(second, "--check")
        call(second)
        call(second)
        for form in FORMATS:
            outputs.append(host.try_run(f"cd {BASE}; {DRIFT} --format {form}").stdout)
        assert json.loads(outputs[-3])["settings"][0]["verdict"] == "in_sync"
        host.put({PATH: edited}, mode=0o600)
        for form in FORMATS:
            outputs.append(host.try_run(f"cd {BASE}; {DRIFT} --format {form}").stdout)
        outputs.append(host.try_run(f"cd {BASE}; {DRIFT} --explain file {PATH}").stdout)
        assert "drift" in outputs[-1]
        assert set(scan()) == {PATH, *LEDGERS}
        undo()
        assert scan() == {PATH: 0o600, f"/var/lib/hosttune/aside{PATH}": 0o600}
        assert host.run(f"cat {PATH}") == original
        assert host.run(f"cat /var/lib/hosttune/aside{PATH}") == edited
        assert host.run("stat -c %a /var/lib/hosttune/aside").strip() == "700"

        # What fails or is refused tells it no more.
        host.run("mkdir -p /etc/hosttune-check/full /etc/hosttune-check/folder")
        host.run("mount -t tmpfs -o ro,size=4k tmpfs /etc/hosttune-check/full")
        call(failed, ok=False, path="/etc/hosttune-check/full/password")
        call(failed, ok=False, path="/etc/hosttune-check/folder")
        host.run("cd /etc/hosttune-check/full; mount -o remount,rw .; head -c 9999 /dev/zero >x || true")
        call(failed, ok=False, path="/etc/hosttune-check/full/password")
        call(failed, ok=False, owner="no-such-user")
        call(failed, ok=False, mode="0644")
        call(failed, ok=False, no_such_option="1")
        assert failed.strip() not in "".join(outputs)
        undo()
        host.run("cd /root/hosttune-sampler; touch stop; while ! [ -e seen ]; do sleep 0.1; done")
        seen = host.run("cat /root/hosttune-sampler/seen")
        assert "AnsiballZ" in seen or "python3" in seen
        outputs.append(seen)
    finally:
        host.run("touch /root/hosttune-sampler/stop; umount /etc/hosttune-check/full 2>/dev/null || true")
        host.undo()
        host.run("rm -rf /etc/hosttune-check /root/hosttune-sampler; rm -f /var/lib/hosttune/aside -r")
    outputs += [path.read_text() for path in (ROOT / "reports" / run).rglob("*") if path.is_file()]
    assert (ROOT / "reports" / run / "settings.json").exists()
    shutil.rmtree(ROOT / "reports" / run)
    for number, output in enumerate(outputs):
        assert output, number
        for needle in needles:
            assert needle not in output, (number, needle)
