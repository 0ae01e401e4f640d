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
    """The module of the first tensor of the file, in its order, that is out of Polygraphy's default tolerance."""
    results = _compared(proto, inputs, fresh)
    return _verdict([name for name, passed in results.items() if not passed], results, model, proto, fresh)


def polygraphy_read_back(model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh) -> Verdict:
    """As `polygraphy_mark_all`, by a reader who wonders about tensors that have no counterpart.

    Of those that lead up to the first failed tensor, the first is blamed: an operator of another type has another name.
    """
    results = _compared(proto, inputs, fresh)
    failed = [name for name, passed in results.items() if not passed]
    return _verdict([*_leading_to(failed[:1], results, proto), *failed], results, model, proto, fresh)


def _compared(proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh) -> dict[str, bool]:
    """Whether each tensor that both files have passed, in the order of the file.

    `polygraphy run bad.onnx --onnxrt --onnx-outputs mark all --save-outputs ...` for either file and the comparison of
    the two, done by its Python API. Inputs and final outputs are paired by position, since names may differ.
    """
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        actual, expected = _outputs(proto, inputs), _outputs(fresh.proto, inputs)
        ends = {a.name: e.name for a, e in zip(proto.graph.output, fresh.proto.graph.output, strict=True)}
        both = set(actual[0][1][0]) & set(expected[0][1][0])
        match = {name: [ends.get(name, name)] for name in (*both, *ends)}
        func = SimpleCompareFunc(
            find_output_func=lambda name, *_: match.get(name, []),
            infinities_compare_equal=True,  # masks are -inf on both sides
        )
        (pairs,) = Comparator.compare_accuracy([actual, expected], compare_func=func)[0].values()
    return {name: bool(result) for name, result in pairs[0].items()}


def _verdict(
    suspects: list[str], results: dict[str, bool], model: nn.Module, proto: onnx.ModelProto, fresh: Fresh
) -> Verdict:
    if not suspects:
        return Verdict(agrees=True)
    if set(results) <= {value.name for value in proto.graph.output}:
        return Verdict(agrees=False)
    layers = layers_of_tensors(model, proto, fresh.proto)
    return Verdict(agrees=False, layer=next((layers[name] for name in suspects if name in layers), None))


def _leading_to(failed: list[str], results: dict[str, bool], proto: onnx.ModelProto) -> list[str]:
    """The tensors without a counterpart from which these are computed, up to those that were compared."""
    makers = {name: node for node in proto.graph.node if node.op_type != "Constant" for name in node.output}
    found, queue = set(), [makers[name] for name in failed]
    while queue:
        for name in queue.pop().input:
            if name in makers and name not in results and name not in found:
                found.add(name)
                queue.append(makers[name])
    return [name for name in makers if name in found]


def _outputs(proto: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> Any:
    """Every tensor of a file, as Polygraphy's `RunResults`."""
    from polygraphy import constants
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator

    marked = ModifyOutputs(proto, outputs=constants.MARK_ALL, copy=True)
    feed = {value.name: x.numpy() for value, x in zip(proto.graph.input, inputs, strict=True)}
    return Comparator.run([OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(marked)))], data_loader=[feed])
