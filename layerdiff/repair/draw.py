"""Further samples like the one that was given: other numbers, other sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx

    from layerdiff.samples import Sample

    Array = np.ndarray[Any, Any]
    Axes = Sequence[tuple[int, int]]

_SEED = 20260


def redrawn(sample: Sample) -> Iterator[Sample]:
    """Samples of the same shapes with other numbers, the most different one first.

    Floats are drawn anew in the range of the real ones; integers, booleans and floats of few different values (masks)
    are permuted along their last axis, so that no value appears that the model was not given.
    """
    yield _mapped(sample, _new_numbers)
    yield _mapped(sample, lambda tensor, rng: _new_numbers(tensor, rng) if tensor.is_floating_point() else tensor)


def cut_short(sample: Sample) -> Sample | None:
    """The sample with the last third of each mask that is nothing but ones taken out; None where there is none.

    A mask that leaves all in shows nothing of what the model does with it.
    """
    if not any(_leaves_all_in(tensor) for tensor in _tensors(sample)):
        return None

    def cut(tensor: torch.Tensor, _: np.random.Generator) -> torch.Tensor:
        found = tensor.clone()
        if _leaves_all_in(tensor):
            found[..., found.shape[-1] - found.shape[-1] // 3 :] = 0
        return found

    return _mapped(sample, cut)


def _leaves_all_in(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.ndim > 0 and tensor.shape[-1] > 2 and bool((tensor == 1).all())


def resized(sample: Sample, axes: Mapping[int, Sequence[int]], size: int) -> Sample:
    """The sample with some axes (by position of the tensor) at another size, filled with redrawn numbers."""
    position = iter(range(1_000_000))

    def grown(tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        for axis in axes.get(next(position), ()):
            tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
        return _new_numbers(tensor, rng) if tensor.is_floating_point() else tensor

    return _mapped(sample, grown)


def other_sizes(size: int, axis: int) -> tuple[int, ...]:
    """Sizes worth trying in place of one: any batch will do, while the sizes of images come in multiples."""
    if axis == 0:
        return (size + 1, size + 2)
    return (2 * size, size + 32, size // 2, size + 1, max(1, size - 1))


def dynamic_axes(model: onnx.ModelProto, sample: Sample, feeds: Mapping[str, Array]) -> list[dict[int, list[int]]]:
    """The dimensions that a file leaves open, each as the axes of the sample's tensors (by position) that have it.

    Axes of one symbolic name change together.
    """
    tensors = _tensors(sample)
    groups: dict[str, dict[int, list[int]]] = {}
    taken: set[int] = set()
    for port in model.graph.input:
        fed = feeds.get(port.name)
        if fed is None:
            continue
        at = next((i for i, t in enumerate(tensors) if i not in taken and _equal(t, fed)), None)
        if at is None:
            continue
        taken.add(at)
        for axis, dim in enumerate(port.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                name = dim.dim_param or f"{port.name}:{axis}"
                groups.setdefault(name, {}).setdefault(at, []).append(axis)
    return list(groups.values())


def size_of(sample: Sample, axes: Mapping[int, Sequence[int]]) -> int:
    """The size of a group of axes."""
    at, own = next(iter(axes.items()))
    return int(_tensors(sample)[at].shape[own[0]])


def _tensors(sample: Sample) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, found.append, (sample.args, dict(sample.kwargs)))
    return found


def _equal(tensor: torch.Tensor, fed: Array) -> bool:
    if tuple(tensor.shape) != fed.shape:
        return False
    return bool(np.array_equal(tensor.detach().cpu().to(torch.float64).numpy(), fed.astype(np.float64), equal_nan=True))


def _mapped(sample: Sample, change: Callable[[torch.Tensor, np.random.Generator], torch.Tensor]) -> Sample:
    rng = np.random.default_rng(_SEED)
    args, kwargs = tree_map_only(torch.Tensor, lambda t: change(t.detach(), rng), (sample.args, dict(sample.kwargs)))
    return replace(sample, args=args, kwargs=kwargs)


def _new_numbers(tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    if tensor.numel() == 0 or tensor.ndim == 0 or tensor.is_complex():
        return tensor.clone()
    few = tensor.numel() > 8 and len(torch.unique(tensor)) ** 2 <= tensor.numel()
    if not tensor.is_floating_point() or few:
        order = torch.from_numpy(rng.permutation(tensor.shape[-1]))
        return tensor.index_select(-1, order.to(tensor.device))
    finite = tensor[torch.isfinite(tensor)].to(torch.float64)
    if finite.numel() == 0:
        return tensor.clone()
    low, high = float(finite.min()), float(finite.max())
    spread = float(finite.std()) if finite.numel() > 1 else 0.0
    drawn = np.clip(rng.normal(float(finite.mean()), spread or 1.0, tuple(tensor.shape)), low, high)
    fresh = torch.from_numpy(np.asarray(drawn)).to(tensor)
    return torch.where(torch.isfinite(tensor), fresh, tensor)
