"""Memory that nobody has written to: what lies there differs from run to run and is no value of the model."""

from __future__ import annotations

from typing import Any

import torch

from layerdiff.tensors import storage_of


class UnsetMemory:
    """Knows which elements of ``torch.empty`` memory have been written; circular padding fills it part by part."""

    def __init__(self) -> None:
        self._written: dict[int, torch.Tensor] = {}

    def made(self, op: str, tensor: torch.Tensor) -> None:
        """Note an operator's result in memory of its own."""
        storage = storage_of(tensor)
        self._written.pop(storage, None)  # the address may have been another tensor's
        if op.startswith(("aten.empty", "aten.new_empty")) and tensor.layout is torch.strided:
            count = tensor.untyped_storage().nbytes() // tensor.element_size()
            self._written[storage] = torch.zeros(count, dtype=torch.bool)

    def write(self, tensor: torch.Tensor, copied: torch.Tensor | None = None) -> None:
        """Note that an operator has written to a tensor; `copied` is what it copied there, if that is what it did."""
        seen = self._seen_by(tensor)
        if seen is None:
            return
        source = None if copied is None else self._seen_by(copied)
        if source is None:
            seen.fill_(True)  # noqa: FBT003  torch's own argument
        else:
            seen.copy_(source)

    def reaches(self, tensor: torch.Tensor) -> bool:
        """Whether some element of a tensor was never written."""
        seen = self._seen_by(tensor)
        return seen is not None and not bool(seen.all())

    def _seen_by(self, tensor: torch.Tensor) -> Any:
        """What is known of the elements that a tensor sees; None where all of its memory is set."""
        written = self._written.get(storage_of(tensor)) if self._written else None
        if written is None or tensor.untyped_storage().nbytes() // tensor.element_size() != written.numel():
            return None
        return written.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
