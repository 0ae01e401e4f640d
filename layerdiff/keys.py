"""The names under which people speak of the results of layers and operators, in `pairs=` and in the file it reads.

``layer1.0.conv`` is what a layer returns, ``(root)`` what the model itself does; ``act#1`` is the second call of a
layer, ``lstm[1]`` the second tensor of a tuple; ``block:aten.add.Tensor`` is an operator in a layer's own forward, and
``block:aten.add.Tensor#1`` the second of that kind there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerdiff.model import Call, Reference

ROOT = "(root)"


def call_key(call: Call, position: int = 0) -> str:
    """The name of one tensor that a call of a layer returns."""
    number = f"#{call.call}" if call.call else ""
    return f"{call.layer or ROOT}{number}" + (f"[{position}]" if position else "")


def site_keys(reference: Reference) -> dict[int, str]:
    """The name of every operator, by site index."""
    seen: dict[str, int] = {}
    found = {}
    for site in reference.sites:
        name = f"{call_key(reference.calls[site.owner])}:{site.op}"
        number = seen.get(name, 0)
        seen[name] = number + 1
        found[site.index] = f"{name}#{number}" if number else name
    return found


def values_by_key(reference: Reference) -> dict[str, int]:
    """The value behind every name."""
    found = {key: reference.sites[site].outputs[0] for site, key in site_keys(reference).items()}
    for call in reference.calls:
        found |= {call_key(call, position): value for position, value in enumerate(call.outputs)}
    return found
