"""Kind file: whole files, their digests, and the units that read them."""

import grp
import hashlib
import os
import pwd

import pytest
from hosttune import keys
from hosttune.kinds.file import FileKind
from hosttune.model import Call, Refusal, Setting
from hosttune.system import Ran, System

USER, GROUP = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
PATH = "/etc/redis/hosttune.conf"


class Host(System):
    """A fake root with a played systemctl: `units` is name -> (ActiveState, ExecMainStartTimestamp)."""

    def __init__(self, root):
        super().__init__(str(root))
        self.ran = []
        self.units = {}
        self.stale = set()
        self.reloadless = set()
        self.status = 0

    def run(self, *argv, stdin="", timeout=120.0):
        self.ran.append(argv)
        if argv[:2] == ("systemctl", "show") and not self.status:
            asked = argv[argv.index("--") + 1 :]
            blocks = []
            for unit in asked:
                active, started = self.units.get(unit, ("inactive", "n/a"))
                blocks.append(
                    f"Id={unit}\nActiveState={active}\nExecMainStartTimestamp={started}\n"
                    f"NeedDaemonReload={'yes' if unit in self.stale else 'no'}\n"
                    f"CanReload={'no' if unit in self.reloadless else 'yes'}\n"
                )
            return Ran(0, "\n".join(blocks), "")
        return Ran(self.status, "", "no bus\n" if self.status else "")

    def told(self):
        return [" ".join(argv[1:]) for argv in self.ran if argv[1] != "show"]


@pytest.fixture
def host(tmp_path):
    (tmp_path / "etc/redis").mkdir(parents=True)
    (tmp_path / "var/lib/hosttune").mkdir(parents=True)
    return Host(tmp_path)


def content(text="a\n", **more):
    return {"content": text, "mode": "0640", "owner": USER, "group": GROUP, **more}


def wish(value, text, name=PATH):
    return Setting("redis", "file", name, text, asked=value)


def write(host, text="a\n", mode=0o640, name=PATH):
    path = host.path(name)
    with open(path, "w") as stream:
        stream.write(text)
    os.chmod(path, mode)
    return path


def test_text_is_digest_mode_and_owner(host):
    kind = FileKind(host)
    digest = hashlib.sha256(b"a\n").hexdigest()
    assert kind.text(PATH, content()) == f"sha256:{digest} 0640 {USER}:{GROUP}"
    assert kind.text(PATH, {"content": "a\n"}) == f"sha256:{digest} 0644 root:root"


def test_what_stands_there_has_the_text_that_was_asked_for(host):
    kind = FileKind(host)
    text = kind.text(PATH, content())
    assert kind.read([PATH])[PATH].winner is None
    path = write(host)
    planes = kind.read([PATH])[PATH]
    assert (planes.winner.value, planes.winner.file, planes.has_live) == (text, PATH, False)
    os.chmod(path, 0o600)
    assert kind.read([PATH])[PATH].winner.value == text.replace(" 0640 ", " 0600 ")
    write(host, "b\n")
    assert kind.read([PATH])[PATH].winner.value != text


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (PATH, {"mode": "0644"}, "no content"),
        (PATH, ["x"], "no content"),
        (PATH, {"content": "x", "modes": "0644"}, "no option modes"),
        (PATH, {"content": "x", "mode": 420}, "in quotes"),
        (PATH, {"content": "x", "mode": "rw"}, "in quotes"),
        ("etc/x", {"content": "x"}, "absolute"),
        ("/etc/../x", {"content": "x"}, "absolute"),
        ("/etc//x", {"content": "x"}, "absolute"),
    ],
)
def test_refuses(host, name, value, says):
    with pytest.raises(Refusal, match=says):
        FileKind(host).text(name, value)


def test_refuses_users_that_no_missing_package_brings(host):
    kind = FileKind(host)
    value = content(owner="no-such-user")
    one = wish(value, kind.text(PATH, value))
    with pytest.raises(Refusal, match="no user no-such-user"):
        kind.check([one], {})
    kind.check([one], {"redis": ["redis-server"]})
    # Its package is still to come: nothing can be rendered, so it must not look settled.
    assert "no-such-user" in kind.read([PATH])[PATH].unknown


def test_render_is_exact(host):
    kind = FileKind(host)
    value = content("ä\n", secret=True)
    ((path, image),) = kind.render("redis", [wish(value, kind.text(PATH, value))]).items()
    assert path == kind.managed_file("redis", PATH) == PATH
    assert (image.content, image.mode, image.uid, image.gid, image.secret) == (
        "ä\n".encode(),
        0o640,
        os.geteuid(),
        os.getegid(),
        True,
    )
    assert kind.render("redis", [wish({"secret": True}, "hmac-sha256:0 0640 a:b")]) == {}


