"""Inputs of text models: rows of token numbers, with their masks, compared row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from layerdiff.preprocessing.comparison import InputMismatch
from layerdiff.preprocessing.token_rows import row_changes

Array = np.ndarray[Any, Any]
Inputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of tokens without their padding, and how they are padded."""

    rows: tuple[Array, ...]
    side: str  # "right", "left", or "" where nothing is padded
    pad: int | None
    length: int

    @property
    def setting(self) -> dict[str, Any]:
        """As plain data."""
        return {"side": self.side or None, "pad": self.pad, "length": self.length}


def are_tokens(expected: Inputs, actual: Inputs) -> bool:
    """Whether these are inputs of a text model: whole numbers in rows, none of them a picture."""
    both = [*expected.items(), *actual.items()]
    whole = all((a.dtype.kind in "iub" or "mask" in name) and a.ndim in (1, 2) for name, a in both)
    return whole and not all(a.dtype == np.uint8 or a.dtype.kind == "f" for _, a in both)


def compare_tokens(expected: Inputs, actual: Inputs) -> tuple[InputMismatch, ...]:
    """What differs in the tokens of both sides, the numbers first, then the masks that go with them."""
    found: list[InputMismatch] = []
    ours, theirs = _ids(expected), _ids(actual)
    rebuilt: Array | None = None
    if ours is not None and theirs is not None:
        e, a = expected[ours], actual[theirs]
        order = _row_order(e, a)
        if order is not None:
            found, actual = _reordered(order, (ours, theirs), expected, actual)
            a = actual[theirs]
        if e.shape != a.shape or not np.array_equal(e, a):
            steps = _of_rows(_rows(e, _mask(expected)), _rows(a, _mask(actual)), ours)
            found += steps
            rebuilt = e if all(s.verified for s in steps) else None
        if e.dtype != a.dtype:
            found.append(_typed(e, a, ours))
    for name, array in expected.items():
        if name == ours:
            continue
        if name not in actual:
            found.append(_missing(name, expected, ours))
        elif array.shape != actual[name].shape or not np.array_equal(array, actual[name]):
            found += _of_mask(name, expected, actual, (ours, theirs), padded=rebuilt is not None)
        elif array.dtype != actual[name].dtype:
            found.append(_typed(array, actual[name], name))
    return tuple(found)


def _ids(inputs: Inputs) -> str | None:
    """The name of the tokens themselves: the input with the most different numbers, by its usual name if it has one."""
    named = [name for name in inputs if name.endswith("input_ids") or name in ("ids", "tokens", "")]
    rest = [name for name in inputs if "mask" not in name and "type" not in name and "position" not in name]
    options = named or rest or list(inputs)
    return max(options, key=lambda name: np.unique(inputs[name]).size, default=None)


def _mask(inputs: Inputs) -> Array | None:
    return next((array != 0 for name, array in inputs.items() if "attention_mask" in name), None)


def _row_order(expected: Array, actual: Array) -> list[int] | None:
    """Which rows of the candidate are the expected ones, where it has the same in another order; else None."""
    if expected.ndim != 2 or expected.shape != actual.shape or np.array_equal(expected, actual):
        return None
    places: dict[bytes, list[int]] = {}
    for n, row in enumerate(actual.astype(np.int64)):
        places.setdefault(row.tobytes(), []).append(n)
    found = [places.get(row.tobytes(), []) for row in expected.astype(np.int64)]
    return [place.pop(0) for place in found] if all(map(len, places.values())) and _each_once(found) else None


def _each_once(found: list[list[int]]) -> bool:
    """Whether every row has a place of its own: equal rows share a list of as many places."""
    counts = Counter(id(place) for place in found)
    return all(len(place) == counts[id(place)] for place in found)


def _reordered(
    order: list[int], ids: tuple[str, str], expected: Inputs, actual: Inputs
) -> tuple[list[InputMismatch], dict[str, Array]]:
    """The rows in another order, and the candidate's inputs with the rows as they are wanted where that is all."""
    found, right = [], dict(actual)
    for name, array in actual.items():
        wanted = expected.get(ids[0] if name == ids[1] else name)
        moved = array[order] if array.ndim and len(array) == len(order) else array
        if wanted is not None and wanted.shape == moved.shape and np.array_equal(wanted, moved):
            right[name] = moved
            if not np.array_equal(wanted, array):
                told = ids[0] if name == ids[1] else name
                text = f"the rows are in another order: wanted {', '.join(map(str, order[:12]))}"
                parameters = {"how": "row-order", "order": order}
                found.append(InputMismatch("tokens", parameters, f"x = x[{order}]", text, verified=True, name=told))
    return found, right


