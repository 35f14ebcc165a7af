"""The bench's 29 sysctls as pyinfra declares them."""

from pathlib import Path

import yaml
from pyinfra.operations import server

for key, value in yaml.safe_load((Path(__file__).parent / "sysctls.yml").read_text())[
    "bench_sysctls"
].items():
    words = value.split()
    server.sysctl(key=key, value=[int(word) for word in words] if len(words) > 1 else int(value))
