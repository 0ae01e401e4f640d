"""How the channels of two tensors are related at the same places: an order, a factor and an offset for each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

EXACT = 1e-5
"""A residual of this share of the range is rounding: float32 leaves about 1e-7 of it, behind a mean and a std 1e-6."""


@dataclass(frozen=True, slots=True)
class Relation:
    """``expected[k] = gain[k] * actual[order[k]] + bias[k]``, by least squares.

    `score` is the smallest correlation of the channels, `left` the largest residual as a share of the range.
    """

    order: tuple[int, ...]
    gain: Array
    bias: Array
    score: float
    left: float

    @property
    def exact(self) -> bool:
        """Whether it holds to rounding."""
        return self.left <= EXACT

    def predicted(self, actual: Array) -> Array:
        """What it makes of channels (C, …)."""
        shape = (-1,) + (1,) * (actual.ndim - 1)
        found: Array = actual[list(self.order)] * self.gain.reshape(shape) + self.bias.reshape(shape)
        return found


def related(expected: Array, actual: Array) -> Relation:
    """The relation of two sets of channels, (C, S) and (D, S), over S places; both in float64."""
    table = _correlations(expected, actual)
    orders = list(_orders(len(expected), len(actual)))
    worst = [1 - min(abs(table[k, j]) for k, j in enumerate(order)) for order in orders]
    best = min(worst)
    # Of orders that are as good the first wins: in a grey image every order is right.
    chosen = next(order for order, bad in zip(orders, worst, strict=True) if bad <= 2 * best + 1e-9)
    return fitted(expected, actual, chosen)


def fitted(expected: Array, actual: Array, order: tuple[int, ...]) -> Relation:
    """The relation with the channels in a given order."""
    picked = actual[list(order)]
    e_mean, a_mean = expected.mean(axis=1), picked.mean(axis=1)
    e_off, a_off = expected - e_mean[:, None], picked - a_mean[:, None]
    power = (a_off * a_off).sum(axis=1)
    flat = power <= 1e-18 * np.maximum((picked * picked).sum(axis=1), 1e-300)
    gain = np.where(flat, np.nan, (e_off * a_off).sum(axis=1) / np.where(flat, 1.0, power))
    known = gain[np.isfinite(gain)]
    gain = np.where(flat, known.mean() if known.size else _of_constants(e_mean, a_mean), gain)
    bias = e_mean - gain * a_mean
    if not known.size:  # nothing but constants: they tell no offset
        bias = np.zeros(len(gain))
    if flat.any():  # a constant channel tells one number only: no offset where none is needed
        simple = np.abs(bias) <= EXACT * np.maximum(np.abs(e_mean), np.abs(gain * a_mean))
        bias = np.where(flat & simple, 0.0, bias)
    residual = np.abs(expected - (picked * gain[:, None] + bias[:, None])).max(axis=1)
    span = max(float(np.ptp(expected, axis=1).max()), 1e-6 * float(np.abs(expected).max()), 1e-30)
    power_e = (e_off * e_off).sum(axis=1)
    bottom = np.sqrt(power * power_e)
    e_flat = power_e <= 1e-18 * np.maximum((expected * expected).sum(axis=1), 1e-300)
    scores = np.where(e_flat & flat, 1.0, np.abs((e_off * a_off).sum(axis=1)) / np.where(bottom > 0, bottom, np.inf))
    # A factor of zero would make any picture a constant one: that is no relation.
    left = float("inf") if np.any(e_flat & ~flat) else float(residual.max()) / span
    return Relation(tuple(order), gain, bias, float(scores.min()), left)


def _of_constants(expected: Array, actual: Array) -> float:
    """The factor between constant channels, where it is one that people forget; 1 for all others."""
    size = np.maximum(np.abs(expected), 1e-30)
    return next((f for f in (1.0, 255.0, 1 / 255) if np.all(np.abs(expected - f * actual) <= EXACT * size)), 1.0)


def _correlations(expected: Array, actual: Array) -> Array:
    """The correlation of every channel with every channel; 1 for two constant ones, 0 for one."""
    e = expected - expected.mean(axis=1, keepdims=True)
    a = actual - actual.mean(axis=1, keepdims=True)
    e_norm, a_norm = np.sqrt((e * e).sum(axis=1)), np.sqrt((a * a).sum(axis=1))
    e_flat = e_norm <= 1e-9 * np.maximum(np.abs(expected).max(axis=1), 1e-30)
    a_flat = a_norm <= 1e-9 * np.maximum(np.abs(actual).max(axis=1), 1e-30)
    bottom = np.outer(np.where(e_flat, 1.0, e_norm), np.where(a_flat, 1.0, a_norm))
    table: Array = (e @ a.T) / bottom
    table[e_flat[:, None] & a_flat[None, :]] = 1.0
    table[e_flat[:, None] ^ a_flat[None, :]] = 0.0
    return table


def _orders(expected: int, actual: int) -> list[tuple[int, ...]]:
    """Which channel of the actual input each of the expected can be, likeliest first."""
    if actual == 1:
        return [(0,) * expected]
    if max(expected, actual) > 4:
        return [tuple(range(expected))] if expected == actual else [tuple(min(i, actual - 1) for i in range(expected))]
    if expected > actual:
        return [tuple(min(i, actual - 1) for i in range(expected))]
    straight = tuple(range(expected))
    back = straight[:3][::-1] + straight[3:]
    first = [straight, back] if expected > 1 else [straight]
    return first + [order for order in permutations(range(actual), expected) if order not in first]
