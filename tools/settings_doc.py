"""Writes docs/settings.md from the roles' defaults: every setting once, with its note.

    tools/settings-doc            writes it
    tools/settings-doc --check    ends with 1 and the difference where it is stale
    tools/settings-doc --json     what is declared: role -> kind -> name -> {value, variants, note, class}

The defaults are resolved by Ansible itself for one example host, once as they are and once for each variant
that brings other settings. Nothing is asked of any host.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")  # before Ansible is imported, which reads it then
sys.path.insert(0, str(ROOT / "module_utils"))

from ansible.parsing.dataloader import DataLoader  # noqa: E402
from ansible.plugins.loader import init_plugin_loader  # noqa: E402
from ansible.template import Templar  # noqa: E402
from hosttune import cpulist, kinds  # noqa: E402
from hosttune.system import System  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
EXAMPLE = ROOT / "tests" / "topologies" / "epyc-192-nps4.json"

#: Variables that bring further settings or other values.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"kernel_profile": "low_latency"},
    {"kernel_profile": "low_latency", "numa_request": {"policy": "latency"}},
    {"numa_request": {"policy": "latency"}, "isolation_method": "cpuset"},
    {"network_nics": {"ens1f0": {"coalesce": {"rx-usecs": 0}, "features": {"lro": "off"}}}},
    {"kernel_tcp_congestion_control": "bbr"},
    {"kernel_tcp_congestion_control": "dctcp"},
)

#: Directives that systemd applies to the control group of a running unit (systemd.resource-control(5)).
_OF_THE_GROUP = re.compile(r"Tasks|Memory|CPUQuota|CPUWeight|IO\w*(Weight|Max)|Allowed|Startup")

INTRODUCTION = """\
# Settings

Made by `tools/settings-doc` from the roles' defaults, where each setting stands with its reason; a test
holds it current. Do not edit it here.

Values that are computed are those of an example host, {host}: {notes}; {gib} GiB of memory, Debian 12.
What another variable brings is named with it. *From* is the variable, profile or formula that decides;
`playbooks/explain.yml -e setting=NAME` shows it for a host, with its inputs and the line that set it.

