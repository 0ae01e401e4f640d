"""The nouns of layerdiff: frozen, framework-free, and all that a report is made of."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (resolved at run time by the archive)
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from layerdiff.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from layerdiff.store import Held


CONTAINER = "a container: only its members run"


class Status(str, Enum):
    """What was found about one call of one layer."""

    AGREES = "agrees"
    DRIFTS = "drifts"
    DIVERGES = "diverges"
    PROPAGATES = "propagates"
    FOLDED = "folded"
    UNMATCHED = "unmatched"
    CONFINED = "confined"

    def __str__(self) -> str:
        return self.value


class Evidence(str, Enum):
    """Why a reference value and an ONNX tensor were paired, strongest first."""

    GIVEN = "given"
    OUTPUT = "output"
    VALUES = "values"
    ISOLATED_VALUES = "isolated-values"
    WEIGHTS = "weights"
    STRUCTURE = "structure"

    def __str__(self) -> str:
        return self.value


class Kind(str, Enum):
    """What kind of origin was found."""

    COMPUTED = "computed"  # the layer is there and computes something else
    DROPPED = "dropped"  # the layer has no counterpart
    DIED = "died"  # the runtime did not survive it
    INSERTED = "inserted"  # nodes that the model does not have change what the layer passes on
    EXCHANGED = "exchanged"  # inputs, outputs or branches stand in each other's place
    REWIRED = "rewired"  # its nodes are right and read another tensor than the one that holds what the layer reads

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A fixed limit: an element agrees when ``|actual - expected| <= atol + rtol * |expected|``."""

    rtol: float
    atol: float

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0):
            raise InputError(f"Tolerance(rtol={self.rtol}, atol={self.atol}): both must be at least 0")


@dataclass(frozen=True, slots=True)
class Noise:
    """Distance between the reference in its own precision and its float64 twin, in the units of the values.

    `assumed` where no twin was run, because every layer was right, or the fault was beyond doubt: then it is the
    distance between the two sides where that is nothing but rounding (docs/how-it-works.md, "Where no twin is needed").
    """

    max_abs: float
    rms: float
    # Where a few rows (slices along the last axis) are far noisier than the rest: the floor of each. Not saved.
    rows: Any = field(default=None, compare=False, repr=False, metadata={"saved": False})
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class Metrics:
    """How far `actual` is from `expected`; floats are subtracted in float64, NaN and Inf are counted apart.

    `limit` is what was allowed for the worst element, in the units of the values; `times_limit` is the largest error as
    a multiple of what was allowed for its element (at most 1 where everything agrees).
    """

    max_abs: float
    mean_abs: float
    rms: float
    rel_l2: float
    cosine: float
    sqnr_db: float
    max_ulp: float
    norm_ratio: float
    within: float
    worst_index: tuple[int, ...]
    nonfinite_expected: int
    nonfinite_actual: int
    nonfinite_mismatches: int
    limit: float
    times_limit: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor that the reference computed (one version of it, if it was updated in place).

    `shape` is that of `array`: complex numbers are pairs of real ones along the last axis.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    held: Held | None
    site: int | None = None
    parameter: str | None = None
    constant: bool = False

    @property
    def array(self) -> np.ndarray[Any, Any] | None:
        """Its numbers, read from disk where the memory limit sent them there; None where there are no dense ones."""
        return None if self.held is None else self.held.array


@dataclass(frozen=True, slots=True)
class Operand:
    """A reference value, where it stands among the arguments of a recorded call."""

    value: int


