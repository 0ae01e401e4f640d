"""Which module is to blame for an origin whose reference side spans several.

One module: that one. A convolution with the BatchNorm that was folded into it: the weights tell. Anything else: the
smallest module that holds all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.weights import by_output_channel, carried_as, channel_factors, parameters_of_sites, parameters_read
from layerdiff.localise import meaningful
from layerdiff.operators import base_name, likeness, only_moves

if TYPE_CHECKING:
    from layerdiff.align import Alignment
    from layerdiff.localise import Origin
    from layerdiff.model import Reference, Site, Value

    Array = np.ndarray[Any, Any]

# Folding multiplies in float32 and stores the product: a few units in the last place of the weight.
_FOLD_TOLERANCE = 1e-5


def blame(alignment: Alignment, origin: Origin) -> tuple[int, str | None]:
    """The call that holds the fault, and the operator inside it when there is one only."""
    reference = alignment.reference
    if origin.inserted:
        site = reference.producer(alignment.root(origin.value))
        return _call_of_value(alignment, origin), None if site is None else site.op
    sites = [reference.sites[index] for index in meaningful(alignment, origin.sites)]
    if not sites:
        return 0, None
    maker = _wrong_constant(alignment, origin, sites)
    if maker is not None:
        return maker.owner, maker.op
    sites = _standing_alone(alignment, origin, _unfolded(alignment, origin, sites))
    owners = {site.owner for site in sites}
    op = sites[0].op if len(sites) == 1 else None
    return _common_call(reference, owners), op


def _call_of_value(alignment: Alignment, origin: Origin) -> int:
    """The layer that inserted nodes belong to: the maker of the value if all its readers see the change."""
    reference, graph = alignment.reference, alignment.candidate.graph
    scopes = {graph.nodes[index].scope for index in origin.nodes} - {""}
    named = [call.index for call in reference.calls if call.layer in scopes]
    if len(scopes) == 1 and len(named) == 1:  # nothing but a name can tell; a tool that inserts nodes leaves none
        return named[0]
    root = alignment.root(origin.value)
    family = set(alignment.families[root].members) if root in alignment.families else {root}
    passing = [call.index for call in reference.calls if call.outputs and family.issuperset(call.inputs + call.outputs)]
    site = reference.producer(root)
    sources = alignment.tensors_of(root) | alignment.tensors_of(origin.value)
    readers = {n for t in sources for n, _ in graph.consumers.get(t, ()) if n in graph.live_nodes}
    if readers <= set(origin.nodes):
        if passing:  # a Dropout or Identity stands there, and should change nothing
            return passing[-1]
        if site is not None:
            return site.owner
    computing = [index for index in origin.readers if not only_moves(reference.sites[index].op)]
    using = [index for index in computing if _reads(reference, reference.sites[index], family)] or computing
    return reference.sites[using[0]].owner if using else 0


def _reads(reference: Reference, site: Site, family: set[int]) -> bool:
    """Whether a site reads one of some values, perhaps moved."""
    for value in site.inputs:
        while value not in family:
            maker = reference.producer(value)
            if maker is None or not only_moves(maker.op) or not maker.inputs:
                break
            value = maker.inputs[0]  # noqa: PLW2901  one step up
        if value in family:
            return True
    return False


def _wrong_constant(alignment: Alignment, origin: Origin, sites: list[Site]) -> Site | None:
    """Where the fault is in a value that does not depend on the inputs (a position table), the site that made it."""
    reference = alignment.reference
    sizes = {array.size for array in _constants(alignment, origin)}
    for site in sites:
        for value in site.inputs:
            known, maker = reference.values[value], _maker(reference, value)
            suspect = known.constant and known.parameter is None and known.array is not None and known.array.size > 1
            if not suspect or maker is None or value in alignment.constants or known.array is None:
                continue
            if known.array.size in sizes:
                return _table_or_positions(alignment, origin, maker, known)
    return None


def _table_or_positions(alignment: Alignment, origin: Origin, maker: Site, known: Value) -> Site:
    """Of a folded look-up: its own site, or the maker of the positions if every row is in the table."""
    reference = alignment.reference
    if base_name(maker.op) != "embedding" or known.array is None:
        return maker
    width = known.array.shape[-1]
    tables = [a for name in parameters_read(reference, maker) if (a := reference.parameters[name]).shape[-1] == width]
    rows = [a.reshape(-1, width) for a in _constants(alignment, origin) if a.size == known.array.size]
    positions = _maker(reference, maker.inputs[1]) if len(maker.inputs) > 1 else None
    for table in tables:
        entries = {row.tobytes() for row in np.ascontiguousarray(table.reshape(-1, width))}
        for found in rows:
            same = all(row.astype(table.dtype).tobytes() in entries for row in found)
            if same and positions is not None:
                return positions
    return maker


def _maker(reference: Reference, value: int) -> Site | None:
    """The site that computed a value, behind all that only moves it."""
    site = reference.producer(value)
    while site is not None and only_moves(site.op) and site.inputs:
        site = reference.producer(site.inputs[0])
    return site


def _common_call(reference: Reference, owners: set[int]) -> int:
    """The innermost call that encloses all the given ones; of several calls of one layer the first."""
    if len({reference.calls[owner].layer for owner in owners}) == 1:
        return min(owners)
    chains = [_enclosing(reference, owner) for owner in owners]
    shared = set.intersection(*map(set, chains))
    return max(shared)


def _enclosing(reference: Reference, call: int) -> list[int]:
    chain = [call]
    while (parent := reference.calls[chain[-1]].parent) is not None:
        chain.append(parent)
    return chain


def _unfolded(alignment: Alignment, origin: Origin, sites: list[Site]) -> list[Site]:
    """Of a convolution and the BatchNorm folded into it, the guilty one: by the node's weights, else by values."""
    names = parameters_of_sites(alignment.reference)
    norms = [s for s in sites if "batch_norm" in base_name(s.op)]
    heavy = [s for s in sites if base_name(s.op) in ("convolution", "addmm", "mm")]
    if len(norms) != 1 or len(heavy) != 1 or heavy[0].outputs[0] not in norms[0].inputs:
        return sites
    rest = [s for s in sites if s not in (norms[0], heavy[0])]
    shapes = {alignment.reference.parameters[n].shape for n in names.get(heavy[0].index, ())}
    if rest and not any(array.shape in shapes for array in _constants(alignment, origin)):
        return sites  # the whole branch is absent: no weight of it is in the region
    verdict = _fold_verdict(alignment, origin, heavy[0], norms[0], shared=bool(rest))
    if verdict == "right" and rest:
        return rest
    return [norms[0] if verdict == "norm" else heavy[0]]


