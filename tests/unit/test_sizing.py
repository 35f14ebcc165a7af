"""Sizing: pgtune's rules against its own output, our corrections, and what cannot fit."""

import json
from pathlib import Path

import pytest
from hosttune import sizing
from hosttune.model import Refusal
from hypothesis import given
from hypothesis import strategies as st

#: What pgtune itself prints for many inputs; kept outside this repository.
VECTORS = Path(__file__).resolve().parents[3] / "shared/reference/pgtune-vectors.json"
UNITS = {"MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
MIB, GIB = 1 << 20, 1 << 30


def values(sized):
    return {name: entry["value"] for name, entry in sized.items()}


def in_bytes(text):
    return sizing.parse_size(text)


@pytest.mark.skipif(not VECTORS.exists(), reason="pgtune's vectors are not here")
def test_every_vector_of_pgtune(capsys):
    data = json.loads(VECTORS.read_text())
    vectors = data["vectors"] + data.get("extra", [])
    for vector in vectors:
        given_ = vector["in"]
        sized = sizing.postgres(
            given_["ram"] * UNITS[given_["ram_unit"]],
            given_["cpus"],
            disk_class=given_["disk"],
            connections=given_["connections"],
            workload=given_["db_type"],
            version=given_["pg"],
            db_size=given_["db_size"],
            corrected=False,
        )
        assert values(sized) == {name: str(value) for name, value in vector["out"].items()}, given_
    with capsys.disabled():
        print(f"\n  {len(vectors)} vectors of pgtune reproduced")


def test_pgtune_by_hand():
    """One vector kept here, for a checkout without the others: 4 GB, 16 CPUs, mixed, san, PostgreSQL 13."""
    sized = sizing.postgres(4 * GIB, 16, "san", 500, "mixed", 13, corrected=False)
    assert values(sized) == {
        "autovacuum_max_workers": "4",
        "checkpoint_completion_target": "0.9",
        "default_statistics_target": "100",
        "effective_cache_size": "3GB",
        "effective_io_concurrency": "300",
        "huge_pages": "off",
        "jit": "off",
        "maintenance_work_mem": "256MB",
        "max_connections": "500",
        "max_parallel_maintenance_workers": "4",
        "max_parallel_workers": "16",
        "max_parallel_workers_per_gather": "4",
        "max_wal_size": "4GB",
        "max_worker_processes": "16",
        "min_wal_size": "1GB",
        "random_page_cost": "1.1",
        "shared_buffers": "1GB",
        "wal_buffers": "16MB",
        "wal_compression": "on",
        "work_mem": "4MB",
    }


def test_corrections():
    sized = values(sizing.postgres("64GB", 4, "nvme", 100, "oltp", 15))
    assert sized["max_worker_processes"] == "8"  # pgtune says 4, below the server's default
    assert sized["wal_compression"] == "on"  # lz4 only where it is built in
    assert sized["huge_pages"] == "try"
    assert (sized["maintenance_work_mem"], sized["autovacuum_work_mem"]) == ("2GB", "1GB")
    debian = values(
        sizing.postgres("64GB", 4, "nvme", 100, "oltp", 15, wal_compression=("pglz", "on", "lz4"))
    )
    assert debian["wal_compression"] == "lz4"
    assert values(sizing.postgres("64GB", 4, version=15, huge_pages_managed=True))["huge_pages"] == "on"


def test_io_uring_only_where_the_build_has_it():
    assert values(sizing.postgres("8GB", 32, version=18))["io_method"] == "worker"
    assert values(sizing.postgres("8GB", 32, version=18))["io_workers"] == "8"
    offered = values(sizing.postgres("8GB", 32, version=18, io_methods=("sync", "worker", "io_uring")))
    assert offered["io_method"] == "io_uring" and "io_workers" not in offered


def test_no_desktop_wal_level_on_a_server():
    assert "wal_level" in sizing.postgres("8GB", 4, workload="desktop", corrected=False)
    assert not {"wal_level", "max_wal_senders"} & set(sizing.postgres("8GB", 4, workload="desktop"))


@pytest.mark.parametrize(
    ("disk", "low", "high"), [("1TB", "2GB", "8GB"), ("8GB", "512MB", "2GB"), ("100MB", "32MB", "64MB")]
)
def test_wal_stays_within_a_quarter_of_its_disk(disk, low, high):
    sized = values(sizing.postgres("8GB", 4, wal_disk_bytes=disk))
    assert (sized["min_wal_size"], sized["max_wal_size"]) == (low, high)


def test_sizes_are_as_the_server_prints_them():
    """shared_buffers, effective_cache_size and wal_buffers are kept in blocks of 8 kB."""
    sized = values(sizing.postgres(832 * MIB, 2, connections=100))
    for name in ("shared_buffers", "effective_cache_size", "wal_buffers"):
        assert in_bytes(sized[name]) % 8192 == 0


def test_asked_shared_buffers():
    assert values(sizing.postgres("8GB", 4, connections=100, shared_buffers="2GB"))["shared_buffers"] == "2GB"
    with pytest.raises(Refusal) as caught:
        sizing.postgres("1GB", 2, connections=100, shared_buffers="2GB")
    text = str(caught.value)
    assert text.startswith("no memory for the asked shared_buffers: asked 2 GiB, available 692.7 MiB")
    assert "100 connections" in text and "Ask for at most 692MB" in text
    assert values(sizing.postgres("1GB", 2, connections=100, shared_buffers="692MB"))
    with pytest.raises(Refusal, match="forget the unit"):
        sizing.postgres("8GB", 2, shared_buffers=2048)


def test_a_container_of_1536_mib():
    budget = sizing.memory_budget(1536 * MIB)
    parts = {name: entry["bytes"] // MIB for name, entry in budget.items()}
    assert parts == {"total": 1536, "system": 256, "orchestrator": 256, "redis": 192, "postgres": 832}
    sized = values(sizing.postgres(budget["postgres"]["bytes"], 2, "virtio", 100))
    assert (sized["shared_buffers"], sized["work_mem"]) == ("208MB", "4MB")
    assert int(values(sizing.redis(budget["redis"]["bytes"]))["maxmemory"]) < 96 * MIB


@given(st.integers(900 * MIB, 4 << 40))
def test_a_budget_adds_up(total):
    budget = sizing.memory_budget(total)
    parts = [budget[name]["bytes"] for name in ("system", "orchestrator", "redis", "postgres")]
    assert sum(parts) == budget["total"]["bytes"] <= total
    assert min(parts) > 0
    assert total - budget["total"]["bytes"] <= total / 32


@given(st.integers(1 * GIB, 1 << 40), st.integers(1, 256), st.integers(20, 1000))
def test_postgres_fits_its_memory(memory, cpus, connections):
    sized = values(sizing.postgres(memory, cpus, connections=connections))
    assert in_bytes(sized["shared_buffers"]) + in_bytes(sized["maintenance_work_mem"]) < memory / 2
    assert int(sized["max_worker_processes"]) >= 8 if "max_worker_processes" in sized else cpus < 4


def test_noise_in_memtotal_changes_nothing():
    for total in (1536 * MIB + 5000, 67_300_000_000, 270_000_000_000):
        assert (
            sizing.memory_budget(total)["postgres"]
            == sizing.memory_budget(total - 3 * MIB // 1024)["postgres"]
        )


def test_the_least_limit_counts():
    assert sizing.memory_budget("64GB", host_memory_limit="16GB")["total"]["value"] == "16 GiB"
    assert sizing.memory_budget("64GB", host_memory_limit="128GB")["total"]["value"] == "64 GiB"
    assert sizing.memory_budget("64GB", redis=0, orchestrator="25%")["redis"]["bytes"] == 0


def test_a_host_too_small_says_so_with_the_arithmetic():
    with pytest.raises(
        Refusal, match=r"512 MiB - system 256 MiB - orchestrator 256 MiB - redis 64 MiB leaves"
    ):
        sizing.memory_budget("512MB")
    with pytest.raises(Refusal, match="no memory for PostgreSQL"):
        sizing.postgres("1GB", 2, reserved_bytes="1GB")


@pytest.mark.parametrize(("persistence", "share_of"), [("aof", 1 / 2.2), ("rdb", 1 / 2.2), ("none", 3 / 4)])
def test_redis_leaves_room_for_what_it_does(persistence, share_of):
    size = int(values(sizing.redis("1GB", persistence=persistence))["maxmemory"])
    assert share_of * GIB * 0.96 <= size <= share_of * GIB


def test_redis():
    assert values(sizing.redis("1GB", role="cache"))["maxmemory-policy"] == "allkeys-lfu"
    assert "maxmemory-clients" not in sizing.redis("1GB", version=(6, 2))
    assert values(sizing.redis("1GB", maxmemory="256mb"))["maxmemory"] == str(256 * MIB)
    with pytest.raises(Refusal, match=r"asked 900 MiB, available 465\.5 MiB"):
        sizing.redis("1GB", maxmemory="900mb")
    for wrong in ({"persistence": "yes"}, {"role": "both"}):
        with pytest.raises(Refusal, match="Use "):
            sizing.redis("1GB", **wrong)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 * MIB), ("2GiB", 2 * GIB), ("64kb", 65536), (7, 7), ("1.5g", GIB * 3 // 2)],
)
def test_parse_size(text, size):
    assert sizing.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "12.5%", True, "1PB"])
