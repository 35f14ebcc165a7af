"""Hosts that shall be alike, in a play: the one that differs is named before anything is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from machines import REPO

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: settings, tasks_from: declare}
    - ansible.builtin.import_role: {name: numa, tasks_from: declare}
    - host_topology: {root: "{{ machine_root }}"}
    - ansible.builtin.import_tasks: %s/playbooks/tasks/alike.yml
    - ansible.builtin.debug: {msg: "touched {{ inventory_hostname }}"}
"""
HOSTS = {"execution": ("ex-1", "ex-2", "ex-3"), "feed": ("feed-1",)}
BIOS = {"ex-2": "2.3", "feed-1": "9"}
SAID = "execution trading: ex-2: BIOS 2.3 where the other 2 have 2.5"
LESS = "execution trading: ex-3: memory 4 GiB where the other 2 have 8 GiB"


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.fixture
def play(tmp_path):
    """Runs the comparison over hosts of two groups, of which one host has another BIOS."""
    write(tmp_path, "play.yml", PLAY % REPO)
    children = {group: {"hosts": {}} for group in HOSTS}
    for group, names in HOSTS.items():
        for name in names:
            write(tmp_path / name, "sys/class/dmi/id/bios_version", BIOS.get(name, "2.5"))
            memory = 4_000_000 if name == "ex-3" else 8_000_000
            write(tmp_path / name, "proc/meminfo", f"MemTotal: {memory} kB")
            children[group]["hosts"][name] = {"machine_root": str(tmp_path / name)}
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": f"{REPO}/ansible.cfg",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(tmp_path / "facts"),
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.timer",  # not the summary, which writes reports
    }
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}

    def run(**variables):
        inventory = {"trading": {"children": children, "vars": {**local, **variables}}}
        write(tmp_path, "hosts.json", json.dumps(inventory))
        command = [
            f"{REPO}/.venv/bin/ansible-playbook",
            "-i",
            f"{tmp_path}/hosts.json",
            f"{tmp_path}/play.yml",
        ]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, env=environment)

    return run


def test_it_refuses_and_names_the_outlier_before_anything_is_touched(play):
    ended = play()
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2, said
    lines = [line.strip() for line in said.splitlines()]
    assert LESS in lines and SAID in lines
    assert "feed-1: BIOS" not in said
    assert "numa_unequal_hosts: per_host" in said
    assert "touched ex" not in said and "touched feed" not in said


def test_it_plans_per_host_where_that_is_asked_for(play):
    ended = play(numa_unequal_hosts="per_host")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert LESS in ended.stdout and SAID in ended.stdout
    assert all(f"touched {name}" in ended.stdout for names in HOSTS.values() for name in names)


def test_a_set_may_be_named_otherwise(play):
    ended = play(numa_alike="{{ inventory_hostname }}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
