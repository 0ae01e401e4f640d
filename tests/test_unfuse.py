"""A runtime's fused operators, taken apart, compute what they computed whole."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers import optimizer
from torch import nn

from layerdiff.backends import OnnxRuntime, Optimisation
from layerdiff.graph import Graph
from layerdiff.unfuse import unfused
from layerdiff.weights import WeightVerdict
from tests.conftest import run
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, Treatment, export, treat
from tests.zoo.weights import fill, noise

RNG = np.random.default_rng(0)


def _model(node, initializers, shape, output_rank):
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * output_rank)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _conv(activation, parameters, extra=()):
    weights = {"w": RNG.standard_normal((4, 3, 3, 3)), "b": RNG.standard_normal(4)}
    weights |= {"z": RNG.standard_normal((1, 4, 6, 6))} if extra else {}
    attributes = {"activation_params": parameters} if parameters else {}
    node = helper.make_node(
        "FusedConv", ["x", "w", "b", *extra], ["y"], "fused", domain="com.microsoft", activation=activation,
        kernel_shape=[3, 3], **attributes,
    )  # fmt: skip
    return _model(node, weights, [1, 3, 8, 8], 4)


def _gemm():
    node = helper.make_node(
        "FusedGemm", ["x", "w", "b"], ["y"], "fused", domain="com.microsoft", activation="LeakyRelu",
        activation_alpha=0.2, transB=1,
    )  # fmt: skip
    return _model(node, {"w": RNG.standard_normal((5, 8)), "b": RNG.standard_normal(5)}, [3, 8], 2)


def _skip_norm():
    node = helper.make_node(
        "SkipLayerNormalization", ["x", "skip", "g", "s", "b"], ["y"], "fused", domain="com.microsoft", epsilon=1e-3
    )
    arrays = {"skip": RNG.standard_normal((2, 4, 8))} | {name: RNG.standard_normal(8) for name in "gsb"}
    return _model(node, arrays, [2, 4, 8], 3)


def _skip_simplified_norm(*, biased):
    inputs = ["x", "skip", "g", *(["b"] if biased else [])]
    node = helper.make_node(
        "SkipSimplifiedLayerNormalization", inputs, ["y"], "fused", domain="com.microsoft", epsilon=1e-3
    )
    arrays = {"skip": RNG.standard_normal((2, 4, 8))} | {name: RNG.standard_normal(8) for name in inputs[2:]}
    return _model(node, arrays, [2, 4, 8], 3)


def _bias_gelu():
    node = helper.make_node("BiasGelu", ["x", "b"], ["y"], "fused", domain="com.microsoft")
    return _model(node, {"b": RNG.standard_normal(8)}, [2, 8], 2)


FUSED = {
    "relu": lambda: _conv("Relu", []),
    "leaky": lambda: _conv("LeakyRelu", [0.1]),
    "clip": lambda: _conv("Clip", [0.0, 1.0]),
    "hard-sigmoid": lambda: _conv("HardSigmoid", [0.2, 0.5]),
    "sum": lambda: _conv("Relu", [], ("z",)),
    "gemm": _gemm,
    "skip-norm": _skip_norm,
    "skip-simplified-norm": lambda: _skip_simplified_norm(biased=False),
    "skip-simplified-norm-biased": lambda: _skip_simplified_norm(biased=True),
    "bias-gelu": _bias_gelu,
}


@pytest.mark.parametrize("name", FUSED)
def test_the_parts_compute_what_the_whole_does(name):
    model = FUSED[name]()
    parts = unfused(model)
    assert len(parts.graph.node) > len(model.graph.node)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": RNG.standard_normal(shape).astype(np.float32)}
    apart = OnnxRuntime().open(Graph(model).rewritten(["y"]), Optimisation.NONE).run(feeds)["y"]
    whole = OnnxRuntime().open(model, Optimisation.NONE).run(feeds)["y"]
    np.testing.assert_allclose(whole, apart, rtol=1e-5, atol=1e-5)


def test_a_graph_without_fused_nodes_is_returned_itself():
    sample = MODELS["resnet"]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    assert unfused(proto) is proto


def test_layers_inside_fused_nodes_are_compared(trace):
    sample = MODELS["resnet"]()
    proto = treat(export(sample.model, sample.inputs, Exporter.TORCHSCRIPT), Treatment.ORT_EXTENDED)
    assert any(node.op_type == "FusedConv" for node in proto.graph.node)
    report = trace(sample.model, proto, sample.inputs)
    assert {r.status.value for r in report.layers if r.type == "BatchNorm2d"} == {"agrees"}


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamically_quantised_products_compute_what_is_dequantised(tmp_path, per_channel):
    model = fill(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.Flatten(1), nn.Linear(64, 5))
    )
    x = noise("unfuse.dynamic", 2, 3, 8, 8)
    onnx.save(export(model, (x,), Exporter.TORCHSCRIPT), tmp_path / "fp32.onnx")
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", per_channel=per_channel)
    whole = onnx.load(tmp_path / "int8.onnx")
    parts = unfused(whole)
    assert {node.op_type for node in whole.graph.node} >= {"ConvInteger", "MatMulInteger"}
    assert {node.op_type for node in parts.graph.node}.isdisjoint({"ConvInteger", "MatMulInteger"})
    (name, output) = whole.graph.input[0].name, whole.graph.output[0].name
    one, other = (run(proto, {name: x.numpy()})[output] for proto in (whole, parts))
    np.testing.assert_allclose(one, other, atol=0.02 * np.abs(one).max())  # a sum may fall on the other side of a step
    first = whole.graph.node[[n.op_type for n in whole.graph.node].index("ConvInteger")]
    assert first.name.removesuffix("_quant") in {node.name for node in parts.graph.node}


@pytest.mark.parametrize("op", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
@pytest.mark.parametrize("biased", [False, True])
def test_fused_integer_products_compute_what_is_dequantised(op, biased):
    a, b = RNG.integers(0, 255, (3, 8)).astype(np.uint8), RNG.integers(-127, 127, (8, 5)).astype(np.int8)
    a_scale, b_scale = np.float32(0.02), RNG.uniform(0.01, 0.03, 5).astype(np.float32)
    a_zero, b_zero = np.uint8(120), np.zeros(5, np.int8)
    arrays = {"b": b, "bs": b_scale, "bz": b_zero, "as": a_scale, "az": a_zero, "c": RNG.standard_normal(5)}
    if op == "DynamicQuantizeMatMul":
        inputs, kind, x = ["x", "b", "bs", "bz"], TensorProto.FLOAT, RNG.standard_normal((3, 8)).astype(np.float32)
    else:
        inputs, kind, x = ["x", "b", "as", "bs", "az", "bz"], TensorProto.UINT8, a
    node = helper.make_node(op, [*inputs, *(["c"] if biased else [])], ["y"], "fused", domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", kind, [3, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 5])],
        [
            numpy_helper.from_array(np.asarray(array, np.float32) if name == "c" else array, name)
            for name, array in ((n, np.asarray(v)) for n, v in arrays.items())
            if name in node.input
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    parts = unfused(model)
    assert op not in {part.op_type for part in parts.graph.node}
    apart = OnnxRuntime().open(Graph(model).rewritten(["y"]), Optimisation.NONE).run({"x": x})["y"]
    np.testing.assert_allclose(run(model, {"x": x})["y"], apart, rtol=1e-4, atol=1e-4)


def _attention(mask=None, *, causal=False, biased=True, added=False, scale=None):
    """A fused self-attention of 2 × 5 vectors of 8 numbers, 2 heads."""
    arrays = {"w": RNG.standard_normal((8, 24)), "b": RNG.standard_normal(24), "add": RNG.standard_normal((1, 2, 5, 5))}
    inputs = ["x", "w", "b" if biased else "", "m" if mask else "", "", "add" if added else ""]
    while not inputs[-1]:
        inputs.pop()
    options = {"scale": scale} if scale else {}
    node = helper.make_node(
        "Attention", inputs, ["y"], "fused", domain="com.microsoft", num_heads=2, unidirectional=int(causal), **options
    )
    model = _model(node, {n: a for n, a in arrays.items() if n in inputs}, [2, 5, 8], 3)
    if mask == "positions":
        model.graph.input.append(helper.make_tensor_value_info("m", TensorProto.INT32, [2, 5]))
    if mask == "lengths":
        model.graph.input.append(helper.make_tensor_value_info("kept", TensorProto.INT32, [2, 5]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
        model.graph.node.insert(0, helper.make_node("ReduceSum", ["kept", "axis"], ["m"], keepdims=0))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"added": True, "scale": 0.2},
        {"mask": "positions"},
        {"mask": "positions", "causal": True, "added": True},
        {"mask": "lengths"},
    ],
    ids=str,
)
@pytest.mark.parametrize("opset", [17, 21])
def test_fused_attention_computes_what_its_parts_do(options, opset):
    model = _attention(**options)
    model.opset_import[0].version = opset
    parts = unfused(model)
    assert "Attention" not in {node.op_type for node in parts.graph.node}
    feeds = {"x": RNG.standard_normal((2, 5, 8)).astype(np.float32)}
    kept = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    feeds |= {port.name: kept for port in model.graph.input if port.name != "x"}
    apart = OnnxRuntime().open(Graph(model).rewritten(["y"]), Optimisation.NONE).run(feeds)["y"]
    whole = OnnxRuntime().open(model, Optimisation.NONE).run(feeds)["y"]
    np.testing.assert_allclose(whole, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [None, "positions"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("per_column", [False, True])
def test_attention_of_integers_computes_what_its_parts_do(mask, causal, per_column):
    scales = RNG.uniform(0.005, 0.02, 24 if per_column else ()).astype(np.float32)
    arrays = {
        "w": RNG.integers(-127, 127, (8, 24)).astype(np.int8),
        "b": RNG.standard_normal(24).astype(np.float32),
        "ws": scales,
        "wz": np.zeros(scales.shape, np.int8),
    }
    operands = ["xi", "w", "b", "xs", "ws", "m" if mask else "", "xz", "wz"]
    node = helper.make_node(
        "QAttention", operands, ["y"], "fused", domain="com.microsoft", num_heads=2, unidirectional=int(causal)
    )
    model = _model(node, {}, [2, 5, 8], 3)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    model.graph.node.insert(0, helper.make_node("DynamicQuantizeLinear", ["x"], ["xi", "xs", "xz"]))
    if mask:
        model.graph.input.append(helper.make_tensor_value_info("m", TensorProto.INT32, [2, 5]))
    assert "QAttention" not in {part.op_type for part in unfused(model).graph.node}
    feeds = {"x": RNG.standard_normal((2, 5, 8)).astype(np.float32)}
    feeds |= {"m": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)} if mask else {}
    apart = OnnxRuntime().open(Graph(model).rewritten(["y"]), Optimisation.NONE).run(feeds)["y"]
    whole = OnnxRuntime().open(model, Optimisation.NONE).run(feeds)["y"]
    np.testing.assert_allclose(whole, apart, rtol=1e-4, atol=1e-5)


class _Recurrent(nn.Module):
    def __init__(self, both):
        super().__init__()
        self.one, self.other = nn.LSTM(12, 16, bidirectional=both), nn.LSTM(32 if both else 16, 8)

    def forward(self, x):
        return self.other(self.one(x)[0])[0]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_recurrent_layer_of_integers_computes_what_its_parts_do(tmp_path, both, per_channel):
    model, x = fill(_Recurrent(both)).eval(), noise("unfuse.recurrent", 6, 2, 12)
    onnx.save(export(model, (x,), Exporter.TORCHSCRIPT), tmp_path / "fp32.onnx")
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", per_channel=per_channel)
    whole = onnx.load(tmp_path / "int8.onnx")
    parts = unfused(whole)
    assert "DynamicQuantizeLSTM" in {node.op_type for node in whole.graph.node}
    assert "DynamicQuantizeLSTM" not in {node.op_type for node in parts.graph.node}
    (name, output) = whole.graph.input[0].name, whole.graph.output[0].name
    one, other = (run(proto, {name: x.numpy()})[output] for proto in (whole, parts))
    # The state is rounded to eight bits at each step, which a standard LSTM does not do.
    np.testing.assert_allclose(one, other, atol=0.01 * np.abs(one).max())


def test_attention_without_a_bias_is_one_with_zeros():
    model = _attention()
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "b")
    bias.CopyFrom(numpy_helper.from_array(np.zeros(24, np.float32), "b"))
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.node[0].input[2:]  # on this the fused kernel crashes
    feeds = {"x": RNG.standard_normal((2, 5, 8)).astype(np.float32)}
    one, other = (
        OnnxRuntime().open(Graph(proto).rewritten(["y"]), Optimisation.NONE).run(feeds)["y"] for proto in (model, bare)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_attention_with_a_mask_of_unknown_form_stays_whole():
    model = _attention(mask="positions")
    del model.graph.input[1].type.tensor_type.shape.dim[:]
    assert unfused(model) is model


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [64, 40])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_packed_weights_compute_what_they_are_unpacked(bits, rows, zeros, biased):
    block, columns = 32, 6
    blocks, bytes_of = -(-rows // block), block * bits // 8
    arrays = {
        "b": RNG.integers(0, 255, (columns, blocks, bytes_of)).astype(np.uint8),
        "s": RNG.uniform(0.01, 0.05, columns * blocks).astype(np.float32),
        "z": RNG.integers(0, 255, columns * -(-blocks * bits // 8)).astype(np.uint8),
        "c": RNG.standard_normal(columns).astype(np.float32),
    }
    inputs = ["x", "b", "s", "z" if zeros else "", "", "c" if biased else ""]
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(
        "MatMulNBits", inputs, ["y"], "packed", domain="com.microsoft", K=rows, N=columns, bits=bits, block_size=block
    )
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, columns])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in inputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    parts = unfused(model)
    assert "MatMulNBits" not in {part.op_type for part in parts.graph.node}
    x = RNG.standard_normal((3, rows)).astype(np.float32)
    apart = OnnxRuntime().open(Graph(model).rewritten(["y"]), Optimisation.NONE).run({"x": x})["y"]
    whole = OnnxRuntime().open(model, Optimisation.NONE).run({"x": x})["y"]
    np.testing.assert_allclose(whole, apart, rtol=1e-3, atol=1e-3 * np.abs(apart).max())


def _fused(model, inputs, folder):
    """BERT after ONNX Runtime's optimiser for transformers."""
    onnx.save(export(model, inputs, Exporter.TORCHSCRIPT), folder / "plain.onnx")
    optimised = optimizer.optimize_model(str(folder / "plain.onnx"), "bert", num_heads=4, hidden_size=32, opt_level=0)
    optimised.save_model_to_file(str(folder / "fused.onnx"))
    return folder / "fused.onnx"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("faulty", [False, True])