def test_the_digest_of_a_secret_is_keyed_with_the_hosts_own_key(host, tmp_path):
    kind = FileKind(host)
    text = kind.text(PATH, content("password\n", secret=True))
    assert text.startswith("hmac-sha256:")
    assert hashlib.sha256(b"password\n").hexdigest() not in text
    keys.keep(host)
    write(host, "password\n")
    # The manifest remembers that it is secret, and the key outlives the process.
    again = FileKind(Host(host.root))
    again.recall(Setting("redis", "file", PATH, text, asked={"secret": True}))
    assert again.read([PATH])[PATH].winner.value == text
    other = Host(tmp_path / "other")
    assert FileKind(other).text(PATH, content("password\n", secret=True)) != text


def test_options_for_the_manifest_never_hold_the_content(host):
    kind = FileKind(host)
    value = content("password\n", secret=True, restart="redis.service")
    one = wish(value, kind.text(PATH, value))
    assert kind.options(one) == {"secret": True, "restart": "redis.service"}
    kind.text("/etc/plain", content())
    assert kind.options(wish(content(), "", "/etc/plain")) is None


def test_a_service_that_started_before_the_file_changed_must_restart(host):
    kind = FileKind(host)
    text = kind.text(PATH, content(restart="redis.service"))
    path = write(host)
    os.utime(path, (1_800_000_000, 1_800_000_000))
    host.units["redis.service"] = ("active", "Fri 2027-01-15 07:59:59.000000 UTC")  # one second before
    planes = kind.read([PATH])[PATH]
    assert planes.needs == "restart"
    assert planes.process != text
    host.units["redis.service"] = ("active", "Fri 2027-01-15 08:00:01.000000 UTC")
    planes = kind.read([PATH])[PATH]
    assert (planes.needs, planes.process) == ("none", text)
    host.units["redis.service"] = ("inactive", "n/a")
    assert kind.read([PATH])[PATH].process is None


def test_a_file_that_is_still_to_come_foretells_the_restart_of_what_will_read_it(host):
    kind = FileKind(host)
    one = wish(value := content(restart="redis.service"), kind.text(PATH, value))
    host.units["redis.service"] = ("active", "Fri 2027-01-15 08:00:01.000000 UTC")
    planes = kind.read([PATH])[PATH]
    assert (planes.process, planes.needs) == (None, "none")
    then = kind.foretell(one, planes, Call(frozenset([PATH])))
    assert (then.process, then.needs) == (f"what {PATH} held before redis.service started", "restart")
    stopped = kind.foretell(one, planes, Call(frozenset([PATH]), stops=frozenset(["redis.service"])))
    assert (stopped.process, stopped.needs) == (None, "none")
    host.units["redis.service"] = ("inactive", "n/a")
    assert kind.foretell(one, kind.read([PATH])[PATH], Call(frozenset([PATH]))).needs == "none"


def test_a_silent_systemd_makes_only_files_unknown_that_ask_it(host):
    kind = FileKind(host)
    kind.text(PATH, content(restart="redis.service"))
    kind.text("/etc/plain", content())
    write(host)
    write(host, name="/etc/plain")
    host.status = 1
    found = kind.read([PATH, "/etc/plain"])
    assert "systemctl show" in found[PATH].unknown
    assert found["/etc/plain"].unknown == ""


def test_what_is_no_regular_file_is_unknown(host):
    kind = FileKind(host)
    kind.text(PATH, content())
    os.symlink("elsewhere", host.path(PATH))
    assert "not a regular file" in kind.read([PATH])[PATH].unknown


def test_units_reload_once_and_only_for_files_that_changed(host):
    kind = FileKind(host)
    for name, unit in (
        ("/etc/a", "chrony.service"),
        ("/etc/b", "chrony.service"),
        ("/etc/c", "other.service"),
    ):
        kind.text(name, content(reload=unit))
        host.units[unit] = ("active", "n/a")
        write(host, name=name)
    assert kind.activate([], ["/etc/a", "/etc/b"]) == {}
    assert host.told() == ["reload chrony.service"]
    host.status = 1
    failed = kind.activate([], ["/etc/a", "/etc/b", "/etc/plain"])
    assert set(failed) == {"/etc/a", "/etc/b"}
    assert "no bus" in failed["/etc/a"]


def test_what_does_not_run_is_not_reloaded(host):
    kind = FileKind(host)
    kind.text("/etc/a", content(reload="chrony.service"))
    write(host, name="/etc/a")
    assert kind.activate([], ["/etc/a"]) == {}
    assert host.told() == []


@pytest.mark.parametrize("known_by", ["stale", "reloadless"])
def test_a_drop_in_with_the_reload_comes_before_it_and_goes_after_it(host, known_by):
    kind = FileKind(host)
    kind.text("/etc/a", content(reload="chrony.service"))
    host.units["chrony.service"] = ("active", "n/a")
    setattr(host, known_by, {"chrony.service"})
    path = write(host, name="/etc/a")
    assert kind.activate([], ["/etc/a"]) == {}
    assert host.told() == ["daemon-reload", "reload chrony.service"]
    os.unlink(path)
    host.ran.clear()
    assert kind.activate([], ["/etc/a"]) == {}
    assert host.told() == ["reload chrony.service", "daemon-reload"]


def test_systemd_learns_of_unit_files(host):
    FileKind(host).activate([], ["/etc/systemd/system/x.service"])
    assert host.ran == [("systemctl", "daemon-reload")]