@dataclass(frozen=True, slots=True)
class Replay:
    """What a site called and with which arguments, an `Operand` for every tensor: enough to run it again."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Site:
    """One operator that the reference ran, with the module call it ran in.

    `replay` is None for the new version of a tensor that was written to through another view.
    """

    index: int
    op: str
    owner: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    replay: Replay | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one module. `index` 0 is the root module."""

    index: int
    layer: str
    call: int
    type: str
    parent: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """The dataflow graph of one forward pass: sites, the values between them, the calls around them."""

    values: tuple[Value, ...]
    sites: tuple[Site, ...]
    calls: tuple[Call, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    parameters: Mapping[str, np.ndarray[Any, Any]]
    uncalled: Mapping[str, str] = field(default_factory=dict)

    def layer_of(self, site: Site) -> str:
        """The qualified name of the module whose own forward ran this site."""
        return self.calls[site.owner].layer

    def producer(self, value: int) -> Site | None:
        """The site that computed a value; None for inputs, parameters and constants."""
        index = self.values[value].site
        return None if index is None else self.sites[index]


@dataclass(frozen=True, slots=True)
class Pair:
    """A reference value and the ONNX tensor that stands for it, with the reason they were paired."""

    value: int
    tensor: str
    evidence: Evidence
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Healed:
    """The worst error of the final outputs before and after PyTorch's value was put in; `agrees` after it."""

    before: float
    after: float
    agrees: bool


@dataclass(frozen=True, slots=True)
class OutputResult:
    """One final output: `shipped` is the untouched model with all optimisations, `tapped` the run that was examined.

    Both count only the positions that `valid` includes; `everywhere` is `shipped` over all positions, where some were
    excluded.
    """

    name: str
    tensor: str
    expected_shape: tuple[int, ...]
    actual_shape: tuple[int, ...] | None
    shipped: Metrics | None
    tapped: Metrics | None
    everywhere: Metrics | None = None

    @property
    def agrees(self) -> bool:
        """Whether the untouched model's output agrees."""
        return self.shipped is not None and self.shipped.agrees


@dataclass(frozen=True, slots=True)
class SampleResult:
    """How one sample was judged: the shapes of its inputs, and how far the outputs are apart.

    `refused` is what the runtime said where it took no input of these shapes although the model does. `max_abs` and
    `times_limit` are the largest of all outputs; None where shapes differ or nothing came out.
    """

    shapes: Mapping[str, tuple[int, ...]]
    agrees: bool
    max_abs: float | None = None
    times_limit: float | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Divergence:
    """An origin: a place where good values go in and a wrong one comes out.

    `also_possible` are the layers that nothing in the file tells apart from the accused one.
    """

    layer: str
    call: int
    type: str
    op: str | None
    onnx_nodes: tuple[str, ...]
    onnx_ops: tuple[str, ...]
    tensor: str
    metrics: Metrics | None
    noise: Noise | None
    kind: Kind
    summary: str
    healed: Healed | None = None
    also_possible: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundedLayer:
    """A layer whose number format explains what it introduces.

    `rel_l2` is the introduced error relative to the value; `healed` the final error before and after this layer alone
    was healed (None where that was not tried: only the layers that introduce most are).
    """

    layer: str
    call: int
    type: str
    format: str
    rel_l2: float
    healed: Healed | None


@dataclass(frozen=True, slots=True)
class Diffuse:
    """Rounding all over the graph, without a single culprit; layers in the order of what they introduce."""

    format: str
    layers: tuple[RoundedLayer, ...]

    @property
    def formats(self) -> tuple[str, ...]:
        """The number formats of the layers, that of most of them first."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.format] = counts.get(layer.format, 0) + 1
        return tuple(sorted(counts, key=lambda kind: -counts[kind]))


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause (slug of the design's list) with its evidence and what to change."""

    cause: str
    layer: str
    summary: str
    evidence: Mapping[str, Any]
    remedy: str
    verified: bool


@dataclass(frozen=True, slots=True)
class Unrepaired:
    """A cause that was left in the file: why, and what to do instead (as code where it can be)."""

    layer: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done to make a corrected file.

    `corrected` are the diagnoses whose changes it holds, `left` what it does not, `notes` what else changed or is to be
    known, `checked` the inputs on which every change was run.
    """

    path: str
    corrected: tuple[Diagnosis, ...]
    left: tuple[Unrepaired, ...]
    notes: tuple[str, ...]
    checked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerResult:
    """What was found about one call of one layer (or one operator, at granularity "op").

    `key` is its name for `pairs=`; `suggestions` are tensors that could be its counterpart, where none was found.
    """

    layer: str
    call: int
    type: str
    op: str | None
    onnx_tensor: str | None
    evidence: Evidence | None
    status: Status
    reason: str
    accumulated: Metrics | None
    introduced: Metrics | None
    noise: Noise | None
    key: str = ""
    shape: tuple[int, ...] | None = None
    suggestions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many module calls were compared, folded into another, or not compared (with the reasons).

    `containers` are modules such as ModuleList that never run themselves: only their members do.
    """

    compared: int
    folded: int
    unmatched: Mapping[str, str]
    containers: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Every module call, and every module that could run and was not called."""
        return self.compared + self.folded + len(self.unmatched)
