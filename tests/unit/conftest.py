"""Which tests run where: the engine's on every Python of managed hosts, the controller's on its own only."""

import os

from hypothesis import settings
from machines import TALLY
from oracle_trees import BAD_INPUT, COMPARISONS

# Elsewhere each run tries new examples; in CI no change is refused for a fault that it did not bring.
# No example has a deadline: how long it takes is the machine's load.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("anywhere", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "anywhere")

if os.environ.get("HOSTTUNE_ENGINE_ONLY"):
    collect_ignore_glob = [
        "test_alike.py",
        "test_lab_*.py",
        "test_origins.py",
        "test_release_artefact.py",
        "test_roles_of_cpus.py",
        "test_validation*.py",
        "test_settings_doc.py",
    ]


def pytest_collection_modifyitems(config, items):
    """Seeded faults are about the comparisons: seen on the controller's Python, they need no other."""
    if os.environ.get("HOSTTUNE_ENGINE_ONLY"):
        seeded = [item for item in items if "sees_a_fault_of_ours" in item.name]
        config.hook.pytest_deselected(items=seeded)
        items[:] = [item for item in items if item not in seeded]


def pytest_terminal_summary(terminalreporter):
    """How many cases were compared with the system's own tools, and machines planned: dots do not show it."""
    for comparison in COMPARISONS:
        if comparison.compared:
            terminalreporter.write_line(str(comparison))
    if BAD_INPUT.cases:
        terminalreporter.write_line(str(BAD_INPUT))
    for line in TALLY.lines():
        terminalreporter.write_line(line)
