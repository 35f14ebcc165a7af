"""Images: named by what went into them, built once, from the mirrors this machine uses itself."""

import threading

import pytest

from lab import disks, images
from lab.errors import LabError


@pytest.fixture(autouse=True)
def lab_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTTUNE_LAB_DIR", str(tmp_path))
    return tmp_path


def test_mirrors_are_this_machines_own_for_the_images_suite():
    described = (
        "Debian|main|trixie|http://mirror.test/debian/\n"
        "Debian|contrib|trixie|http://mirror.test/debian/\n"
        "Debian|main|trixie-security|http://mirror.test/security/\n"
        "Debian|main|trixie-backports|http://mirror.test/debian/\n"
        "Vendor|main|stable|http://vendor.test/\n"
    )
    assert images.mirrors_from(described) == [
        "deb http://mirror.test/debian/ bookworm main",
        "deb http://mirror.test/security/ bookworm-security main",
    ]
    assert images.mirrors_from("") == []


def test_apt_options_carry_how_the_mirrors_are_reached():
    dump = (
        'APT::Architecture "amd64";\n'
        'Acquire::http::Proxy "http://proxy.test:3142";\n'
        'Acquire::https::CAInfo "";\n'
        'Acquire::Check-Date "false";\n'
        'Acquire::Languages:: "none";\n'
    )
    assert images.apt_options_from(dump) == [
        'Acquire::http::Proxy "http://proxy.test:3142"',
        'Acquire::Check-Date "false"',
    ]


def test_a_key_changes_with_every_ingredient_and_with_nothing_else():
    assert images.key("metal", "a", "b") == images.key("metal", "a", "b")
    names = {images.key("metal", "a", "b"), images.key("metal", "ab"), images.key("metal", "a", "b", "c")}
    assert len(names) == 3
    assert (
        len({images.container_key(), images.baked_key(), disks.metal_key(True), disks.metal_key(False)}) == 4
    )


def test_an_image_is_built_once_by_two_runs_at_once():
    built = []

    def build(folder):
        built.append(folder)
        (folder / "root").mkdir()

    runs = [threading.Thread(target=images.cached, args=("kind-0", 0.0, build)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(built) == 1
    assert (images.cached("kind-0", 0.0, build) / "root").is_dir()


def test_what_a_killed_build_left_is_never_taken_for_an_image(lab_dir):
    left = lab_dir / "images" / "kind-0.building"
    left.mkdir(parents=True)
    (left / "half").touch()
    done = images.cached("kind-0", 0.0, lambda folder: (folder / "root").mkdir())
    assert [path.name for path in done.iterdir()] == ["root"]


def test_no_space_is_one_sentence_before_anything_is_built(lab_dir):
    with pytest.raises(
        LabError, match=r"GiB free and the image needs 1e\+09: make room, or set HOSTTUNE_LAB_DIR"
    ):
        images.cached("kind-0", 1e9, lambda folder: pytest.fail("built"))
    assert not list(lab_dir.glob("images/*.building"))


def test_the_package_list_is_sorted_and_says_no_name_twice():
    lines = images.PACKAGES.read_text().splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))