def test_parse_size_refuses(text):
    with pytest.raises(Refusal, match="is no size"):
        sizing.parse_size(text)


@pytest.mark.parametrize(
    "wrong", [{"workload": "fast"}, {"disk_class": "tape"}, {"version": 9}, {"cpus": 0}, {"db_size": "big"}]
)
def test_wrong_inputs_are_refused(wrong):
    with pytest.raises(Refusal, match="postgres sizing"):
        sizing.postgres(**{"total_bytes": "8GB", "cpus": 4, **wrong})


@pytest.mark.parametrize(
    ("buffers", "connections", "pages"),
    [
        ("512MB", 100, 280),
        ("512MB", 500, 297),
        ("2GB", 500, 1088),
        ("32GB", 500, 16809),
        ("128GB", 500, 66986),
    ],
)
def test_huge_pages_are_never_below_the_measured(buffers, connections, pages):
    assert pages <= sizing.huge_pages(buffers, connections) <= pages * 1.05 + 20


def test_connection_budget():
    assert sizing.connection_budget({"pool": 50, "exporter": 2}, 100)["usable"] == 97
    with pytest.raises(Refusal, match="pool 96 \\+ exporter 2 = 98, of 100 - 3 reserved = 97"):
        sizing.connection_budget({"pool": 96, "exporter": 2}, 100)


def test_the_guides_work_mem_does_not_fit_its_host():
    """64 MB for 100 connections on 8 GB: what the arithmetic is for."""
    need = sizing.postgres_memory_need("2GB", 100, "64MB", "512MB", "512MB")
    assert need["bytes"] > 8 * GIB
    assert "100 connections" in need["formula"]
