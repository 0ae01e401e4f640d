"""Mutations of models and reports: of their bytes, and of what the bytes mean."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

if TYPE_CHECKING:
    import random

_NUMBERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"), 0.5)
_TEXTS = (
    "",
    "x",
    "y",
    "/",
    "../x",
    "/etc/passwd",
    "a" * 3000,
    "é漢\u202e",
    "\x00",
    "If",
    "Loop",
    "Conv",
    "ai.onnx",
    "[bold]",
)
_SPLICES = (b"", b"\x00", b"\xff" * 9, b"\x80" * 12, b"\x08\x96\x01", bytes(64))
_MOST_MUTATIONS = 4
DEEPENED = 0.05
_DEEP = (2, 8, 25)
_MARKUP = (
    "<img src=x onerror=alert(1)>",
    "[red]$x^2$[/red]",
    "'\"><b>",
    "a\nb: c",
    "$\\frac{$",
    "&amp;{}",
    "-Infinity",
)
_JSON = (
    None, True, False, 0, -1, 1e308, 10**30, "", "NaN", "Infinity", "diverges", [], {}, [[]], {"a": {}}, [None],
    "x" * 5000, "</script><script>alert(1)</script>", "__import__('os')",
)  # fmt: skip


def model_bytes(seed: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A mutated model: two times in three its messages are changed, else its bytes."""
    if rng.random() < 1 / 3:
        return _bytes(seed, others, rng)
    try:
        return model_fields(seed, others, rng)
    except (ValueError, DecodeError):  # a text that is no UTF-8, or a message that is too deep
        return _bytes(seed, others, rng)


