"""Which tests run where: the engine's on every Python of managed hosts, the controller's on its own only."""

import os

if os.environ.get("HOSTTUNE_ENGINE_ONLY"):
    collect_ignore_glob = ["test_lab_*.py", "test_release_artefact.py", "test_validation*.py"]
