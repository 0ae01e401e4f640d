"""Tone curves, mixed channels and jitter: colours that augmentation or another colour space changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.casts import lattice
from layerdiff.preprocessing.chains import Chain, applied, geometric_steps
from layerdiff.preprocessing.steps import Step, lost, reordered

if TYPE_CHECKING:
    from layerdiff.preprocessing.planes import Axes
    from layerdiff.preprocessing.views import Placed

Array = np.ndarray[Any, Any]

_VALUES = 256
_LOOKED_AT = 20_000
_SAME = 2e-5  # of the range: values that belong to one level


def toned(nearest: Placed, expected: Array, actual: Array, limit: float) -> Chain | None:
    """A chain with a tone curve or a mix of channels; None where neither explains the difference."""
    around = geometric_steps(nearest)
    if around is None:
        return None
    for step in (_curve(nearest), *_mixes(nearest)):
        if step is not None:
            order = reordered(nearest.relation.order, nearest.view.axes, nearest.view.actual.shape[1])
            first = (order,) if order is not None and step.parameters["how"] == "tone-curve" else ()
            chain = applied((*around[0], *first, step, *around[1]), expected, actual)
            if chain.residual <= limit:
                return chain
    return _jitter(nearest, expected, actual)


def _curve(nearest: Placed) -> Step | None:
    """A table of values for each channel: a gamma, a contrast curve, an equalised histogram."""
    e = nearest.boxes[0].of(nearest.view.expected)
    a = nearest.boxes[1].of(nearest.turned)
    tables = []
    for k, j in enumerate(nearest.relation.order):
        table = _table(e[:, k].ravel(), a[:, j].ravel())
        if table is None:
            return None
        tables.append(table)
    axes = nearest.view.axes
    axis = axes.at("C")

    def apply(x: Array) -> Array:
        if not axis:
            return np.interp(x, *tables[0])
        parts = [np.interp(np.take(x, k, axis=axis), *table) for k, table in enumerate(tables)]
        return np.stack(parts, axis=axis)

    gamma = _gamma(tables)
    parameters: dict[str, Any] = {"how": "tone-curve"} | ({"gamma": gamma} if gamma is not None else {})
    text = "a tone curve was applied" + (f" (gamma {gamma:.4g})" if gamma is not None else "")
    listed = [[[float(f"{v:.8g}") for v in side] for side in table] for table in tables]
    lines = [f"tables = {listed}  # for each channel the candidate's values and what they should be"]
    if axis:
        lines.append(
            f"x = np.stack([np.interp(np.take(x, k, axis={axis}), *t) for k, t in enumerate(tables)], axis={axis})"
        )
    else:
        lines.append("x = np.interp(x, *tables[0])")
    return Step("augmentation", parameters, text, "\n".join(lines), apply)


def _table(expected: Array, actual: Array) -> tuple[Array, Array] | None:
    """The value of `expected` for each value of `actual`; None where it is not one, or there are too many."""
    if np.unique(actual[:: max(1, actual.size // _LOOKED_AT)]).size > _VALUES:
        return None
    values, at = np.unique(actual, return_inverse=True)
    if not 4 <= values.size <= _VALUES or actual.size < 8 * values.size:
        return None
    order = np.argsort(at, kind="stable")
    starts = np.searchsorted(at[order], np.arange(values.size))
    sorted_e = expected[order].astype(np.float64)
    low, high = np.minimum.reduceat(sorted_e, starts), np.maximum.reduceat(sorted_e, starts)
    span = max(float(high.max() - low.min()), 1e-30)
    return (values.astype(np.float64), (low + high) / 2) if np.all(high - low <= _SAME * span) else None


def _gamma(tables: list[tuple[Array, Array]]) -> float | None:
    """The exponent from the candidate's values to the expected ones; None where they are no power of another."""
    x, y = (np.concatenate([table[i] for table in tables]) for i in (0, 1))
    x, y = (v / (255.0 if v.max() > 2 else 1.0) for v in (x, y))
    use = (x > 0.1) & (x < 0.95) & (y > 0.02)
    if use.sum() < 4 or min(x.min(), y.min()) < -1e-6:
        return None
    gamma = np.log(y[use]) / np.log(x[use])
    found = float(np.median(gamma))
    return found if np.all(np.abs(x[use] ** found - y[use]) < 0.012) else None


