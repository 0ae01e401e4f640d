"""Convolutions in tiles: torch's plain kernels write out the whole input of every output position first.

That copy is as many times larger than the input as the kernel has positions (and twice that in float64): 2.4 GB for 128
channels at 512 x 512. Some rows of the result at a time need some rows of it only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

MOST = 64 << 20
"""Bytes that a kernel may write out."""


def convolution(func: Any, args: Sequence[Any]) -> Tensor | None:
    """The result of ``aten.convolution``, computed in tiles; None for any other operator, and where one tile is enough.

    `args` are input, weight, bias, stride, padding, dilation, transposed, output_padding, groups.
    """
    if func is not torch.ops.aten.convolution.default or len(args) != 9 or args[0].dim() != 4 or args[6]:
        return None
    x, weight, bias, stride, padding, dilation, _, _, groups = args
    kernel = weight.shape[2:]
    if math.prod(kernel) == 1 or x.device.type != "cpu":
        return None
    height, width = (
        (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, pad, step, taps, jump in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    )
    row_bytes = x.shape[1] // groups * math.prod(kernel) * width * x.element_size()
    rows = max(1, MOST // max(1, row_bytes))
    if height < 1 or width < 1 or rows >= height * x.shape[0]:
        return None
    result: Tensor = x.new_empty((x.shape[0], weight.shape[0], height, width))
    geometry = (kernel[0], stride[0], padding[0], dilation[0])
    rest = (weight, bias, stride, [0, padding[1]], *args[5:])
    for sample in range(x.shape[0]):
        for begin, end, piece in _pieces(x[sample : sample + 1], geometry, height, rows):
            result[sample : sample + 1, :, begin:end] = func(piece, *rest)
    return result


def _pieces(
    x: Tensor, geometry: tuple[int, int, int, int], height: int, rows: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Rows of the result from where to where, and the rows of the input that they are computed from."""
    taps, jump, pad, step = geometry
    for begin in range(0, height, rows):
        end = min(begin + rows, height)
        first, last = begin * jump - pad, (end - 1) * jump - pad + step * (taps - 1) + 1
        piece = x[:, :, max(first, 0) : min(last, x.shape[2])]
        yield begin, end, functional.pad(piece, (0, 0, max(-first, 0), max(last - x.shape[2], 0)))
