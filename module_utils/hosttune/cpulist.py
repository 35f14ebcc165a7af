"""CPU sets in the two forms the kernel speaks: lists ("0-3,8") and hex masks ("ff,0000000f").

Both are as the kernel's bitmap_parselist() and bitmap_print_to_pagebuf() have them: lists may carry a stride
("0-6:2/3" is the first 2 of every 3), masks are 32-bit words, highest first.
Sets are plain `set[int]`; order never matters and duplicates are harmless.
"""

from __future__ import annotations

from collections.abc import Iterable

#: More than any kernel supports (NR_CPUS is at most 8192): a larger number is a mistake, not a machine.
MAX_CPU = 65535

_WORD_BITS = 32
_WORD_DIGITS = _WORD_BITS // 4


def _number(text: str, whole: str) -> int:
    # int() would also take "+1", "1_0" and blanks, which the kernel refuses
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{whole!r} is no CPU list: {text!r} is no number")
    number = int(text)
    if number > MAX_CPU:
        raise ValueError(f"{whole!r} is no CPU list: {number} is beyond {MAX_CPU}")
    return number


def parse(text: str) -> set[int]:
    """The CPUs of a kernel list; the empty text is the empty set. Raises ValueError for anything else."""
    cpus: set[int] = set()
    text = text.strip()
    if not text:
        return cpus
    for part in text.split(","):
        span, _, stride = part.strip().partition(":")
        low_text, dash, high_text = span.partition("-")
        low = _number(low_text, text)
        high = _number(high_text, text) if dash else low
        if high < low:
            raise ValueError(f"{text!r} is no CPU list: {span!r} runs backwards")
        used, group = 1, 1
        if stride:
            used_text, slash, group_text = stride.partition("/")
            used, group = _number(used_text, text), _number(group_text, text) if slash else 0
            if not 0 < used <= group:
                raise ValueError(f"{text!r} is no CPU list: {stride!r} is no stride such as 2/4")
        cpus.update(cpu for cpu in range(low, high + 1) if (cpu - low) % group < used)
    return cpus


def format(cpus: Iterable[int]) -> str:
    """The shortest kernel list of a set: sorted, neighbours joined ("0-3,8"); empty text for no CPUs."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def to_hex_mask(cpus: Iterable[int], width: int = 0) -> str:
    """The hex mask of a set, as /proc/irq/N/smp_affinity takes it.

    Up to 32 CPUs it is one bare number ("f"), beyond that full 32-bit words joined by commas, highest first
    ("1,00000000"). `width` (a number of CPUs) pads with zeros to what the kernel prints for that many.
    """
    bits = 0
    for cpu in cpus:
        if not 0 <= cpu <= MAX_CPU:
            raise ValueError(f"{cpu} is no CPU number")
        bits |= 1 << cpu
    digits = f"{bits:x}".rjust((width + 3) // 4, "0")
    words = []
    while len(digits) > _WORD_DIGITS:
        digits, word = digits[:-_WORD_DIGITS], digits[-_WORD_DIGITS:]
        words.append(word)
    return ",".join([digits, *reversed(words)])


def from_mask(mask: str) -> set[int]:
    """The CPUs of a hex mask, comma-grouped or not, with or without 0x. Raises ValueError otherwise."""
    words = mask.strip().lower()
    words = words[2:] if words.startswith("0x") else words
    first, *rest = words.split(",")
    if not words or any(len(word) != _WORD_DIGITS for word in rest) or (rest and len(first) > _WORD_DIGITS):
        raise ValueError(f"{mask!r} is no CPU mask")
    digits = first + "".join(rest)
    if not digits or set(digits) - set("0123456789abcdef"):
        raise ValueError(f"{mask!r} is no CPU mask")
    bits = int(digits, 16)
    return {cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1}
