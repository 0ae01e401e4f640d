"""A torch module as the reference."""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from layerdiff.capture import capture
from layerdiff.errors import ReferenceFailedError
from layerdiff.fp32 import narrow_settings
from layerdiff.noise import draws_in, noise_floor
from layerdiff.rerun import begins, is_loose, moved
from layerdiff.samples import named_arguments
from layerdiff.sides.base import Unstable
from layerdiff.tensors import tensors_in, to_array
from layerdiff.untouched import other_seeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from torch import nn

    from layerdiff.fp32 import Setting
    from layerdiff.model import Noise, Reference
    from layerdiff.samples import Sample
    from layerdiff.store import Store

    Array = np.ndarray[Any, Any]

log = logging.getLogger("layerdiff")


# How many times farther than without it a value must be with a setting, to be put down to it.
MORE = 4.0


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

    @property
    def device(self) -> str:
        """The one device that all parameters and buffers are on; else the CPU."""
        devices = {str(tensor.device) for tensor in _state(self._model)}
        return devices.pop() if len(devices) == 1 else "cpu"

    def feeds(self, sample: Sample) -> dict[str, Array]:
        """The tensors of the sample under the names of forward's arguments."""
        given = named_arguments(sample, self._model)
        return {name: array for name, tensor in given.items() if (array := to_array(tensor)) is not None}

    def capture(self, sample: Sample) -> Reference:
        """The dataflow graph of one forward pass."""
        try:
            return capture(self._model, sample.args, sample.kwargs, self._store)
        except ReferenceFailedError as error:
            given = {str(t.device) for t in tensors_in((sample.args, dict(sample.kwargs)))}
            if given <= {self.device}:
                raise
            raise ReferenceFailedError(
                f"{error}; the model is on {self.device} and the inputs are on {', '.join(sorted(given))}: move them "
                f"there with .to({self.device!r}), or give arrays, which are put there"
            ) from error.__cause__

    def unstable(self, sample: Sample, reference: Reference) -> Unstable:
        """What differs in a second run from other seeds; if anything does, also in a third from the first one's.

        Nothing where the third run differs at an operator that is deterministic: the model keeps something from call
        to call.
        """
        with other_seeds():
            found = moved(self._model, sample.args, sample.kwargs, reference)
        if not found:
            return Unstable()
        repeated = moved(self._model, sample.args, sample.kwargs, reference)
        outside = frozenset(i for i in repeated if reference.values[i].site is None)
        kernels = [site for site in begins(reference, repeated) if not draws_in(site)]
        if any(not is_loose(site, self.device) for site in kernels) or (repeated and not kernels and not outside):
            return Unstable()
        return Unstable(found, frozenset(site.index for site in kernels), outside)

    def as_set(self, sample: Sample, reference: Reference) -> Mapping[Setting, Mapping[int, float]]:
        """How far values are from the reference with each setting that lets torch compute float32 in less.

        What is about as far from it in another run without the setting is left out.
        """
        devices = {tensor.device.type for tensor in _state(self._model)} or {"cpu"}
        found = {s: moved(self._model, sample.args, sample.kwargs, reference, (s,)) for s in narrow_settings(devices)}
        if not any(found.values()):
            return {}
        own = moved(self._model, sample.args, sample.kwargs, reference)
        return {s: {i: gap for i, gap in gaps.items() if gap > MORE * own.get(i, 0.0)} for s, gaps in found.items()}

    def noise_floor(self, sample: Sample, reference: Reference) -> dict[int, Noise]:
        """The distance of every value to its float64 shadow."""
        return noise_floor(self._model, sample.args, sample.kwargs, reference)


def _state(model: nn.Module) -> Iterator[torch.Tensor]:
    return chain(model.parameters(), model.buffers())


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
