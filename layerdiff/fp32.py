"""The settings of torch that let it compute float32 in TF32 or BF16, and how to do without them for a while.

Products of matrices, convolutions and recurrent layers are meant: on CUDA (TF32; cuDNN's convolutions by default), and
in oneDNN on the CPU. Since torch 2.9 each kind of work of each library has a precision of its own
(https://docs.pytorch.org/docs/stable/notes/cuda.html), beside two older switches that stand for several of them.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from layerdiff.alone import ALONE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    Place = tuple[str, str]  # a library, and a kind of work in it

MATMUL, CUDNN = "torch.set_float32_matmul_precision", "torch.backends.cudnn.allow_tf32"
_NARROW = frozenset({"tf32", "bf16"})
_DEVICES = {"mkldnn": frozenset({"cpu", "xpu"}), "cuda": frozenset({"cuda"})}
_WORK = {"matmul": "matrix products", "conv": "convolutions", "rnn": "recurrent layers"}
_NAMES: dict[Place, str] = {
    ("mkldnn", "matmul"): "torch.backends.mkldnn.matmul.fp32_precision",
    ("mkldnn", "conv"): "torch.backends.mkldnn.conv.fp32_precision",
    ("mkldnn", "rnn"): "torch.backends.mkldnn.rnn.fp32_precision",
    ("cuda", "matmul"): "torch.backends.cuda.matmul.fp32_precision",
    ("cuda", "conv"): "torch.backends.cudnn.conv.fp32_precision",
    ("cuda", "rnn"): "torch.backends.cudnn.rnn.fp32_precision",
}
_OLDER = {MATMUL: 'torch.set_float32_matmul_precision("highest")', CUDNN: "torch.backends.cudnn.allow_tf32 = False"}
# Since torch 2.9; both take a library and a kind of work.
_get: Any = getattr(torch._C, "_get_fp32_precision_getter", None)  # noqa: SLF001  the public names give no way to the library's own
_set: Any = getattr(torch._C, "_set_fp32_precision_setter", None)  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that lets some work on float32 be done in a narrower format."""

    name: str
    format: str  # TF32 or BF16
    places: tuple[Place, ...]

    @property
    def work(self) -> str:
        """What is computed so, in words."""
        return " and ".join(dict.fromkeys(_WORK[kind] for _, kind in self.places))

    @property
    def remedy(self) -> str:
        """The line of code that turns it off."""
        return _OLDER.get(self.name, f'{self.name} = "ieee"')


def narrow_settings(devices: Collection[str]) -> tuple[Setting, ...]:
    """The settings that let float32 be computed in a narrower format on some types of devices."""
    formats = {place: found for place, found in _formats().items() if _DEVICES[place[0]].intersection(devices)}
    formats = {place: found for place, found in formats.items() if found in _NARROW}
    by_name: dict[str, list[Place]] = {}
    for place in formats:
        by_name.setdefault(_name(place), []).append(place)
    return tuple(Setting(name, formats[of[0]].upper(), tuple(of)) for name, of in by_name.items())


@contextmanager
def full_float32(keep: Collection[Setting] = ()) -> Iterator[None]:
    """Compute float32 in float32, but for what some settings allow; all of them are as before on exit.

    Nothing is touched where no setting is on: a compiled module would be compiled anew.
    """
    devices = ("cpu", "xpu", *(("cuda",) if torch.cuda.is_available() else ()))
    with ALONE, ExitStack() as stack:
        for setting in narrow_settings(devices):
            if setting not in keep:
                _turn_off(setting, stack)
        yield


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Compute without oneDNN; its precision is left alone, which ``torch.backends.mkldnn.flags`` would reset."""
    one_dnn: Any = torch.backends.mkldnn
    before, one_dnn.enabled = one_dnn.enabled, False
    try:
        yield
    finally:
        one_dnn.enabled = before


def _turn_off(setting: Setting, stack: ExitStack) -> None:
    """Turn a setting off until the stack is left.

    What is read inside must not contradict itself: torch refuses to read an older switch that says something else than
    the precision of its kinds of work. So both are set, and put back in the other order.
    """
    older = setting.name in _OLDER  # it stands for several kinds of work, also for some that are not narrow
    for place in (_NAMES if older else setting.places) if _get is not None else ():
        stack.callback(partial(_set, *place, _own(place)))
    if setting.name == MATMUL:
        stack.callback(_set_older, MATMUL, _older_matmul())
        _set_older(MATMUL, "highest")
    elif setting.name == CUDNN:
        stack.callback(_set_older, CUDNN, True)  # noqa: FBT003
        _set_older(CUDNN, False)  # noqa: FBT003
    for place in setting.places if _get is not None else ():
        _set(*place, "ieee")


def _formats() -> dict[Place, str]:
    """What each kind of work is done in."""
    if _get is not None:
        return {place: _get(*place) for place in _NAMES}
    matmul, cudnn = _older_matmul(), "tf32" if _older_cudnn() else "ieee"
    return {
        ("mkldnn", "matmul"): {"medium": "bf16", "high": "tf32"}.get(matmul, "ieee"),
        ("cuda", "matmul"): "ieee" if matmul == "highest" else "tf32",
        ("cuda", "conv"): cudnn,
        ("cuda", "rnn"): cudnn,
    }


def _name(place: Place) -> str:
    """The setting behind a narrow format: an older switch where one is on and not overridden."""
    library, kind = place
    above = _get is not None and _get(library, "all") in _NARROW  # set for a whole library, the switch changes nothing
    if kind == "matmul" and _older_matmul() in ("medium", "high") and not above:
        return MATMUL
    return CUDNN if library == "cuda" and kind != "matmul" and _older_cudnn() and not above else _NAMES[place]


def _older_matmul() -> str:
    """The older switch for matrix products; "" where torch says that the newer ones contradict it."""
    try:
        with _quiet():
            return torch.get_float32_matmul_precision()
    except RuntimeError:
        return ""


def _older_cudnn() -> bool:
    """The older switch for cuDNN; False where torch says that the newer ones contradict it."""
    try:
        with _quiet():
            return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return False


def _set_older(name: str, value: Any) -> None:
    with _quiet():
        if name == MATMUL:
            torch.set_float32_matmul_precision(value)
        else:
            torch.backends.cudnn.allow_tf32 = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch asks whoever touches an older switch to use the newer ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _own(place: Place) -> str:
    """What is set for a kind of work itself, apart from what it inherits from its library and from all libraries."""
    above = [("generic", "all"), (place[0], "all")]
    before = []
    for parent in above:
        before.append(_get(*parent))
        _set(*parent, "none")
    found: str = _get(*place)
    for parent, value in zip(above, before, strict=True):
        _set(*parent, value)
    return found