def _mixes(nearest: Placed) -> list[Step | None]:
    """Every channel as a sum of all of the candidate's: grey, saturation, another colour space."""
    e, a = nearest.samples()
    if len(a) < 2:
        return []
    design = np.vstack([a, np.ones(a.shape[1])])
    if np.linalg.matrix_rank(design) < len(design):
        return []
    solved = np.linalg.lstsq(design.T, e.T, rcond=None)[0].T
    left = np.abs(solved @ design - e).max()
    if left > 1e-5 * max(float(np.ptp(e)), 1e-30):
        return []
    matrix, offset = solved[:, :-1], solved[:, -1]
    return [_mixed(matrix, offset, nearest.view.axes, nearest.view.actual.shape[1])]


def _mixed(matrix: Array, offset: Array, axes: Axes, channels: int) -> Step:
    axis = axes.at("C")
    alike = len(matrix) == 1 or np.allclose(matrix, matrix[:1], atol=1e-6)
    grey = alike and np.isclose(matrix[0].sum(), 1, atol=2e-2) and channels == 3

    def apply(x: Array) -> Array:
        moved = np.moveaxis(x, axis, -1) @ matrix.T + offset
        return np.moveaxis(moved, -1, axis)

    listed = [[float(f"{v:.8g}") for v in row] for row in matrix]
    lines = [
        f"mix, offset = np.array({listed}), np.array({[float(f'{v:.8g}') for v in offset]})",
        f"x = np.moveaxis(np.moveaxis(x, {axis}, -1) @ mix.T + offset, -1, {axis})",
    ]
    parameters = {"how": "grey" if grey else "colour-mix", "matrix": listed, "offset": [float(v) for v in offset]}
    text = "a grey picture is wanted" if grey else "the channels are mixed (saturation, or another colour space)"
    return Step("channel-order" if grey else "augmentation", parameters, text, "\n".join(lines), apply)


def _jitter(nearest: Placed, expected: Array, actual: Array) -> Chain | None:
    """Brightness, contrast and saturation applied to 8-bit pixels: verified from the expected side, to one level."""
    e, a = nearest.samples()
    grid = lattice(a)
    around = geometric_steps(nearest)
    if grid is None or len(a) not in (1, len(e)) or around is None:
        return None
    levels = np.rint(grid.levels(a))
    if _rounded_alike(e, levels):
        return None
    top = levels.max(axis=1, keepdims=True)
    inner = ((levels > 0) & (levels < top)).all(axis=0)  # what was cut off at black or white follows no line
    if inner.sum() < 200:
        return None
    design = np.vstack([e, np.ones(e.shape[1])])
    solved = np.linalg.lstsq(design[:, inner].T, levels[:, inner].T, rcond=None)[0].T
    made = np.clip(np.rint(solved @ design), 0, top)
    off = np.abs(made - levels)
    if not (off.max() <= 1 and (off == 0).mean() > 0.5):
        return None
    matrix = solved[:, :-1]
    weights = matrix.sum(axis=1)
    if len(e) > 1 and np.ptp(matrix, axis=0).max() < 0.01 * np.abs(matrix).max():
        text = "the picture is grey where colours are wanted, which cannot be undone"
        step = lost("channel-order", {"how": "grey", "channels": len(a)}, text)
        chain = applied((*around[0], step, *around[1]), expected, actual)
        return replace(chain, reproduced=float(np.max(off * grid.step[:, None])))
    straight = np.abs(matrix - np.diag(np.diag(matrix))).max() < 0.01 * np.abs(matrix).max()
    how = "brightness-contrast" if straight else "saturation"
    scale = 1.0 / np.median(np.diff(np.unique(e[0]))) if np.unique(e[0]).size <= _VALUES else 1.0
    parameters = {"how": how, "factor": [float(f"{v / max(scale, 1e-30):.4g}") for v in weights]}
    text = f"the colours were changed ({how.replace('-', ' and ')}), as augmentation does it"
    step = lost("augmentation", parameters, f"{text}, and rounded to 8 bits")
    chain = applied((*around[0], step, *around[1]), expected, actual)
    return replace(chain, reproduced=float(np.max(off * grid.step[:, None])))


def _rounded_alike(expected: Array, levels: Array) -> bool:
    """Whether the expected numbers (C, S) lie on whole levels, too, and none is more than one level away from these."""
    grid = lattice(expected)
    if grid is None:
        return False
    off = np.rint(grid.levels(expected)) - levels
    return bool(np.abs(off - np.median(off, axis=1, keepdims=True)).max() <= 1)