def _standing_alone(alignment: Alignment, origin: Origin, sites: list[Site]) -> list[Site]:
    """The sites that the origin's nodes are not there for; where one node absorbed a padding, the node's own site."""
    if len(sites) < 2 or not origin.nodes:
        return sites
    absent = _absent(alignment, origin, sites) or sites
    if len(origin.nodes) != 1:
        return absent
    op = alignment.candidate.graph.nodes[origin.nodes[0]].op
    kin = [site for site in sites if likeness(site.op, op) > 0]
    strangers = [site for site in sites if likeness(site.op, op) < 0 or base_name(site.op) == "constant_pad_nd"]
    return kin if len(kin) == 1 and len(kin) + len(strangers) == len(sites) else absent


def _absent(alignment: Alignment, origin: Origin, sites: list[Site]) -> list[Site]:
    """The sites without a node, where every node of the origin is of the kind of another site; else none."""
    graph, constant = alignment.candidate.graph, alignment.candidate.graph.constant
    nodes = [graph.nodes[index] for index in origin.nodes]
    ops = [node.op for node in nodes if not constant.issuperset(node.outputs)]
    kin = {site.index: [op for op in ops if likeness(site.op, op) >= 1] for site in sites}
    if not ops or any(all(op not in found for found in kin.values()) for op in ops):
        return []
    return [site for site in sites if not kin[site.index]]