*Class* is what making the value live does to a host where everything runs: `silent`, `moves` (threads or
interrupts), `resets` (a NIC), `restarts` (a service) or `reboots`. `playbooks/plan.yml` says it of each host
as it is.
"""

Declared = dict[str, dict[str, dict[str, dict[str, Any]]]]


def example() -> dict[str, Any]:
    """The example host, as the fact host_topology."""
    host: dict[str, Any] = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    online = [cpu["id"] for cpu in host["cpus"] if cpu["online"]]
    drivers = {"cpufreq_driver": "amd-pstate-epp", "cpuidle_driver": "acpi_idle"}
    return {"usable_cpus": cpulist.format(online), "fingerprint": host["name"], **drivers, **host}


def role_variables(loader: DataLoader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        for path in sorted(ROOT.glob(f"roles/*/{part}/main.yml")):
            found.update(loader.load_from_file(str(path), trusted_as_template=True) or {})
    return found


def resolve(variables: dict[str, Any], loader: DataLoader) -> Declared:
    """role -> kind -> name -> {value, note}, for these variables."""
    templar = Templar(loader, variables=variables)
    notes = templar.template(variables["settings_notes"])
    return {
        role: {
            kind: {
                name: {"value": value, "note": dict(notes.get(kind, {}).get(name, {}))}
                for name, value in names.items()
            }
            for kind, names in by_kind.items()
        }
        for role, by_kind in templar.template(variables["settings_all"]).items()
    }


def declared() -> tuple[Declared, set[tuple[str, str]]]:
    """Every setting of every variant, and the (kind, name) of notes that no variant declares."""
    init_plugin_loader()
    loader = DataLoader()
    facts = {
        "ansible_facts": {"host_topology": example()},
        "inventory_hostname": "example",
        "ansible_run_tags": ["all"],
        "ansible_skip_tags": [],
    }
    found: Declared = {}
    noted: set[tuple[str, str]] = set()
    for variant in VARIANTS:
        variables = {**role_variables(loader), **facts, **variant}
        noted |= _noted(variables, loader)
        said = _said(variant)
        less = [_said(one) for one in VARIANTS if one.items() < variant.items()]
        for role, by_kind in resolve(variables, loader).items():
            for kind, names in by_kind.items():
                for own_name, one in names.items():
                    name = _any_cpu(own_name)
                    shown = _shown(kind, one["value"])
                    entry = (
                        found.setdefault(role, {})
                        .setdefault(kind, {})
                        .setdefault(name, {"value": None, "variants": {}, "note": one["note"], "class": None})
                    )
                    entry["class"] = class_of(kind, name, one["value"], one["note"])
                    if not variant:
                        entry["value"] = shown
                    elif shown != entry["value"] and shown not in map(entry["variants"].get, less):
                        entry["variants"][said] = shown
    known = {(kind, name) for by_kind in found.values() for kind, names in by_kind.items() for name in names}
    return found, noted - known


def _any_cpu(name: str) -> str:
    """One name for an attribute that every CPU has."""
    return re.sub(r"(?<=devices/system/cpu/cpu)\d+(?=/)", "N", name)


def _said(variant: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in variant.items()).translate({ord("'"): None})


def _noted(variables: dict[str, Any], loader: DataLoader) -> set[tuple[str, str]]:
    templar = Templar(loader, variables=variables)
    return {
        (kind, _any_cpu(name))
        for role in templar.template(variables["settings_roles"])
        for kind, names in templar.template(variables.get(f"{role}_notes", {})).items()
        for name in names
    }


def _shown(kind: str, value: Any) -> str:
    """A value in the page. Of a file everything but its content, which --diff shows."""
    if kind != "file":
        return str(value)
    secret = ", secret" if value.get("secret") else ""
    owner = f"{value.get('owner', 'root')}:{value.get('group', 'root')}"
    return f"mode {value.get('mode', '0644')}, {owner}{secret}"


def class_of(kind: str, name: str, value: Any, note: dict[str, str]) -> str:
    """The class of disruption on a host where everything runs; a run judges each host as it is."""
    if note.get("class"):
        return note["class"]
    if kind == "file":
        return "restarts" if value.get("restart") else "silent"
    if kind == "boot":
        return "reboots"
    if kind == "unit":
        _unit, _section, directive = name.rsplit("/", 2)
        return "silent" if _OF_THE_GROUP.match(directive) else "restarts"
    return kinds.load(kind, System("/")).disruption


def page(found: Declared) -> str:
    """docs/settings.md."""
    host = example()
    lines = INTRODUCTION.format(
        host=host["name"], notes="; ".join(host["notes"]), gib=host["memory_limit_bytes"] >> 30
    ).splitlines()
    for role, by_kind in found.items():
        lines += [
            "",
            f"## {role}",
            "",
            "| setting | default | unit | from | why | risk | source | class |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for kind in kinds.ORDER:
            for name, entry in by_kind.get(kind, {}).items():
                note = entry["note"]
                cells = [
                    f"{kind} `{name}`",
                    _values(kind, entry),
                    _cell(note.get("unit", "")),
                    _cell(note.get("from", "").partition("; of ")[0]),
                    *(_cell(note.get(word, "")) for word in ("why", "risk", "source")),
                    entry["class"],
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _values(kind: str, entry: dict[str, Any]) -> str:
    """The default, then what variants make of it; those that agree share one mention."""
    by_value: dict[str, list[str]] = {}
    for variant, value in entry["variants"].items():
        by_value.setdefault(value, []).append(variant)
    found = [] if entry["value"] is None else [_value(kind, entry["value"])]
    found += [f"{_value(kind, value)} ({' or '.join(names)})" for value, names in by_value.items()]
    return "; ".join(found)


def _value(kind: str, text: str) -> str:
    return _cell(text) if kind == "file" else f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is current")
    parser.add_argument("--json", action="store_true", help="write nothing, print what is declared")
    asked = parser.parse_args()
    found, strangers = declared()
    if asked.json:
        print(json.dumps({"declared": found, "strangers": sorted(strangers)}, indent=1))
        return 0
    text, now = page(found), PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if not asked.check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    differing = difflib.unified_diff(
        now.splitlines(), text.splitlines(), "docs/settings.md", "the roles' defaults", lineterm=""
    )
    shown = "\n".join(differing)
    if shown:
        print(f"{shown}\ndocs/settings.md is stale: run tools/settings-doc")
    return 1 if shown else 0


if __name__ == "__main__":
    sys.exit(main())
