"""A torch module as the reference."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerdiff.alone import ALONE
from layerdiff.capture import capture
from layerdiff.noise import draws, noise_floor
from layerdiff.samples import named_arguments
from layerdiff.tensors import to_array

if TYPE_CHECKING:
    from torch import nn

    from layerdiff.model import Noise, Reference, Replay
    from layerdiff.samples import Sample
    from layerdiff.store import Store

    Array = np.ndarray[Any, Any]

log = logging.getLogger("layerdiff")


class TorchReference:
    """A module, recorded operator by operator; its float64 twin gives the noise floor."""

    kind = "PyTorch"

    def __init__(
        self, model: nn.Module, label: str, warnings: tuple[str, ...] = (), store: Store | None = None
    ) -> None:
        self._model = model
        self._store = store
        self.label = label
        self.warnings = (*_training_warning(model), *warnings)

    def feeds(self, sample: Sample) -> dict[str, Array]:
        """The tensors of the sample under the names of forward's arguments."""
        given = named_arguments(sample, self._model)
        return {name: array for name, tensor in given.items() if (array := to_array(tensor)) is not None}

    def capture(self, sample: Sample) -> Reference:
        """The dataflow graph of one forward pass."""
        return capture(self._model, sample.args, sample.kwargs, self._store)

    def unstable(self, sample: Sample, reference: Reference) -> frozenset[int]:
        """The values that differ in a second run from another seed; none where no operator draws at random."""
        if not any(site.replay is not None and _draws(site.replay) for site in reference.sites):
            return frozenset()
        with ALONE, torch.random.fork_rng():
            torch.manual_seed(torch.initial_seed() + 1)
            again = self.capture(sample)
        if len(again.values) != len(reference.values):  # which way it went was drawn, too
            return frozenset(value.index for value in reference.values if not value.constant)
        pairs = zip(reference.values, again.values, strict=True)
        return frozenset(a.index for a, b in pairs if a.array is not None and not _equal(a.array, b.array))

    def noise_floor(self, sample: Sample, reference: Reference) -> dict[int, Noise]:
        """The distance of every value to its float64 shadow."""
        return noise_floor(self._model, sample.args, sample.kwargs, reference)


def _draws(replay: Replay) -> bool:
    return hasattr(replay.function, "tags") and draws(replay.function, replay.args, dict(replay.kwargs))


def _equal(array: Array, other: Array | None) -> bool:
    return other is not None and np.array_equal(array, other, equal_nan=array.dtype.kind in "fc")


def _training_warning(model: nn.Module) -> tuple[str, ...]:
    """What train mode does to the layers that behave differently in it."""
    norms = [n for n, m in model.named_modules() if m.training and isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    drops = [n for n, m in model.named_modules() if m.training and isinstance(m, torch.nn.modules.dropout._DropoutNd)]  # noqa: SLF001
    if not norms and not drops:
        return ()
    effects = [f"{len(norms)} BatchNorm layers use the statistics of the batch"] if norms else []
    effects += [f"{len(drops)} Dropout layers drop at random"] if drops else []
    text = f"the reference is in train mode: {' and '.join(effects)}; call model.eval() first unless that is meant"
    log.warning(text)
    return (text,)
