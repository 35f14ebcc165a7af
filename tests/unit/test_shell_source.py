"""Following sourced shell files: what sh itself makes of them is the oracle."""

from __future__ import annotations

import os
import subprocess

import pytest
from hosttune import grub
from hosttune.shell_source import Unfollowed, follow
from hosttune.system import System
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT", "GRUB_X", "EXTRA")
#: grub-mkconfig's own lines, with the folder in front
MKCONFIG = """
set -e
sysconfdir=$1/etc
if test -f ${sysconfdir}/default/grub ; then
  . ${sysconfdir}/default/grub
fi
for x in ${sysconfdir}/default/grub.d/*.cfg ; do
  if [ -e "${x}" ]; then
    . "${x}"
  fi
done
printf '%s\\0' "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT" >&3
"""


def sourced(root):
    """What sh has in the two variables after it sourced the tree; None where it fails on it."""
    ended = subprocess.run(
        ["/bin/sh", "-c", f"exec 3>&1 >/dev/null; {MKCONFIG}", "sh", str(root)],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    if ended.returncode:
        return None
    return tuple(ended.stdout.decode("utf-8", "surrogateescape").split("\0")[:2])


def plant(root, files):
    for name, text in files.items():
        target = root / "etc/default" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode("utf-8", "surrogateescape"))


def followed(root):
    variables = grub.read_variables(System(str(root)))
    return tuple(variables.get(name).text for name in grub.VARIABLES)


_words = st.text("ab1=,.:_-/ \t", max_size=8)
_references = st.sampled_from(NAMES).flatmap(
    lambda name: st.sampled_from(
        [
            f"${name}",
            f"${{{name}}}",
            f"${{{name}:-x y}}",
            f"${{{name}-z}}",
            f"${{{name}:+q }}",
            f"${{{name}+r}}",
            f"${{{name}:+${name} }}",
        ]
    )
)
_bare = st.text("ab1=,.:_-/", min_size=1, max_size=6)
_double = st.lists(
    st.one_of(
        _words,
        _references,
        st.sampled_from(["\\$", '\\"', "\\\\", "\\`", "\\n", "\\\n", "'", "#", ";", "\n"]),
    ),
    max_size=5,
).map(lambda parts: '"' + "".join(parts) + '"')
_single = st.text('ab= $"\\#`\n\r', max_size=6).map(lambda text: f"'{text}'")
_escaped = st.sampled_from(["\\ ", "\\$", "\\'", '\\"', "\\\\", "\\\n", "\\#"])
_values = st.lists(st.one_of(_bare, _double, _single, _escaped, _references), max_size=4).map("".join)
_assignments = st.tuples(st.sampled_from(NAMES), _values).map("=".join)
_plain_lines = st.one_of(
    _assignments,
    st.lists(_assignments, min_size=2, max_size=3).map(" ".join),
    st.lists(_assignments, min_size=2, max_size=2).map("; ".join),
    _assignments.map(lambda text: f"  {text}  # why"),
    st.sampled_from(
        ["", "# GRUB_CMDLINE_LINUX=no", ":", "export GRUB_X", "unset GRUB_X", "unset GRUB_CMDLINE_LINUX"]
    ),
)
_wild_lines = st.one_of(
    _plain_lines,
    st.sampled_from(
        [
            "GRUB_DISTRIBUTOR=`echo Debian 2> /dev/null || echo 'x'`",
            "GRUB_X=$(echo c | tr c d)",
            'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX $(echo e)"',
            'if [ -n "$GRUB_X" ]; then GRUB_CMDLINE_LINUX="f"; fi',
            'if [ -n "$EXTRA" ]\nthen\n  GRUB_X=g\nelse\n  EXTRA=h # fi\nfi',
            "test -d /nowhere || GRUB_CMDLINE_LINUX_DEFAULT=i",
            "true &&\n GRUB_X=j",
            "true && # here\n\n GRUB_X=jj",
            "for GRUB_X in 1 2; do EXTRA=$GRUB_X; done",
            "for GRUB_X in 1 2\ndo\nEXTRA=$GRUB_X\ndone; GRUB_CMDLINE_LINUX=k",
            'case "$GRUB_X" in a) EXTRA=l;; *) EXTRA="m)";; esac',
            'add() {\n  GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX n"\n}\nadd',
            "add() { GRUB_X=o; }; add",
            ": ${GRUB_CMDLINE_LINUX:=p}",
            ": ${GRUB_X:=q} $((EXTRA=1))",
            'EXTRA="${GRUB_X:=r}"',
            "EXTRA=$((GRUB_X=2))",
            "(GRUB_CMDLINE_LINUX=s)",
            "{ GRUB_X=t; }",
            "EXTRA=~",
            "EXTRA=a:~/x",
            "eval GRUB_X=u",
            "export GRUB_CMDLINE_LINUX=v",
            'export GRUB_CMDLINE_LINUX="$GRUB_X w"',
            "GRUB_X=x : ",
            "GRUB_CMDLINE_LINUX=y export EXTRA",
            "read GRUB_X < /dev/null || true",
            "cat > /dev/null <<END\nGRUB_CMDLINE_LINUX=z\nEND",
            "GRUB_CMDLINE_LINUX+=aa",
            "! GRUB_X=bb true",
            "while false; do GRUB_X=cc; done",
            "echo GRUB_X=dd > /dev/null",
            "return 0",
            "EXTRA=$HOME",
            "GRUB_X=$GRUB_FS",
        ]
    ),
)


