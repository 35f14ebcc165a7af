"""Kind limit: what pam_limits would read, and what it would choke on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosttune import verdicts
from hosttune.kinds.limit import LimitKind
from hosttune.model import Refusal, Setting
from hosttune.system import System
from hypothesis import given, settings
from hypothesis import strategies as st


def kind_of(root: Path, files: dict[str, str]) -> LimitKind:
    for name, text in files.items():
        path = root / "etc/security" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return LimitKind(System(str(root)))


def setting(name: str, value: str) -> Setting:
    return Setting("limits", "limit", name, value)


def winner(kind: LimitKind, name: str) -> tuple[str, str, int] | None:
    found = kind.read([name])[name].winner
    return None if found is None else (found.value, found.file, found.line)


def test_the_last_line_over_all_files_wins_and_names_what_it_overrides(tmp_path: Path) -> None:
    kind = kind_of(
        tmp_path,
        {
            "limits.conf": "# trader hard nofile 1\ntrader hard nofile 10 # by hand\n",
            "limits.d/60-hosttune-limits.conf": "# header\ntrader hard nofile 524288\n",
            "limits.d/90-foreign.conf": "other hard nofile 5\ntrader - nofile 4096\n",
        },
    )
    planes = kind.read(["trader/hard/nofile"])["trader/hard/nofile"]
    assert [(one.value, one.file, one.line) for one in planes.definitions] == [
        ("10", "/etc/security/limits.conf", 2),
        ("524288", "/etc/security/limits.d/60-hosttune-limits.conf", 2),
        ("4096", "/etc/security/limits.d/90-foreign.conf", 2),
    ]
    assert not planes.has_live
    verdict, reason = verdicts.judge(
        "524288",
        planes,
        lambda a, b: kind.same("trader/hard/nofile", a, b),
        kind.managed_file("limits", "trader/hard/nofile"),
    )
    assert verdict == "drift"
    assert "90-foreign.conf:2" in reason


def test_files_are_read_in_byte_order_and_hidden_or_other_ones_are_not(tmp_path: Path) -> None:
    kind = kind_of(
        tmp_path,
        {
            "limits.d/a.conf": "trader soft nproc 1\n",
            "limits.d/Z.conf": "trader soft nproc 2\n",
            "limits.d/.z.conf": "trader soft nproc 3\n",
            "limits.d/z.txt": "trader soft nproc 4\n",
        },
    )
    # upper case sorts before lower case in the C locale
    assert winner(kind, "trader/soft/nproc") == ("1", "/etc/security/limits.d/a.conf", 1)


def test_words_behind_the_value_do_not_hide_a_line(tmp_path: Path) -> None:
    # seen with Linux-PAM 1.5.2: sscanf takes four words and leaves the rest
    kind = kind_of(tmp_path, {"limits.conf": "trader SOFT NOFILE 347 junk\ntrader soft nofile\n"})
    assert winner(kind, "trader/soft/nofile") == ("347", "/etc/security/limits.conf", 1)


def test_a_bare_dash_takes_every_limit_of_the_domain_whatever_follows(tmp_path: Path) -> None:
    kind = kind_of(tmp_path, {"limits.conf": "trader -\ntrader hard nofile 5\n"})
    assert winner(kind, "trader/hard/nofile") == ("-", "/etc/security/limits.conf", 1)
    assert not kind.same("trader/hard/nofile", "5", "-")


def test_both_limits_of_a_dash_must_be_right(tmp_path: Path) -> None:
    kind = kind_of(tmp_path, {"limits.conf": "trader - nproc 100\ntrader soft nproc 50\n"})
    assert winner(kind, "trader/-/nproc") == ("50:100", "/etc/security/limits.conf", 2)
    assert winner(kind, "trader/hard/nproc") == ("100", "/etc/security/limits.conf", 1)


def test_unlimited_has_three_names_but_minus_one_is_a_nice_level(tmp_path: Path) -> None:
    kind = kind_of(tmp_path, {})
    assert kind.same("t/soft/memlock", "unlimited", "-1")
    assert kind.same("t/soft/memlock", "infinity", "UNLIMITED")
    assert kind.same("t/soft/nofile", "0100", "100")
    assert not kind.same("t/soft/nice", "-1", "unlimited")


def test_an_unreadable_file_makes_all_unknown(tmp_path: Path) -> None:
    kind = kind_of(tmp_path, {"limits.conf": "trader hard nofile 5\n"})
    (tmp_path / "etc/security/limits.d/x.conf").mkdir(parents=True)
    assert "x.conf" in kind.read(["trader/hard/nofile"])["trader/hard/nofile"].unknown


def test_what_is_rendered_is_what_is_read(tmp_path: Path) -> None:
    kind = kind_of(tmp_path, {})
    wanted = [setting("trader/hard/nofile", "524288"), setting("@ops/-/memlock", "unlimited")]
    kind.check(wanted, {})
    (path, image), *others = kind.render("limits", wanted).items()
    assert not others
    assert path == "/etc/security/limits.d/60-hosttune-limits.conf"
    assert image.content.startswith(b"# Managed by hosttune, role limits")
    kind = kind_of(tmp_path, {"limits.d/60-hosttune-limits.conf": image.content.decode()})
    for one in wanted:
        found = winner(kind, one.name)
        assert found is not None
        assert found[:2] == (one.value, path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("trader/hard/nofiles", "1", "Did you mean nofile?"),
        ("trader/hrad/nofile", "1", "Did you mean hard?"),
        ("trader/nofile", "1", "DOMAIN/TYPE/ITEM"),
        ("tra der/hard/nofile", "1", "no domain"),
        ("trader/hard/nofile", "unlimited", "could not be opened"),
        ("trader/hard/nofile", "64K", "no whole number"),
        ("trader/hard/rtprio", "100", "Give 0 to 99"),
        ("trader/hard/nice", "-21", "Give -20 to 19"),
        ("trader/hard/nproc", "-5", "out of range"),
    ],
)
def test_mistakes_are_refused_with_a_remedy(tmp_path: Path, name: str, value: str, said: str) -> None:
    with pytest.raises(Refusal) as refusal:
        kind_of(tmp_path, {}).check([setting(name, value)], {})
    assert said in str(refusal.value)


def test_soft_above_hard_and_dash_beside_soft_are_refused(tmp_path: Path) -> None:
    kind = kind_of(tmp_path, {})
    with pytest.raises(Refusal, match="above the hard limit 10"):
        kind.check([setting("t/soft/nofile", "11"), setting("t/hard/nofile", "10")], {})
    with pytest.raises(Refusal, match="above the hard limit 10"):
        kind.check([setting("t/soft/nproc", "unlimited"), setting("t/hard/nproc", "10")], {})
    with pytest.raises(Refusal, match="one by one"):
        kind.check([setting("t/-/nofile", "11"), setting("t/hard/nofile", "11")], {})
    kind.check([setting("t/soft/nproc", "9"), setting("t/hard/nproc", "unlimited")], {})


_LINES = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["soft", "hard", "-"]), st.integers(0, 99)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(_LINES)
def test_any_order_of_lines_gives_the_limits_a_loop_over_them_gives(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str, int]]
) -> None:
    expected: dict[str, str] = {}
    for domain, type_, value in lines:
        for one in ("soft", "hard") if type_ == "-" else (type_,):
            expected[f"{domain}/{one}/nproc"] = str(value)
    text = "".join(f"{domain} {type_} nproc {value}\n" for domain, type_, value in lines)
    kind = kind_of(tmp_path_factory.mktemp("root"), {"limits.conf": text})
    names = [f"{domain}/{type_}/nproc" for domain in "ab" for type_ in ("soft", "hard")]
    found = {name: planes.winner.value for name, planes in kind.read(names).items() if planes.winner}
    assert found == expected
