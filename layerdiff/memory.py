"""How much memory a trace may take: what the user says, else a share of what is free."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from layerdiff.errors import InputError

SHARE = 0.5
"""Of the memory that is free when a trace begins, where no limit is given."""
LEAST = 64 << 20
"""Below this many bytes there is no room to compare anything."""
_KEPT = 4
"""One part of the limit holds activations; the others are for the runs themselves, and for what is being compared."""
_CONTAINERS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024), ("", 1000))
}


def limit_bytes(memory_limit: int | None) -> int:
    """The limit of a trace in bytes.

    Raises
    ------
    InputError
        A limit that is no number of bytes, or too small to work with.

    """
    if memory_limit is None:
        return int(SHARE * free_bytes())
    if not isinstance(memory_limit, int) or isinstance(memory_limit, bool) or memory_limit < LEAST:
        raise InputError(f"memory_limit: wanted a number of bytes, at least {LEAST:,}, got {memory_limit!r}")
    return memory_limit


def kept_bytes(limit: int) -> int:
    """How much of a limit may hold activations."""
    return limit // _KEPT


def free_bytes() -> int:
    """The memory that this process can still take: what the machine has free, or its container."""
    free = [int(psutil.virtual_memory().available), *(_left(*files) for files in _CONTAINERS)]
    return max(0, min(one for one in free if one is not None))


def _left(limit: str, used: str) -> int | None:
    """What a container has left; None where there is none, or one without a limit (its file says "max")."""
    try:
        return int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def parsed(text: str) -> int:
    """The bytes that a text such as ``2GB``, ``1.5GiB`` or ``500000000`` says.

    Raises
    ------
    InputError
        It says no size.

    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = "" if found is None else found[2].upper().replace("IB", "iB")
    if found is None or unit not in _UNITS:
        raise InputError(f"{text!r}: wanted a size such as 2GB, 1.5GiB or 500000000")
    return int(float(found[1]) * _UNITS[unit])
