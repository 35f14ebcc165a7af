"""sizing.huge_pages against the server's own count, shared_memory_size_in_huge_pages."""

from __future__ import annotations

import itertools
import json
import shlex

import pytest
import yaml
from conftest import ROOT
from hosttune import sizing

POSTGRES = "/usr/lib/postgresql/15/bin/postgres"
#: What the role postgres sets that takes shared memory beside shared_buffers.
ROLE = yaml.safe_load((ROOT / "roles/postgres/defaults/main.yml").read_text())
LIBRARIES = ROLE["postgres_parameters"]["shared_preload_libraries"]


@pytest.fixture(scope="module")
def count(machine):
    """Asks the installed server, on a data directory of its own that no server runs on."""
    machine.run("""
        rm -rf /var/tmp/htpages; install -d -o postgres -m 0700 /var/tmp/htpages
        runuser -u postgres -- /usr/lib/postgresql/15/bin/initdb -D /var/tmp/htpages >/dev/null
    """)

    def ask(**parameters):
        given = " ".join(shlex.quote(f"--{name}={value}") for name, value in parameters.items())
        command = f"{POSTGRES} -D /var/tmp/htpages -C shared_memory_size_in_huge_pages {given} 2>/dev/null"
        return int(machine.run(f"cd /; runuser -u postgres -- {command}"))

    yield ask
    machine.run("rm -rf /var/tmp/htpages")


@pytest.mark.parametrize("buffers", ["128MB", "1GB", "2GB", "13GB", "64GB"])
def test_the_formula_is_never_below_the_servers_own_count(count, buffers):
    far = []
    for connections, cpus in itertools.product((20, 100, 1000), (4, 64)):
        memory = sizing.parse_size(buffers) * 4
        sized = sizing.postgres(memory, cpus, connections=connections, shared_buffers=buffers)
        asked = {
            name: sized[name]["value"]
            for name in ("shared_buffers", "max_connections", "max_worker_processes", "wal_buffers")
            if name in sized
        }
        server = count(**asked, shared_preload_libraries=LIBRARIES, huge_page_size="2MB")
        formula = sizing.huge_pages(buffers, connections)
        if not server <= formula <= server * 1.03 + 40:
            far.append((asked, server, formula))
    assert not far, json.dumps(far)


def test_pages_of_a_gigabyte_are_counted_too(count):
    asked = {"shared_buffers": "20GB", "max_connections": 300, "shared_preload_libraries": LIBRARIES}
    server = count(**asked, huge_page_size="1GB")
    assert server <= sizing.huge_pages("20GB", 300, page_bytes=1 << 30)
