"""Write a model beside others without ever leaving half a file: checked in a folder of its own, then moved."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx.checker
import onnx.shape_inference
from onnx.external_data_helper import load_external_data_for_tensor, set_external_data, uses_external_data

from layerdiff.errors import RepairError
from layerdiff.files import place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.live import Source

# Protobuf refuses messages of 2 GiB; a model that comes near keeps its weights outside.
_LARGEST = 2**31 - 2**24
_INLINE_BELOW = 1024  # bytes; what runtimes need for shapes stays in the file
_ALIGNMENT = 4096  # runtimes map weights into memory by pages


def structure(source: Source) -> onnx.ModelProto:
    """A model, its external data left where it is."""
    if isinstance(source, onnx.ModelProto):
        return source
    return onnx.load_model(source, load_external_data=False)


def with_shapes(model: onnx.ModelProto, before: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the shapes of its inside inferred anew.

    Where the change contradicts what the file declares of its outputs (a wrong axis gave a wrong shape), only the rank
    of the outputs stays declared.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    inferred = _inferred(bare, strict=True)
    if inferred is None and _inferred(before, strict=True) is not None:
        for port in bare.graph.output:
            for dim in port.type.tensor_type.shape.dim:
                dim.Clear()
    inferred = inferred or _inferred(bare, strict=False) or bare
    if not model.graph.value_info:
        del inferred.graph.value_info[:]
    return inferred


def _inferred(model: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto | None:
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Draft:
    """A finished file in a folder of its own, not yet where it belongs."""

    path: Path
    target: Path
    data: str

    def publish(self) -> None:
        """Move it to its target, in one step for whoever reads there."""
        weights = self.path.with_name(self.data)
        if weights.exists():
            place(weights, self.target.with_name(self.data))  # first: the model that refers to it comes after
        place(self.path, self.target)


@contextmanager
def drafted(model: onnx.ModelProto, target: Path, source: Source) -> Iterator[Draft]:
    """A draft of a file; what is not published by the end of the block is gone."""
    target = target.resolve()  # a link stays a link
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        draft = Draft(folder / target.name, target, _free_name(target))
        if _needs_data_file(model):
            _move_out(model, folder / draft.data, source)
        draft.path.write_bytes(model.SerializeToString())
        draft.path.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
        yield draft
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check(path: Path, source: Source) -> tuple[str, ...]:
    """A sentence, where the checker refuses the file and refused the one before, too.

    Raises
    ------
    RepairError
        The checker refuses the corrected file only.

    """
    problem = _problem(path)
    if problem is None:
        return ()
    if _problem(source) is None:
        raise RepairError(f"the corrected graph is not valid ONNX ({problem}); nothing was written")
    return (f"onnx.checker refuses the file, and refused it before: {problem}",)


def _problem(source: Source) -> str | None:
    try:
        onnx.checker.check_model(source if isinstance(source, onnx.ModelProto) else str(source), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return None


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)


def _needs_data_file(model: onnx.ModelProto) -> bool:
    tensors = list(_tensors(model.graph))
    return any(uses_external_data(t) for t in tensors) or sum(len(t.raw_data) for t in tensors) > _LARGEST


def _move_out(model: onnx.ModelProto, data: Path, source: Source) -> None:
    """Write the weights to a file beside the model, one at a time."""
    with data.open("wb") as file:
        for tensor in _tensors(model.graph):
            if uses_external_data(tensor):
                folder = "" if isinstance(source, onnx.ModelProto) else str(Path(source).parent)
                load_external_data_for_tensor(tensor, folder)
            elif len(tensor.raw_data) < _INLINE_BELOW:
                continue
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            set_external_data(tensor, data.name, file.tell(), len(tensor.raw_data))
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
    data.chmod(0o644)


def _free_name(target: Path) -> str:
    """A name for the data file that none has, so that a model which is already there stays whole until the end."""
    name, number = f"{target.name}.data", 1
    while (target.parent / name).exists():
        number += 1
        name = f"{target.name}.{number}.data"
    return name