def model_fields(seed: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A model whose messages are changed.

    Raises
    ------
    ValueError, DecodeError
        The seed is no model, or what came out cannot be written as one.

    """
    model = onnx.ModelProto.FromString(seed)
    for _ in range(rng.randint(1, _MOST_MUTATIONS)):
        rng.choice((_field, _field, _field, _rename, _nodes, _graft))(model, others, rng)
    if rng.random() < DEEPENED:
        _deepen(model, rng)
    return model.SerializeToString()


def report_text(seed: str, others: list[str], rng: random.Random) -> str:
    """A mutated report: two times in three its values are changed, else its text."""
    if rng.random() < 1 / 3:
        return _bytes(seed.encode(), [other.encode() for other in others], rng).decode("utf-8", "surrogateescape")
    return report_values(seed, rng)


def report_values(seed: str, rng: random.Random) -> str:
    """A report whose values are changed.

    Raises
    ------
    ValueError, RecursionError
        The seed is no JSON, or too deep.

    """
    content = json.loads(seed)
    for _ in range(rng.randint(1, _MOST_MUTATIONS)):
        _json(content, rng)
    return json.dumps(content)


def _bytes(seed: bytes, others: list[bytes], rng: random.Random) -> bytes:
    found = bytearray(seed)
    for _ in range(rng.randint(1, _MOST_MUTATIONS)):
        at = rng.randrange(len(found)) if found else 0
        kind = rng.randrange(6)
        if kind == 0 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            found[at:at] = rng.choice(_SPLICES)
        elif kind == 3:
            del found[at : at + rng.randint(1, 40)]
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            found[at : at + rng.randint(0, 60)] = other[start : start + rng.randint(1, 200)]
        elif found:
            found[at] = rng.randrange(256)
    return bytes(found)


def _messages(message: Message) -> list[Message]:
    """A message and all inside it."""
    found = [message]
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if _repeated(field) else [value]:
                found += _messages(inner)
    return found


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _names(model: onnx.ModelProto) -> list[str]:
    found = [t.name for t in model.graph.initializer] + [p.name for p in (*model.graph.input, *model.graph.output)]
    found += [name for n in model.graph.node for name in (*n.input, *n.output)]
    return found or ["x"]


def _scalar(field: FieldDescriptor, model: onnx.ModelProto, rng: random.Random) -> Any:
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(_names(model)) if rng.random() < 0.5 else rng.choice(_TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice((b"", b"\x00" * 3, b"\xff" * 64, rng.choice(_TEXTS).encode()))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    number = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.randint(-4, 30)
    if field.type == FieldDescriptor.TYPE_INT32:
        return max(-(2**31), min(2**31 - 1, number))
    return abs(number) if field.type == FieldDescriptor.TYPE_UINT64 else number


def _field(model: onnx.ModelProto, others: list[bytes], rng: random.Random) -> None:
    """Change, drop, repeat or reorder one field of one message."""
    del others
    message = rng.choice(_messages(model))
    fields = list(message.DESCRIPTOR.fields)
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present) if present and rng.random() < 0.8 else rng.choice(fields)
    if not _repeated(field):
        if rng.random() < 0.25 or field.type == FieldDescriptor.TYPE_MESSAGE:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _scalar(field, model, rng))
        return
    items = getattr(message, field.name)
    if len(items) and rng.random() < 0.3:
        del items[rng.randrange(len(items))]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if len(items):
            items.add().CopyFrom(rng.choice(list(items)))
        if len(items) > 1 and rng.random() < 0.5:
            order = list(items)
            rng.shuffle(order)
            order = [copy.deepcopy(item) for item in order]
            del items[:]
            items.extend(order)
    elif len(items) and rng.random() < 0.7:
        items[rng.randrange(len(items))] = _scalar(field, model, rng)
    else:
        items.append(_scalar(field, model, rng))


def _rename(model: onnx.ModelProto, others: list[bytes], rng: random.Random) -> None:
    """Make two tensors one: cycles, names that are made twice, initializers that are outputs."""
    del others
    if not model.graph.node:
        return
    chosen = rng.choice(model.graph.node)
    side = rng.choice((chosen.input, chosen.output))
    if side:
        side[rng.randrange(len(side))] = rng.choice(_names(model))


def _nodes(model: onnx.ModelProto, others: list[bytes], rng: random.Random) -> None:
    """Drop, swap or repeat nodes."""
    del others
    nodes = model.graph.node
    if not nodes:
        return
    kind = rng.randrange(3)
    if kind == 0:
        del nodes[rng.randrange(len(nodes))]
    elif kind == 1:
        nodes.add().CopyFrom(rng.choice(list(nodes)))
    else:
        nodes[rng.randrange(len(nodes))].op_type = rng.choice(list(nodes)).op_type


def _graft(model: onnx.ModelProto, others: list[bytes], rng: random.Random) -> None:
    """Put a part of another model in."""
    other = onnx.ModelProto.FromString(rng.choice(others))
    parts = [
        m
        for m in _messages(other)
        if m.DESCRIPTOR.name in ("NodeProto", "TensorProto", "ValueInfoProto", "FunctionProto")
    ]
    part: Any = rng.choice(parts) if parts else None
    if isinstance(part, onnx.NodeProto):
        model.graph.node.append(part)
    elif isinstance(part, onnx.TensorProto):
        model.graph.initializer.append(part)
    elif isinstance(part, onnx.ValueInfoProto):
        rng.choice((model.graph.input, model.graph.output, model.graph.value_info)).append(part)
    elif isinstance(part, onnx.FunctionProto):
        model.functions.append(part)


def _deepen(model: onnx.ModelProto, rng: random.Random) -> None:
    """Put the graph inside If branches, one in the other."""
    for _ in range(rng.choice(_DEEP)):  # protobuf reads 100 levels of messages: about 30 of subgraphs
        inner = onnx.GraphProto()
        inner.CopyFrom(model.graph)
        del inner.input[:]
        node = onnx.helper.make_node("If", [_names(model)[0]], [port.name for port in model.graph.output])
        node.attribute.append(onnx.AttributeProto(name="then_branch", type=onnx.AttributeProto.GRAPH, g=inner))
        del model.graph.node[:]
        del model.graph.initializer[:]
        model.graph.node.append(node)


def _alike(value: Any, rng: random.Random) -> Any:
    """Another value of the type of one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((0, 1, -1, 3, 10**9, -(2**63), 10**40))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, 1e-300, 1e300, "NaN", "Infinity", "-Infinity", 7))
    if isinstance(value, str):
        return rng.choice((*_TEXTS, *_MARKUP, value * 3))
    if isinstance(value, list):
        return rng.choice(([], value * 2, value[1:], value[::-1]))
    if isinstance(value, dict):
        return {key: value[key] for key in rng.sample(list(value), len(value))}
    return value


def _json(content: Any, rng: random.Random) -> None:
    """Change one value somewhere in plain data."""
    places: list[tuple[Any, Any]] = []
    todo = [content]
    while todo:
        container = todo.pop()
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        places += [(container, key) for key in keys]
        todo += [container[key] for key in keys if isinstance(container[key], (dict, list))]
    if not places:
        return
    container, key = rng.choice(places)
    if rng.random() < 0.6:  # of the same type: what is loaded is also shown
        container[key] = _alike(container[key], rng)
        return
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1:
        other, name = rng.choice(places)
        if name in other if isinstance(other, dict) else name < len(other):
            container[key] = copy.deepcopy(other[name])
    elif kind == 2:
        deep: Any = rng.choice(_JSON)
        for _ in range(rng.choice((1, 50, 400))):
            deep = [deep] if rng.random() < 0.5 else {"k": deep}
        container[key] = deep
    elif kind == 3 and isinstance(container, dict):
        container[rng.choice(_TEXTS)] = container.pop(key)
    else:
        container[key] = rng.choice(_JSON)
