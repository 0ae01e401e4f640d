"""The PyTorch side of a case as a Python file that needs torch and numpy only, and its weights as arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from layerdiff.errors import ReproduceError
from layerdiff.lowering import out_of_place, replayed
from layerdiff.tensors import to_array

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from torch import fx

    from layerdiff.model import Reference

    Array = np.ndarray[Any, Any]

# What the generated code of torch.fx may name without saying where it comes from.
_IMPORTS = {
    "torch": "import torch",
    "device": "from torch import device",
    "inf": "from math import inf",
    "nan": "from math import nan",
    "NoneType": "NoneType = type(None)",
    "operator": "import operator",
}
_RNN = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")


@dataclass(frozen=True, slots=True)
class Code:
    """Source text with a class ``Reference``, and the arrays that it loads."""

    text: str
    weights: dict[str, Array]


def code_of(reference: Reference, sites: Sequence[int], inputs: Sequence[int], output: int) -> Code:
    """The recorded operators as code.

    Raises
    ------
    ReproduceError
        One of them cannot be called again, or comes from code that is not torch's.

    """
    module = replayed(reference, sites, inputs, output, out_of_place)
    if module is None:
        raise ReproduceError("an operator of the accused stretch cannot be called again outside the model")
    generated = module.graph.python_code("self")
    strange = sorted(set(generated.globals) - set(_IMPORTS) - {"fx_pytree", "pytree"})
    if strange:
        raise ReproduceError(f"the accused stretch calls {', '.join(strange)}, which is not part of torch")
    weights: dict[str, Array] = {}
    made = list(_members(module, reference, weights))
    imports = {_IMPORTS[name] for name in generated.globals if name in _IMPORTS} | {"import torch"}
    body = re.sub(r";  .* = None$", "", generated.src.strip(), flags=re.MULTILINE)
    lines = [
        '"""The accused operators of the PyTorch model, as they were called."""',
        "",
        "from pathlib import Path",
        "",
        "import numpy as np",
        *sorted(imports),
        "",
        'WEIGHTS = np.load(Path(__file__).with_name("weights.npz"))',
        "",
        "",
        "class Reference(torch.nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in made),
        "        self.eval()",
        "",
        *(f"    {line}".rstrip() for line in body.splitlines()),
        "",
    ]
    return Code("\n".join(lines), weights)


def _members(module: fx.GraphModule, reference: Reference, weights: dict[str, Array]) -> Iterator[str]:
    """The lines that make what forward reads; the numbers go into `weights`."""
    used = {str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
    for name, buffer in module.named_buffers(recurse=False):
        if name in used:
            array = to_array(buffer)
            assert array is not None  # it was made from one
            weights[name] = array
            kind = reference.values[int(name.rpartition("_")[2])].dtype
            yield f'self.{name} = torch.from_numpy(WEIGHTS["{name}"]).to(torch.{kind})'
    for name, member in module.named_children():
        if name in used:
            yield f"self.{name} = {_constructor(member)}"
            for key, tensor in member.state_dict().items():
                array = to_array(tensor)
                assert array is not None
                weights[f"{name}.{key}"] = array
            prefix = f"{name}."
            yield (
                f"self.{name}.load_state_dict({{k.removeprefix({prefix!r}): torch.from_numpy(WEIGHTS[k]) "
                f"for k in WEIGHTS.files if k.startswith({prefix!r})}})"
            )


def _constructor(module: nn.Module) -> str:
    """How a recurrent layer is made: the only modules that are one operator."""
    own = next((base for base in type(module).__mro__ if base.__module__.startswith("torch.nn")), None)
    if own is None or not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        raise ReproduceError(f"a {type(module).__name__} cannot be made without its own code")
    names = _RNN if isinstance(module, nn.RNNBase) else ("input_size", "hidden_size", "bias")
    options = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if isinstance(module, (nn.RNN, nn.RNNCell)):
        options["nonlinearity"] = module.nonlinearity
    if not isinstance(module, nn.LSTM):
        options.pop("proj_size", None)
    written = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"torch.nn.{own.__name__}({written})"


def torch_dtype(name: str) -> str:
    """How a recorded dtype is written in code."""
    return str(getattr(torch, name))