def test_the_layers_of_an_optimised_transformer_are_compared_inside_its_attention(trace, tmp_path, faulty):
    sample = MODELS["bert"]()
    name = "bert.encoder.layer.1.attention.self.key"
    bad = copy.deepcopy(sample.model)
    if faulty:
        bad.get_submodule(name).weight.data[3] *= 1.5
    path = _fused(bad, sample.inputs, tmp_path)
    assert {node.op_type for node in onnx.load(path).graph.node} >= {"Attention", "SkipLayerNormalization"}
    report = trace(sample.model, path, sample.inputs)
    assert report.agrees is not faulty
    assert report.coverage.folded == 0
    if faulty:
        assert [d.layer for d in report.divergences] == [name]
        assert (report.diagnoses[0].cause, report.diagnoses[0].verified) == ("weights", True)


def _fused_in_eight_bits(model, inputs, folder):
    """BERT as it is deployed: fused by ONNX Runtime's optimiser, then quantised dynamically."""
    options = {"DefaultTensorType": TensorProto.FLOAT}
    quantize_dynamic(_fused(model, inputs, folder), folder / "int8.onnx", extra_options=options)
    return onnx.load(folder / "int8.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("faulty", [False, True])
def test_the_layers_of_a_quantised_transformer_are_compared_inside_its_attention(trace, tmp_path, faulty):
    """The fused node masks with -10,000 where the model has -3.4e38: what the mask hides is the same."""
    sample = MODELS["bert"]()
    name = "bert.encoder.layer.1.attention.self.key"
    bad = copy.deepcopy(sample.model)
    if faulty:
        bad.get_submodule(name).bias.data[5] += 2.0
    proto = _fused_in_eight_bits(bad, sample.inputs, tmp_path)
    assert "QAttention" in {node.op_type for node in proto.graph.node}
    report = trace(sample.model, proto, sample.inputs)
    assert [d.layer for d in report.divergences] == ([name] if faulty else [])
    assert [d.cause for d in report.diagnoses] == (["weights"] if faulty else [])
    assert report.diffuse.format == "int8"
    differing = [w.parameter for w in report.weights if w.verdict is not WeightVerdict.AGREES]
    assert differing == ([f"{name}.bias"] if faulty else [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("faulty", [False, True])
def test_the_weights_of_a_quantised_recurrent_layer_are_the_models(trace, tmp_path, faulty):
    model, x = fill(_Recurrent(both=True)).eval(), noise("unfuse.recurrent", 6, 2, 12)
    bad = copy.deepcopy(model)
    if faulty:
        bad.one.weight_hh_l0_reverse.data *= 1.5
    onnx.save(export(bad, (x,), Exporter.TORCHSCRIPT), tmp_path / "fp32.onnx")
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    report = trace(model, tmp_path / "int8.onnx", x)
    assert [d.layer for d in report.divergences] == (["one"] if faulty else [])
    differing = [w.parameter for w in report.weights if w.verdict is not WeightVerdict.AGREES]
    assert differing == (["one.weight_hh_l0_reverse"] if faulty else [])


def test_a_fused_node_that_is_not_made_as_its_definition_says_stays_whole():
    """A file from anywhere may hold it; the runtime refuses it, in its own words."""
    packed = {"K": 64, "N": 6, "bits": 4, "block_size": 32}
    nodes = [
        helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft", **packed),
        helper.make_node("MatMulNBits", ["x", "w", "w"], ["y"], domain="com.microsoft", **packed),
        helper.make_node("MatMulNBits", ["x", "w", "w"], ["y"], domain="com.microsoft", **packed | {"block_size": 0}),
        helper.make_node("MatMulNBits", ["x", "w", "w"], ["y"], domain="com.microsoft", **packed | {"N": 1 << 40}),
        helper.make_node("Attention", ["x", "w"], ["y"], domain="com.microsoft"),
        helper.make_node("Attention", ["x", "v"], ["y"], domain="com.microsoft", num_heads=2),
        helper.make_node("MatMulIntegerToFloat", ["x", "w"], ["y"], domain="com.microsoft"),
        helper.make_node("SkipLayerNormalization", ["x"], ["y"], domain="com.microsoft"),
    ]
    arrays = {"w": RNG.standard_normal((8, 24)), "v": RNG.standard_normal(24)}
    for node in nodes:
        model = _model(node, {n: a for n, a in arrays.items() if n in node.input}, [2, 5, 8], 3)
        assert [made.op_type for made in unfused(model).graph.node] == [node.op_type]


def test_integers_that_are_not_scaled_as_dynamic_quantisation_does_stay_as_they_are(tmp_path):
    model, x = fill(nn.Sequential(nn.Linear(8, 4))), noise("unfuse.plain", 2, 8)
    onnx.save(export(model, (x,), Exporter.TORCHSCRIPT), tmp_path / "fp32.onnx")
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    healthy = onnx.load(tmp_path / "int8.onnx")
    assert unfused(healthy) is not healthy

    def changed(op, change):
        proto = onnx.ModelProto()
        proto.CopyFrom(healthy)
        change(next(node for node in proto.graph.node if node.op_type == op))
        return proto

    for proto in (
        changed("MatMulInteger", lambda node: node.input.__delitem__(slice(1, None))),
        changed("DynamicQuantizeLinear", lambda node: node.output.__delitem__(slice(2, None))),
        changed("Cast", lambda node: node.attribute[0].__setattr__("i", TensorProto.DOUBLE)),
        changed("Mul", lambda node: node.input.pop()),
    ):
        assert unfused(proto) is proto


@pytest.mark.filterwarnings("ignore")
def test_an_optimised_transformer_in_half_precision_only_rounds(trace, tmp_path):
    sample = MODELS["bert"]()
    onnx.save(export(sample.model, sample.inputs, Exporter.TORCHSCRIPT), tmp_path / "plain.onnx")
    optimised = optimizer.optimize_model(str(tmp_path / "plain.onnx"), "bert", num_heads=4, hidden_size=32, opt_level=0)
    optimised.convert_float_to_float16(keep_io_types=True)
    assert {node.op_type for node in optimised.model.graph.node} >= {"Attention"}
    report = trace(sample.model, optimised.model, sample.inputs)
    assert report.divergences == ()
    assert report.diffuse.format == "float16"
