"""The files that are mutated: small exports and hand-written graphs of every kind, and saved reports.

``python -m benchmarks.fuzz.seeds`` writes them again.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import layerdiff

FOLDER = Path(__file__).parent / "seeds"
FEEDS = FOLDER / "feeds"
node = helper.make_node


def models() -> list[Path]:
    """The seed models."""
    return sorted(FOLDER.glob("*.onnx"))


def reports() -> list[Path]:
    """The seed reports."""
    return sorted(FOLDER.glob("*.json"))


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """Numbers for the inputs of a seed, from its declared types and shapes."""
    rng = np.random.default_rng(0)
    stored = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for port in model.graph.input:
        if port.name in stored:
            continue
        tensor = port.type.tensor_type
        shape = [size.dim_value or 2 for size in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        found[port.name] = np.asarray(rng.random(shape) * 2).astype(dtype)
    return found


def _info(name: str, kind: int = TensorProto.FLOAT, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(nodes: Any, inputs: Any, outputs: Any, constants: Any = None, **options: Any) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    opsets = options.pop("opsets", [helper.make_opsetid("", 17)])
    graph = helper.make_graph(nodes, "seed", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **options)


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())
        self.head = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(image)).relu()
        x = x + self.block(x)
        return self.head(x.mean((2, 3)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v)


def _branch() -> onnx.ModelProto:
    then = helper.make_graph([node("Exp", ["x"], ["a"])], "then", [], [_info("a")])
    other = helper.make_graph([node("Neg", ["x"], ["b"])], "else", [], [_info("b")])
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    return _model(nodes, [_info("x", shape=[2, 3])], [_info("y")], {"zero": np.float32(0)})


def _loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", ["going"], ["on"]), node("Mul", ["v", "x"], ["w"]), node("Identity", ["w"], ["row"])],
        "body",
        [_info("i", TensorProto.INT64, []), _info("going", TensorProto.BOOL, []), _info("v")],
        [_info("on", TensorProto.BOOL, []), _info("w"), _info("row")],
    )
    nodes = [node("Loop", ["trips", "true", "x"], ["last", "rows"], body=body), node("Exp", ["last"], ["y"])]
    constants = {"trips": np.int64(3), "true": np.bool_(True)}  # noqa: FBT003
    return _model(nodes, [_info("x", shape=[2, 3])], [_info("y"), _info("rows")], constants)


def _scan() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Add", ["state", "element"], ["next"]), node("Identity", ["next"], ["out"])],
        "body",
        [_info("state", shape=[3]), _info("element", shape=[3])],
        [_info("next", shape=[3]), _info("out", shape=[3])],
    )
    nodes = [node("Scan", ["start", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
    return _model(nodes, [_info("x", shape=[2, 3])], [_info("last"), _info("y")], {"start": np.zeros(3, np.float32)})


def _function() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    twice = helper.make_function("own", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opsets)
    nodes = [node("Twice", ["x"], ["t"], domain="own"), node("Tanh", ["t"], ["y"])]
    return _model(nodes, [_info("x", shape=[2, 3])], [_info("y")], opsets=opsets, functions=[twice])


def _quantised() -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("MatMul", ["d", "w"], ["y"]),
    ]
    constants = {"scale": np.float32(0.02), "zero": np.int8(3), "w": np.ones((3, 2), np.float32)}
    return _model(nodes, [_info("x", shape=[2, 3])], [_info("y")], constants)


def _sequences() -> onnx.ModelProto:
    nodes = [
        node("SplitToSequence", ["x", "one"], ["s"], axis=1),
        node("ConcatFromSequence", ["s"], ["c"], axis=0),
        node("Sqrt", ["c"], ["y"]),
        node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(2, np.float32))),
        node("Mul", ["k", "y"], ["z"]),
    ]
    return _model(nodes, [_info("x", shape=[2, 2])], [_info("y"), _info("z")], {"one": np.int64(1)})


def _fused() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    nodes = [
        node("FusedMatMul", ["x", "w"], ["m"], domain="com.microsoft", alpha=0.5, transB=1),
        node("BiasGelu", ["m", "b"], ["y"], domain="com.microsoft"),
    ]
    constants = {"w": np.ones((4, 3), np.float32), "b": np.ones(4, np.float32)}
    return _model(nodes, [_info("x", shape=[2, 3])], [_info("y")], constants, opsets=opsets)


_FUSED_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]


def _fused_floats() -> onnx.ModelProto:
    """What ONNX Runtime leaves of convolutions, products and norms, with every kind of activation and sum."""
    own: dict[str, Any] = {"domain": "com.microsoft"}
    clip = {"activation": "Clip", "activation_params": [0.0, 6.0]}
    nodes = [
        node("FusedConv", ["x", "w", "b"], ["c"], activation="Relu", pads=[1, 1, 1, 1], **own),
        node("FusedConv", ["c", "w", "b", "c"], ["d"], pads=[1, 1, 1, 1], **clip, **own),
        node("Reshape", ["d", "rows"], ["r"]),
        node("FusedGemm", ["r", "g", "h"], ["e"], activation="LeakyRelu", activation_alpha=0.1, **own),
        node("Reshape", ["e", "three"], ["t"]),
        node("SkipLayerNormalization", ["t", "t", "h", "h", "h"], ["n"], epsilon=1e-5, **own),
        node("SkipSimplifiedLayerNormalization", ["n", "t", "h"], ["y"], epsilon=1e-5, **own),
    ]
    rng = np.random.default_rng(0)
    shapes = {"w": (2, 2, 3, 3), "b": (2,), "g": (4, 4), "h": (4,)}
    constants: dict[str, Any] = {name: rng.random(shape).astype(np.float32) for name, shape in shapes.items()}
    constants |= {"rows": np.array([8, 4]), "three": np.array([1, 8, 4])}
    return _model(nodes, [_info("x", shape=[1, 2, 4, 4])], [_info("y")], constants, opsets=_FUSED_OPSETS)


def _fused_bytes() -> onnx.ModelProto:
    """What ONNX Runtime leaves of a quantised network."""
    own, q = {"domain": "com.microsoft"}, ["s", "z"]
    nodes = [
        node("QuantizeLinear", ["x", *q], ["q"]),
        node("QLinearConv", ["q", *q, "w", *q, *q, "b"], ["c"], pads=[1, 1, 1, 1]),
        node("QLinearAdd", ["c", *q, "q", *q, *q], ["a"], **own),
        node("QLinearSigmoid", ["a", *q, *q], ["g"], **own),
        node("QLinearConcat", [*q, "a", *q, "g", *q], ["k"], axis=1, **own),
        node("Reshape", ["k", "rows"], ["r"]),
        node("QLinearMatMul", ["r", *q, "m", *q, *q], ["p"]),
        node("QGemm", ["p", *q, "m", *q, "", *q], ["h"], **own),
        node("DequantizeLinear", ["h", *q], ["y"]),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.05), "z": np.uint8(128), "w": rng.integers(0, 255, (2, 2, 3, 3), np.uint8),
        "b": np.array([3, -4], np.int32), "m": rng.integers(0, 255, (4, 4), np.uint8), "rows": np.array([16, 4]),
    }  # fmt: skip
    return _model(nodes, [_info("x", shape=[1, 2, 4, 4])], [_info("y")], constants, opsets=_FUSED_OPSETS)


def _fused_attention() -> onnx.ModelProto:
    """What ONNX Runtime leaves of a transformer, its product in weights of four bits."""
    own: dict[str, Any] = {"domain": "com.microsoft"}
    nodes = [
        node("Attention", ["x", "w", "b", "m"], ["a"], num_heads=2, unidirectional=1, **own),
        node("MatMulNBits", ["a", "p", "s", "z"], ["y"], K=4, N=4, bits=4, block_size=16, **own),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.random((4, 12)).astype(np.float32), "b": rng.random(12).astype(np.float32),
        "p": rng.integers(0, 255, (4, 1, 8), np.uint8), "s": rng.random(4).astype(np.float32),
        "z": rng.integers(0, 255, 4, np.uint8),
    }  # fmt: skip
    inputs = [_info("x", shape=[1, 3, 4]), _info("m", TensorProto.INT32, shape=[1, 3])]
    return _model(nodes, inputs, [_info("y")], constants, opsets=_FUSED_OPSETS)


def _dynamic_bytes() -> onnx.ModelProto:
    """What dynamic quantisation writes, and what ONNX Runtime makes of that."""
    own: dict[str, Any] = {"domain": "com.microsoft"}
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("MatMulInteger", ["q", "w", "z", "wz"], ["i"]),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["s", "ws"], ["k"]),
        node("Mul", ["f", "k"], ["p"]),
        node("DynamicQuantizeMatMul", ["p", "w", "ws", "wz", "c"], ["d"], **own),
        node("DynamicQuantizeLinear", ["d"], ["e", "es", "ez"]),
        node("MatMulIntegerToFloat", ["e", "w", "es", "ws", "ez", "wz", "c"], ["y"], **own),
    ]
    constants = {
        "w": np.arange(16, dtype=np.int8).reshape(4, 4), "wz": np.int8(1), "ws": np.float32(0.1),
        "c": np.ones(4, np.float32),
    }  # fmt: skip
    return _model(nodes, [_info("x", shape=[2, 4])], [_info("y")], constants, opsets=_FUSED_OPSETS)


def _halves() -> onnx.ModelProto:
    kinds = (TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT)
    nodes = [node("Cast", [a], [b], to=kind) for a, b, kind in zip("xpq", "pqy", kinds, strict=True)]
    return _model(nodes, [_info("x", shape=[2, 3])], [_info("y")])


def write() -> None:
    """Write every seed."""
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    image, ids = torch.rand(1, 3, 6, 6), torch.arange(4)[None]
    modules = {"convolutions": (_Convolutions().eval(), image), "attention": (_Attention().eval(), ids)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (module, given) in modules.items():
            torch.onnx.export(module, (given,), FOLDER / f"{name}.onnx", dynamo=False)
            program = torch.onnx.export(module, (given,), dynamo=True, verbose=False)
            assert program is not None
            onnx.save(program.model_proto, FOLDER / f"{name}_dynamo.onnx")
    written = {
        "branch": _branch(), "loop": _loop(), "scan": _scan(), "function": _function(), "quantised": _quantised(),
        "sequences": _sequences(), "fused": _fused(), "fused_floats": _fused_floats(), "fused_bytes": _fused_bytes(),
        "fused_attention": _fused_attention(), "dynamic_bytes": _dynamic_bytes(), "halves": _halves(),
    }  # fmt: skip
    for name, model in written.items():
        onnx.save(model, FOLDER / f"{name}.onnx")
    module, given = modules["convolutions"]
    with torch.no_grad():
        good = layerdiff.trace(module, FOLDER / "convolutions.onnx", given, progress=False)
        module.block[0].weight *= 1.5
        bad = layerdiff.trace(module, FOLDER / "convolutions.onnx", given, progress=False)
    good.save(FOLDER / "agrees.json")
    bad.save(FOLDER / "diverges.json")


if __name__ == "__main__":
    write()
