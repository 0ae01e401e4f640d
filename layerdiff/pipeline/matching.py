"""Which box of one side is which box of the other: the best one-to-one assignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import MissingExtraError
from layerdiff.pipeline.boxes import overlaps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from layerdiff.pipeline.found import Detections

# Two boxes that share less are not the same detection: the threshold of PASCAL VOC and of COCO's AP50.
LEAST_IOU = 0.5


def pair_boxes(
    expected: Detections, actual: Detections, least: float = LEAST_IOU
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Pairs (k, 2) of box numbers in the order of `expected`, and their IoU (k,).

    The assignment maximises the sum of what pairs are worth: the fourth power of the IoU, so that one exact pair is
    worth more than two poor ones, halved for another class, with equal scores as the tie-break. It is found with
    scipy's linear_sum_assignment in every group of boxes that overlap.
    """
    first, second, iou = _edges(expected, actual, least)
    if not len(first):
        return np.zeros((0, 2), np.intp), np.zeros(0)
    same = expected.classes[first] == actual.classes[second]
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(np.abs(expected.scores[first] - actual.scores[second]), nan=0.0)
    worth = iou**4 * np.where(same, 1.0, 0.5) + 0.05 * (1 - np.clip(apart, 0, 1))
    chosen = _assigned(first, second, worth, len(expected))
    pairs = np.stack([first[chosen], second[chosen]], 1)
    order = np.argsort(pairs[:, 0], kind="stable")
    return pairs[order], iou[chosen][order]


def _edges(
    expected: Detections, actual: Detections, least: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Every two boxes that may be a pair; rows at a time, so that ten thousand boxes on each side fit in memory."""
    found: list[tuple[Any, Any, Any]] = []
    step = max(1, 4_000_000 // max(1, len(actual)))
    for at in range(0, len(expected), step):
        iou = overlaps(expected.boxes[at : at + step], actual.boxes)
        row, column = np.nonzero(iou >= least)
        found.append((row + at, column, iou[row, column]))
    if not found:
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
    first, second, iou = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, iou


def _assigned(first: NDArray[Any], second: NDArray[Any], worth: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The chosen edges, group by group."""
    try:
        from scipy.optimize import linear_sum_assignment
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    except ImportError as error:
        raise MissingExtraError("comparing detections", "scipy") from error
    size = count + int(second.max()) + 1
    links = coo_array((np.ones(len(first)), (first, second + count)), shape=(size, size))
    group = connected_components(links, directed=False)[1][first]
    chosen: list[int] = []
    order = np.argsort(group, kind="stable")
    for edges in np.split(order, np.nonzero(np.diff(group[order]))[0] + 1):
        if len(edges) == 1:
            chosen.append(int(edges[0]))
            continue
        rows, row = np.unique(first[edges], return_inverse=True)
        columns, column = np.unique(second[edges], return_inverse=True)
        table = np.zeros((len(rows), len(columns)))
        table[row, column] = worth[edges]
        number = np.full(table.shape, -1)
        number[row, column] = edges
        picked = number[linear_sum_assignment(table, maximize=True)]
        chosen.extend(int(edge) for edge in picked if edge >= 0)
    return np.asarray(chosen, np.intp)