def _rows(ids: Array, mask: Array | None) -> Rows:
    """The rows without padding: what a mask leaves out, or one number at the same end of every row."""
    table = np.atleast_2d(ids)
    keep = None if mask is None or np.atleast_2d(mask).shape != table.shape else np.atleast_2d(mask)
    if keep is None or keep.all():
        return _by_value(table)
    # The mask may be of another padding: believe it only where it leaves out one number, at one end.
    left_out = np.unique(table[~keep])
    starts, ends = keep[:, 0].all(), keep[:, -1].all()
    if left_out.size != 1 or not (starts or ends):
        return _by_value(table)
    rows = tuple(row[use] for row, use in zip(table, keep, strict=True))
    return Rows(rows, "right" if starts else "left", int(left_out[0]), table.shape[1])


def _by_value(table: Array) -> Rows:
    """Padding without a mask: a run of one number, at least two long in some row, at one end of the rows."""
    for side, at, step in (("right", -1, -1), ("left", 0, 1)):
        values, counts = np.unique(table[:, at], return_counts=True)
        pad = int(values[np.argmax(counts)])
        runs = [int(np.argmin(np.r_[row[::step] == pad, False])) for row in table]
        if (
            max(runs) >= 2
            and max(runs) < table.shape[1] + 1
            and (table.shape[0] == 1 or min(runs) < max(runs) or pad == 0)
        ):
            cut = [row[: len(row) - n] if side == "right" else row[n:] for row, n in zip(table, runs, strict=True)]
            return Rows(tuple(cut), side, pad, table.shape[1])
    return Rows(tuple(table), "", None, table.shape[1])


def _of_rows(expected: Rows, actual: Rows, name: str) -> list[InputMismatch]:
    """The mismatches of the tokens; those of the padding come last, as they are applied."""
    if len(expected.rows) != len(actual.rows):
        text = f"{len(actual.rows)} rows of tokens, wanted {len(expected.rows)}"
        parameters = {"expected": len(expected.rows), "actual": len(actual.rows), "how": "rows"}
        return [InputMismatch("tokens", parameters, "", text, verified=False, name=name)]
    pairs = list(zip(expected.rows, actual.rows, strict=True))
    changes = row_changes(pairs, name)
    padding = []
    if expected.setting != actual.setting and (changes or expected.setting != actual.setting):
        padding = [_padding(expected, actual, name)] if _matters(expected, actual, changes) else []
    if not all(c.verified for c in changes):
        return changes
    found = [*changes, *padding]
    if found:  # rows first, the table again at the end: whichever mismatch comes first and last carries that
        fill = expected.pad if expected.pad is not None else (actual.pad or 0)
        if found[0].code:
            found[0] = replace(found[0], code=f"{_taken_apart(actual)}\n{found[0].code}")
        if not padding and found[-1].code:
            found[-1] = replace(found[-1], code=f"{found[-1].code}\n{_filled(expected, fill)}")
    return found


def _matters(expected: Rows, actual: Rows, changes: Sequence[InputMismatch]) -> bool:
    """Whether the padding itself differs, and not only its amount because rows have another length."""
    if expected.side and actual.side:
        return (expected.side, expected.pad) != (actual.side, actual.pad) or expected.length != actual.length
    if expected.length == actual.length:
        return False
    longest = max(len(row) for row in expected.rows) - max(len(row) for row in actual.rows)
    return not changes or expected.length - actual.length != longest


def _padding(expected: Rows, actual: Rows, name: str) -> InputMismatch:
    parts = []
    if expected.side and actual.side and expected.side != actual.side:
        parts.append(f"padded on the {actual.side}, wanted on the {expected.side}")
    if expected.pad != actual.pad and expected.side and actual.side:
        parts.append(f"padded with {actual.pad}, wanted {expected.pad}")
    if expected.length != actual.length:
        parts.append(f"padded to {actual.length} tokens, wanted {expected.length}")
    fill = expected.pad if expected.pad is not None else (actual.pad or 0)
    parameters = {"how": "padding", "expected": expected.setting, "actual": actual.setting}
    return InputMismatch("tokens", parameters, _filled(expected, fill), " and ".join(parts), verified=True, name=name)


def _filled(expected: Rows, fill: int) -> str:
    """The code that pads rows as they are wanted."""
    at = "len(row) - len(tokens) :" if expected.side == "left" else ": len(tokens)"
    return (
        f"x = np.full((len(rows), {expected.length}), {fill})\nfor row, tokens in zip(x, rows):\n    row[{at}] = tokens"
    )


