"""The copy of a model that a fault is planted in."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.faults.survey import within

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from benchmarks.faults.survey import Call, Survey

BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d)
CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
FOLDABLE = (*CONVOLUTION, nn.Linear)


@dataclass(frozen=True)
class Workpiece:
    """A deep copy that may be changed, and the survey of the healthy original."""

    model: nn.Module
    survey: Survey

    def module(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)

    def modules(self, *kinds: type[nn.Module]) -> list[str]:
        """The paths of the modules of these kinds that ran, each instance once."""
        paths = {self.survey.canonical[path]: path for path in reversed(self.survey.paths())}
        return sorted(path for path in paths.values() if not kinds or isinstance(self.module(path), kinds))

    def occurrences(self, *kinds: type[nn.Module]) -> list[str]:
        """The paths of the modules of these kinds that ran, a shared instance under each of its paths."""
        return [path for path in self.survey.paths() if isinstance(self.module(path), kinds)]

    def replace(self, path: str, module: nn.Module) -> None:
        """Another module under this path; the instance stays under its other paths."""
        parent, _, name = path.rpartition(".")
        setattr(self.module(parent), name, module.eval())

    def rewrite(self, path: str, name: str, value: Tensor) -> None:
        """Another parameter or buffer for this module alone: a tied weight stays as it was elsewhere."""
        module = self.module(path)
        if name in dict(module.named_buffers(recurse=False)):
            setattr(module, name, value)
        else:
            setattr(module, name, nn.Parameter(value, requires_grad=False))

    def override(self, path: str, method: str, body: Callable[..., Any]) -> None:
        """On this instance, `body(original, *args)` instead of the method."""
        module = self.module(path)
        original = getattr(module, method)

        def replaced(_self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return body(original, *args, **kwargs)

        setattr(module, method, types.MethodType(replaced, module))

    def fold_partners(self, path: str) -> tuple[str, ...]:
        """What a convolution and its BatchNorm become one with when they are folded."""
        partner = self._norm_behind(path)
        if isinstance(self.module(path), BATCHNORM):
            before = [call.path for call in self.survey.producers(path)]
            partner = next((name for name in before if self._norm_behind(name) == path), None)
        return () if partner is None else (partner, parent_of(path))

    def _norm_behind(self, path: str) -> str | None:
        """The BatchNorm that alone reads what this convolution gives."""
        if not isinstance(self.module(path), FOLDABLE):
            return None
        readers = self.survey.consumers(path)
        if len(readers) != 1 or not isinstance(self.module(readers[0].path), BATCHNORM):
            return None
        norm = readers[0].path
        return norm if path in self.survey.sources(norm) else None

    def readers(self, path: str, seam: str = "") -> tuple[str, ...]:
        """The modules whose own input is what this one gives, and the parent for what its forward does with it."""
        return _names(self.survey.consumers(path, seam), path)

    def writers(self, path: str, seam: str = "") -> tuple[str, ...]:
        """The modules that this one gets its input from, and the parent."""
        return _names(self.survey.producers(path, seam), path)

    def beside_input(self, path: str) -> tuple[str, ...]:
        """Whose an operator on the edge into this module may be as well, its parent among them.

        In the file it stands between the operator that makes the value and the layer's own. If nobody else reads the
        value, then "after the one" and "before the other" are the same place: the same fault planted behind the
        maker's output gives the same file. If somebody does, he gets the value as it should be, and the maker is not
        to blame.
        """
        if len(self.survey.of(path)) > 1:
            return self.writers(path)
        return tuple(dict.fromkeys([*self._folded(self.survey.sources(path)), parent_of(path)]))

    def beside_operand(self, path: str, seam: str, operand: int) -> tuple[str, ...]:
        """Which of the module's children an operator on the edge into this seam may be of as well.

        As with `beside_input`; and a factor there is folded into the child's weights as soon as somebody optimises.
        """
        children = [name for name in self.survey.sources(path, seam, operand) if name != path and within(path, name)]
        return self._folded(children)

    def _folded(self, paths: list[str]) -> tuple[str, ...]:
        """These modules, each with what it is folded with: the two have one output in the file."""
        return tuple(dict.fromkeys(name for path in paths for name in (path, *self.fold_partners(path))))


def parent_of(path: str) -> str:
    return path.rpartition(".")[0]


def generator(rng: random.Random) -> torch.Generator:
    """A torch generator that depends on the state of `rng`."""
    return torch.Generator().manual_seed(rng.getrandbits(31))


def noise_like(value: Tensor, rng: random.Random) -> Tensor:
    return torch.randn(value.shape, generator=generator(rng))


def _names(calls: list[Call], path: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*(call.path for call in calls), parent_of(path)]))
