"""Polygraphy: every tensor of the file against the same one of a new export, in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.rivals.scopes import layers_of_tensors
from benchmarks.rivals.verdict import Verdict

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from benchmarks.rivals.verdict import Fresh


def polygraphy_mark_all(model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh) -> Verdict:
    """The module of the first tensor of the file, in its order, that is out of Polygraphy's default tolerance.

    `polygraphy run bad.onnx --onnxrt --onnx-outputs mark all --save-outputs ...` for either file and the comparison of
    the two, done by its Python API. Inputs and final outputs are paired by position, since names may differ.
    """
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        actual, expected = _outputs(proto, inputs), _outputs(fresh.proto, inputs)
        ends = {a.name: e.name for a, e in zip(proto.graph.output, fresh.proto.graph.output, strict=True)}
        own = set(actual[0][1][0]) & set(expected[0][1][0]) - set(ends)
        match = {name: [ends.get(name, name)] for name in (*own, *ends)}
        func = SimpleCompareFunc(
            find_output_func=lambda name, *_: match.get(name, []),
            infinities_compare_equal=True,  # masks are -inf on both sides
        )
        compared = Comparator.compare_accuracy([actual, expected], compare_func=func)
    (results,) = compared[0].values()
    failed = [name for name, result in results[0].items() if not result]
    if not failed:
        return Verdict(agrees=True)
    if not own:
        return Verdict(agrees=False)
    layers = layers_of_tensors(model, proto, fresh.proto)
    return Verdict(agrees=False, layer=next((layers[name] for name in failed if name in layers), None))


def _outputs(proto: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> Any:
    """Every tensor of a file, as Polygraphy's `RunResults`."""
    from polygraphy import constants
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator

    marked = ModifyOutputs(proto, outputs=constants.MARK_ALL, copy=True)
    feed = {value.name: x.numpy() for value, x in zip(proto.graph.input, inputs, strict=True)}
    return Comparator.run([OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(marked)))], data_loader=[feed])
