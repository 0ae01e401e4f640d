"""One factor for all channels, hidden where they changed places before a mean and a std that both sides share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerdiff.preprocessing.normalisation import SAME, known

if TYPE_CHECKING:
    from layerdiff.preprocessing.colour import Relation


def before_a_known_norm(relation: Relation, size: float) -> float | None:
    """A factor, where channels changed places before one known norm that both sides share by position; None else.

    With ``e = (p x - m) / s`` and ``a = (q x' - m) / s`` of other channels x' the gain is ``p / q * s' / s``, and over
    an order that uses every channel once the product of the gains is ``(p / q) ** channels``.
    """
    order, count = list(relation.order), len(relation.order)
    if sorted(order) != list(range(count)) or order == sorted(order) or (relation.gain <= 0).any():
        return None
    factor = float(np.exp(np.log(relation.gain).mean()))
    for norm in dict.fromkeys(setting.norm for setting in known(count)):
        scale, offset = norm.affine(count)
        gain = factor * scale / scale[order]
        bias = offset - gain * offset[order]
        if np.all(np.abs(gain / relation.gain - 1) <= SAME) and np.all(np.abs(bias - relation.bias) <= 2 * SAME * size):
            return factor
    return None


def behind_an_order(relation: Relation) -> float | None:
    """The factor, where channels were exchanged before one norm that both sides share by position; None else.

    A channel that stayed shows the factor itself; of two that were exchanged the product shows its square.
    """
    order, gain = relation.order, relation.gain
    stayed = [k for k, j in enumerate(order) if k == j]
    moved = [k for k, j in enumerate(order) if k != j]
    if len(stayed) != 1 or len(moved) != 2 or (gain <= 0).any():
        return None
    factor = float(gain[stayed[0]])
    return factor if abs(gain[moved[0]] * gain[moved[1]] / factor**2 - 1) <= 3e-4 else None