def _fold_verdict(alignment: Alignment, origin: Origin, heavy: Site, norm: Site, *, shared: bool) -> str:
    """What the folded weights say: "right", or which of the two they accuse, "heavy" or "norm".

    Where the region is shared with other operators, one factor for all channels is not held against the weights: a
    simplifier may have moved it there from a neighbour.
    """
    reference = alignment.reference
    names = parameters_of_sites(reference)
    own = [reference.parameters[name] for name in names.get(heavy.index, ())]
    weight = next((by_output_channel(reference, heavy, array) for array in own if array.ndim >= 2), None)
    carried = [] if weight is None else carried_as(weight, _constants(alignment, origin))
    if weight is None or not carried:
        return _affine_verdict(alignment, origin, heavy)
    factors, residual = min((channel_factors(weight, array) for array in carried), key=lambda found: found[1])
    if residual > 3 * _FOLD_TOLERANCE:
        return "heavy"
    statistics = {n.rpartition(".")[2]: reference.parameters[n] for n in names.get(norm.index, ())}
    if "running_var" not in statistics:
        return "norm"
    gamma = statistics.get("weight", np.ones_like(statistics["running_var"]))
    epsilon = float(norm.arguments.get("eps", norm.arguments.get("epsilon", 1e-5)))
    wanted_factors = gamma / np.sqrt(statistics["running_var"].astype(np.float64) + epsilon)
    moved = float(np.median(factors / wanted_factors)) if shared else 1.0
    right_factors = np.abs(factors - moved * wanted_factors).max() <= _FOLD_TOLERANCE * float(np.abs(factors).max())
    bias = _carried_bias(alignment, origin, weight.shape[0])
    wanted = _folded_bias(reference, names, heavy, statistics, wanted_factors)
    scale = max(1.0, float(np.abs(wanted).max()))
    right_bias = bias is not None and np.abs(bias - wanted).max() <= _FOLD_TOLERANCE * scale
    if right_bias and np.abs(wanted).max() > 0:
        # The bias of the fold is made with the norm's own factors: wrong ones would show in it.
        return "right" if right_factors else "heavy"
    return "norm"


def _folded_bias(
    reference: Reference, names: dict[int, tuple[str, ...]], heavy: Site, statistics: dict[str, Array], factors: Array
) -> Array:
    biases = (a for n in names.get(heavy.index, ()) if (a := reference.parameters[n]).ndim == 1)
    own = heavy.arguments.get("beta", 1) * next(biases, np.zeros(1))
    shift = statistics.get("bias", np.zeros_like(factors))
    return np.asarray((own - statistics["running_mean"]) * factors + shift)


def _carried_bias(alignment: Alignment, origin: Origin, channels: int) -> Array | None:
    return next((a.astype(np.float64) for a in _constants(alignment, origin) if a.shape == (channels,)), None)


def _constants(alignment: Alignment, origin: Origin) -> list[Array]:
    graph, constants = alignment.candidate.graph, alignment.candidate.constants
    return [constants[i] for n in origin.nodes for i in graph.nodes[n].inputs if i in constants]


def _affine_verdict(alignment: Alignment, origin: Origin, heavy: Site) -> str:
    """By values: what the candidate made is, per channel, an affine map of the convolution's result, or it is not."""
    expected = alignment.reference.values[heavy.outputs[0]].array
    actual = alignment.isolated.get(origin.slot.tensor)
    if expected is None or actual is None or expected.shape != actual.shape or expected.ndim < 3:
        return "heavy"
    x = np.moveaxis(expected.astype(np.float64), 1, 0).reshape(expected.shape[1], -1)
    y = np.moveaxis(actual.astype(np.float64), 1, 0).reshape(expected.shape[1], -1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    slope = np.sum(x * y, axis=1, keepdims=True) / np.maximum(np.sum(x * x, axis=1, keepdims=True), 1e-300)
    return "norm" if np.linalg.norm(y - slope * x) <= 1e-3 * np.linalg.norm(y) else "heavy"
