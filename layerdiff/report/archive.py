"""Reports as files: JSON, read back without executing anything, written in one step.

NaN and Inf are not JSON: they are kept as the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from layerdiff.errors import InputError
from layerdiff.files import write_text
from layerdiff.report.record import Report

FORMAT = "layerdiff-report"
VERSION = 5
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain data, with the derived facts a script wants to read."""
    derived = {"agrees": report.agrees, "verdict": report.verdict}
    return {"format": FORMAT, "version": VERSION, **derived, **_plain(report)}


def save(report: Report, path: str | Path) -> Path:
    """Write a report; a file that is already there stays whole until the new one is complete."""
    target = Path(path)
    text = json.dumps(to_dict(report), indent=1, allow_nan=False)
    write_text(target, text)
    return target


def load(path: str | Path) -> Report:
    """The report in a file that `save` wrote.

    Raises
    ------
    InputError
        No such file, or not a report of this version.

    """
    source = Path(path)
    if not source.is_file():
        raise InputError(f"{source}: no such file; give a report that Report.save wrote")
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: not a layerdiff report ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{source}: JSON, but not a layerdiff report")
    if content.get("version") != VERSION:
        raise InputError(f"{source}: report version {content.get('version')!r}, this layerdiff reads {VERSION}")
    try:
        report = _built(Report, content, "report")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{source}: a layerdiff report with damaged content ({error})") from error
    assert isinstance(report, Report)
    return report


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.metadata.get("saved", True)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _built(wanted: Any, value: Any, where: str) -> Any:
    """A value of the wanted type from plain data; the types come from the dataclasses, never from the file."""
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(wanted) if option is not type(None)]
        return None if value is None else _built(options[0], value, where)
    if is_dataclass(wanted) and isinstance(wanted, type):
        given = _need(dict, value, where)
        hints = get_type_hints(wanted)
        saved = [f.name for f in fields(wanted) if f.metadata.get("saved", True)]
        missing = [name for name in saved if name not in given]
        if missing:
            raise TypeError(f"{where} has no {missing[0]!r}")
        return wanted(**{name: _built(hints[name], given[name], f"{where}.{name}") for name in saved})
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        if value not in [member.value for member in wanted]:
            raise ValueError(f"{where} is {_short(value)}, which is none of {', '.join(m.value for m in wanted)}")
        return wanted(value)
    if origin is tuple:
        inner = get_args(wanted)[0]
        items = enumerate(_need(list, value, where))
        return tuple(_built(inner, item, f"{where}[{index}]") for index, item in items)
    if origin is Mapping:
        inner = get_args(wanted)[1]
        return {key: _built(inner, item, f"{where}[{key!r}]") for key, item in _need(dict, value, where).items()}
    if wanted is float:
        known = _SPECIAL.get(value, value) if isinstance(value, str) else value
        return float(_need((int, float), known, where))
    if wanted is Any:
        return _unquoted(value)
    return _need(wanted, value, where)


def _need(wanted: Any, value: Any, where: str) -> Any:
    """The value, which must be of a type; True is no number."""
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        names = " or ".join(kind.__name__ for kind in (wanted if isinstance(wanted, tuple) else (wanted,)))
        raise TypeError(f"{where}: wanted {names}, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _unquoted(value: Any) -> Any:
    """Free data, with its NaN and Inf as numbers again."""
    if isinstance(value, list):
        return [_unquoted(item) for item in value]
    if isinstance(value, dict):
        return {key: _unquoted(item) for key, item in value.items()}
    return _SPECIAL.get(value, value) if isinstance(value, str) else value
