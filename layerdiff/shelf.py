"""Arrays by name, each read when it is asked for: kept somewhere, made anew each time, or let go and made again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from layerdiff.store import Resident

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from layerdiff.store import Held

    Array = np.ndarray[Any, Any]

K = TypeVar("K")
T = TypeVar("T")


class Outline(Protocol):
    """What is known of an array without reading it; every array has it as well."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        ...


@dataclass(frozen=True, slots=True)
class _Turned:
    """Another array with its axes permuted."""

    held: Held
    axes: tuple[int, ...]

    @property
    def array(self) -> Array:
        return self.held.array.transpose(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.held.shape[axis] for axis in self.axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.held.dtype


@dataclass(frozen=True, slots=True)
class Remade:
    """An array that was let go; whoever looks at it has it made again."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    again: Callable[[], Mapping[str, Array]]

    @property
    def array(self) -> Array:
        """Its numbers."""
        return self.again()[self.name]


class Shelf(Mapping[K, "Array"]):
    """Arrays by name, each read when it is asked for.

    `notes` are for what was found out of them, as long as they are kept: to read them all again takes long. Each key
    begins with the name of the array.
    """

    def __init__(self, held: Mapping[K, Held]) -> None:
        self._held = dict(held)
        self.notes: dict[tuple[K, Any], Any] = {}

    def __getitem__(self, key: K) -> Array:
        return self._held[key].array

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[K]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def only(self, keys: Iterable[K]) -> Shelf[K]:
        """Some of them, in the order of the keys, with what is noted; those that are not there are left out."""
        found = Shelf({key: self._held[key] for key in keys if key in self._held})
        found.notes = self.notes
        return found

    def held(self, key: K) -> Held | None:
        """Where an array is kept; None for a name that is not there."""
        return self._held.get(key)

    def turned(self, axes: Mapping[K, tuple[int, ...]]) -> Shelf[K]:
        """The same with the axes of some permuted, where they have as many; what is noted of the others holds still."""
        found = Shelf(
            {k: _Turned(h, axes[k]) if len(axes.get(k, ())) == len(h.shape) > 0 else h for k, h in self._held.items()}
        )
        found.notes = {about: note for about, note in self.notes.items() if about[0] not in axes}
        return found

    def beside(self, others: Mapping[K, Array]) -> Shelf[K]:
        """The same and some arrays that are in memory anyway; what is noted of the others holds for them still."""
        fresh = others._held if isinstance(others, Shelf) else {k: Resident(a) for k, a in others.items()}  # noqa: SLF001
        found = Shelf(self._held | fresh)
        found.notes = {about: note for about, note in self.notes.items() if about[0] not in others}
        return found


class Made(Mapping[K, "Array"]):
    """Arrays by name, each made when it is asked for and not kept."""

    def __init__(self, keys: Mapping[K, Any], make: Callable[[K], Array]) -> None:
        self._keys, self._make = keys, make

    def __getitem__(self, key: K) -> Array:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[K]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def outline(arrays: Mapping[K, Array], key: K) -> Outline | None:
    """The shape and type of an array, which costs no reading where it is on a shelf; None where there is none."""
    return arrays.held(key) if isinstance(arrays, Shelf) else arrays.get(key)


def size_of(array: Outline) -> int:
    """How many numbers an array has."""
    return math.prod(array.shape)


def noted(arrays: Mapping[K, Array], key: K, what: str, find: Callable[[Array], T]) -> T:
    """What is found out of one array alone; on a shelf it is noted, and not found out again."""
    if not isinstance(arrays, Shelf):
        return find(arrays[key])
    if (key, what) not in arrays.notes:
        arrays.notes[key, what] = find(arrays[key])
    return arrays.notes[key, what]  # type: ignore[no-any-return]