def _taken_apart(actual: Rows) -> str:
    """The code that makes rows without padding of the candidate's table."""
    if not actual.side or actual.pad is None:
        return "rows = list(np.atleast_2d(x))"
    if not any((row == actual.pad).any() for row in actual.rows):
        return f"rows = [row[row != {actual.pad}] for row in np.atleast_2d(x)]"
    lengths = [len(row) for row in actual.rows]
    at = "row[len(row) - n :]" if actual.side == "left" else "row[:n]"
    return f"rows = [{at} for row, n in zip(np.atleast_2d(x), {lengths})]"


def tokens_script(found: Sequence[InputMismatch]) -> str:
    """The mismatches as functions to paste, one for each input; nothing where something cannot be undone."""
    if not found or not all(m.code for m in found):
        return ""
    texts = []
    for name in dict.fromkeys(m.name for m in found):
        lines = [line for m in found if m.name == name for line in m.code.split("\n")]
        body = "".join(f"    {line}\n" for line in [*lines, "return x"])
        label = "".join(c if c.isalnum() else "_" for c in name)
        texts.append(f"def corrected{'_' if label else ''}{label}(x):\n{body}")
    return "import numpy as np\n\n\n" + "\n\n".join(texts)


def _of_mask(
    name: str, expected: Inputs, actual: Inputs, ids: tuple[str | None, str | None], *, padded: bool
) -> list[InputMismatch]:
    """What differs in a mask or another input beside the tokens; nothing where it follows from the padding."""
    e, a = expected[name], actual[name]
    if padded and _follows(e, a, expected, actual, ids):
        return []
    if e.shape == a.shape and a.dtype.kind == "f" and np.array_equal(a == 0, e != 0) and np.all(a <= 0):
        text = f"{name} is added to the scores, 0 where it counts and {a.min():g} elsewhere; wanted 1 and 0"
        return [_mask_told(name, "additive", text, f"x = (x == 0).astype(np.{e.dtype})")]
    if e.shape == a.shape and e.ndim == 2 and "mask" in name and np.array_equal(e, a[:, ::-1]):
        text = f"{name} is that of padding on the other side"
        return [_mask_told(name, "other-side", text, "x = x[:, ::-1]")]
    if e.shape == a.shape and e.dtype.kind in "biu":
        whole = a.astype(np.int64)
        if np.array_equal(e.astype(np.int64), 1 - whole):
            return [_mask_told(name, "inverted", f"{name} is inverted", "x = 1 - x")]
        if np.all(whole == 1) and "mask" in name:
            text = f"{name} is all ones: the padding is not masked"
            return [
                _mask_told(
                    name, "not-masked", text, f"x = ({ids[0] or 'input_ids'} != pad_token_id).astype(np.{e.dtype})"
                )
            ]
        if np.all(whole == 0):
            return [_mask_told(name, "zeros", f"{name} is all zeros", "")]
    text = f"{name} differs" + (
        f" in {int((e != a).sum())} places" if e.shape == a.shape else f": {a.shape}, wanted {e.shape}"
    )
    return [InputMismatch("tokens", {"how": "values"}, "", text, verified=False, name=name)]


def _mask_told(name: str, how: str, text: str, code: str) -> InputMismatch:
    return InputMismatch("tokens", {"how": how}, code, text, verified=True, name=name)


def _follows(e: Array, a: Array, expected: Inputs, actual: Inputs, ids: tuple[str | None, str | None]) -> bool:
    """Whether an input tells the same of the tokens of each side, wherever the padding lies."""
    told = []
    for array, inputs, name in ((e, expected, ids[0]), (a, actual, ids[1])):
        assert name is not None
        padding = _rows(inputs[name], _mask(inputs))
        table = np.atleast_2d(array)
        lengths = [len(row) for row in padding.rows]
        if table.shape != np.atleast_2d(inputs[name]).shape:
            return False
        told.append(
            [row[len(row) - n :] if padding.side == "left" else row[:n] for row, n in zip(table, lengths, strict=True)]
        )
    return all(len(np.unique(np.r_[x, y])) <= 1 or np.array_equal(x, y) for x, y in zip(*told, strict=True))


def _missing(name: str, expected: Inputs, ids: str | None) -> InputMismatch:
    plain = "mask" in name and bool(np.all(expected[name] == 1))
    code = f"x = np.ones_like({ids})" if plain and ids else ""
    text = f"{name} is not given" + (", so that padding counts" if "mask" in name and not plain else "")
    return InputMismatch("tokens", {"how": "missing"}, code, text, verified=True, name=name)


def _typed(expected: Array, actual: Array, name: str) -> InputMismatch:
    parameters = {"expected": str(expected.dtype), "actual": str(actual.dtype), "how": "type"}
    text = f"the numbers are {actual.dtype}, wanted {expected.dtype}"
    return InputMismatch("dtype", parameters, f"x = x.astype(np.{expected.dtype})", text, verified=True, name=name)
