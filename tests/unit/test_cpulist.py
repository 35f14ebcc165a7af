"""CPU lists and masks: the kernel's own forms, there and back."""

import pytest
from hosttune import cpulist
from hypothesis import given
from hypothesis import strategies as st

cpu_sets = st.sets(st.integers(0, 1500), max_size=80)


@given(cpu_sets)
def test_list_and_mask_round_trip(cpus):
    assert cpulist.parse(cpulist.format(cpus)) == cpus
    assert cpulist.from_mask(cpulist.to_hex_mask(cpus)) == cpus
    assert cpulist.from_mask(cpulist.to_hex_mask(cpus, width=2048)) == cpus


@given(cpu_sets)
def test_lists_are_the_shortest(cpus):
    text = cpulist.format(cpus)
    starts = [cpu for cpu in cpus if cpu - 1 not in cpus]
    assert len([part for part in text.split(",") if part]) == len(starts)


@given(cpu_sets, st.integers(0, 2048))
def test_masks_are_the_number_in_words_of_32_bits(cpus, width):
    """The mask without its commas is the plain hex number; each word but the first has 8 digits."""
    mask = cpulist.to_hex_mask(cpus, width)
    first, *words = mask.split(",")
    assert int(mask.replace(",", ""), 16) == sum(1 << cpu for cpu in cpus)
    assert 1 <= len(first) <= 8
    assert all(len(word) == 8 for word in words)
    assert len(mask.replace(",", "")) >= -(-width // 4)


@pytest.mark.parametrize("count", [31, 32, 33, 63, 64, 65, 127, 128, 1023, 1024, 1025, 2048, 8192])
def test_masks_at_the_edges_of_words(count):
    everything = cpulist.to_hex_mask(range(count))
    assert everything.count("f") + len(everything.strip("f,")) == -(-count // 4)
    assert everything.count(",") == (count - 1) // 32
    assert cpulist.from_mask(everything) == set(range(count))
    assert cpulist.to_hex_mask({count - 1}) == f"{1 << (count - 1) % 32:x}" + ",00000000" * (
        (count - 1) // 32
    )


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", set()),
        ("0", {0}),
        ("0-3,8\n", {0, 1, 2, 3, 8}),
        ("0-6:2/3", {0, 1, 3, 4, 6}),
        ("1,1,0-1", {0, 1}),
    ],
)
def test_parse(text, cpus):
    assert cpulist.parse(text) == cpus


@pytest.mark.parametrize(
    "text", ["a", "3-1", "1,,2", "-1", "0-", "1_0", "+1", "0-3:2", "0-3:0/2", "99999999", "²"]
)
def test_parse_refuses(text):
    with pytest.raises(ValueError, match="no CPU list"):
        cpulist.parse(text)


@pytest.mark.parametrize(
    ("cpus", "mask"),
    [
        (set(), "0"),
        ({0, 1, 2, 3}, "f"),
        ({31}, "80000000"),
        ({32}, "1,00000000"),
        ({0, 64}, "1,00000000,00000001"),
        ({1024}, "1" + ",00000000" * 32),
    ],
)
def test_masks_are_grouped_as_the_kernel_groups_them(cpus, mask):
    assert cpulist.to_hex_mask(cpus) == mask
    assert cpulist.from_mask(mask) == cpus


def test_mask_width_pads_as_the_kernel_does():
    assert cpulist.to_hex_mask({0}, width=40) == "00,00000001"
    assert cpulist.to_hex_mask({0}, width=64) == "00000000,00000001"
    assert cpulist.from_mask("0xFF") == set(range(8))


@pytest.mark.parametrize("mask", ["", "g", "1,2", "1,,00000000", "1_0", "0x"])
def test_from_mask_refuses(mask):
    with pytest.raises(ValueError, match="no CPU mask"):
        cpulist.from_mask(mask)