def _trees(lines):
    text = st.lists(lines, max_size=6).map(lambda found: "".join(f"{line}\n" for line in found))
    names = st.sampled_from(["grub", "grub.d/50-a.cfg", "grub.d/60-b.cfg", "grub.d/60_b.cfg", "grub.d/Z.cfg",
                             "grub.d/.hidden.cfg", "grub.d/50-a.cfg.bak"])  # fmt: skip
    return st.dictionaries(names, text, max_size=4)


@pytest.fixture
def fresh(tmp_path_factory):
    return lambda: tmp_path_factory.mktemp("tree")


_many = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_many
@given(files=_trees(_plain_lines))
def test_plain_files_are_followed_as_sh_sources_them(fresh, files):
    root = fresh()
    plant(root, files)
    oracle = sourced(root)
    try:
        found = followed(root)
    except Unfollowed as why:
        # Only what no file sets is not ours to know.
        assert "EXTRA" in str(why), why
        return
    assert oracle is None or found == oracle


@_many
@given(files=_trees(_wild_lines))
def test_whatever_is_followed_is_what_sh_has(fresh, files):
    root = fresh()
    plant(root, files)
    oracle = sourced(root)
    variables = grub.read_variables(System(str(root)))
    for at, name in enumerate(grub.VARIABLES):
        try:
            found = variables.get(name).text
        except Unfollowed:
            continue
        assert oracle is None or found == oracle[at]


@_many
@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES[:2]), st.sampled_from(["=", "=before "]), st.booleans()), max_size=8
    )
)
def test_every_word_knows_its_line(lines):
    text, kept = "", {name: [] for name in NAMES[:2]}
    for number, (name, _form, append) in enumerate(lines, 1):
        text += f'{name}="{f"${{{name}}} " if append else ""}w{number}=1"\n'
        kept[name] = [*(kept[name] if append else []), number]
    variables = follow({"/f": text}, lambda name: True)
    for name, numbers in kept.items():
        value = variables.get(name)
        assert value.text.split() == [f"w{number}=1" for number in numbers]
        places = {value.origins[value.text.index(f"w{number}=")] for number in numbers}
        assert places == {("/f", number) for number in numbers}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('GRUB_CMDLINE_LINUX="$(cat /x)"\n', "/f:1: a command substitution"),
        ("\nif true; then\nGRUB_CMDLINE_LINUX=x\nfi\n", "/f:2: a branch"),
        ("exit 0\n", "/f:1: 'exit'"),
        (". /etc/other\n", "/f:1: '.'"),
        ('GRUB_CMDLINE_LINUX="never closed\n', "never closed"),
        ("GRUB_CMDLINE_LINUX+=x\n", "update-grub fails"),
        ("GRUB_CMDLINE_LINUX=$TERM\n", "from outside"),
    ],
)
def test_what_cannot_be_followed_says_why(text, why):
    variables = follow({"/f": text}, lambda name: name.startswith("GRUB_"))
    with pytest.raises(Unfollowed, match=why.replace(".", r"\.")):
        variables.get("GRUB_CMDLINE_LINUX")


def test_a_later_plain_assignment_needs_nothing_of_what_was_lost():
    text = 'GRUB_CMDLINE_LINUX="$(x)"\nGRUB_CMDLINE_LINUX=quiet\n'
    assert follow({"/f": text}, lambda name: True).get("GRUB_CMDLINE_LINUX").text == "quiet"


def test_bash_appends():
    text = "GRUB_CMDLINE_LINUX=a\nGRUB_CMDLINE_LINUX+=' b'\n"
    found = follow({"/f": text}, lambda name: True, appending=True).get("GRUB_CMDLINE_LINUX")
    assert (found.text, found.origins[-1]) == ("a b", ("/f", 2))
