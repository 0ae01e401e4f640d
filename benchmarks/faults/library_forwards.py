"""Faults in the forwards of `transformers`, which have no seams of ours: attributes and keyword arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.faults.fault import Fault

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from benchmarks.faults.workpiece import Workpiece


def library_scale(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = [path for path in piece.modules() if isinstance(getattr(piece.module(path), "scaling", None), float)]
    if not paths:
        return None
    path = rng.choice(paths)
    piece.module(path).scaling *= 0.7
    return Fault("attention-scale", path, (), "scaling times 0.7")


def library_mask(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = _named(piece, "BertSelfAttention", "LlamaAttention")
    if not paths:
        return None
    path = rng.choice(paths)
    piece.module(path).is_causal = False

    def unmasked(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args = (args[0], None, *args[2:]) if len(args) > 1 else args
        return original(*args, **{**kwargs, "attention_mask": None} if "attention_mask" in kwargs else kwargs)

    piece.override(path, "forward", unmasked)
    return Fault("mask-changed", path, (), "no mask")


def library_residual(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = _named(piece, "BertSelfOutput", "BertOutput")
    if not paths:
        return None
    path = rng.choice(paths)

    module = piece.module(path)
    piece.override(path, "forward", lambda _, branch, x: module.LayerNorm(module.dense(branch)))  # noqa: ARG005
    return Fault("residual-removed", path, (f"{path}.LayerNorm", f"{path}.dense"), "the shortcut is gone")


def library_constant(piece: Workpiece, rng: random.Random) -> Fault | None:
    """Rotary frequencies from another base."""
    paths = _named(piece, "LlamaRotaryEmbedding")
    if not paths:
        return None
    path = rng.choice(paths)
    piece.module(path).inv_freq = piece.module(path).inv_freq * 1.1
    return Fault("constant-changed", path, (), "rotary frequencies times 1.1")


def _named(piece: Workpiece, *names: str) -> list[str]:
    return [path for path in piece.modules() if type(piece.module(path)).__name__ in names]
