"""Evidence from names: the module path that an exporter left on a node. It orders the search and proves nothing."""

from __future__ import annotations


def affinity(layer: str, scope: str) -> float:
    """1 when the scope names the layer, 0.5 when it names its parent or a child, 0 when it says something else."""
    if not scope:
        return 0.0
    if layer == scope:
        return 1.0
    if layer.rpartition(".")[0] == scope or scope.rpartition(".")[0] == layer:
        return 0.5
    return 0.0
