"""Cases that were missed, kept so that they can be looked at again: `--replay NAME`."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

import layerdiff
from benchmarks.judging import faults_of, judged

if TYPE_CHECKING:
    from benchmarks.faults import FaultyCase, FaultyPair
    from benchmarks.healthy import HealthyCase

    Case = FaultyCase | FaultyPair | HealthyCase

FOLDER = Path(__file__).parent / "out" / "misses"


def keep(case: Case) -> None:
    """The case in a file of its own; load only what you have made yourself, as with every pickle."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    packed = dataclasses.replace(case, proto=case.proto.SerializeToString())
    (FOLDER / f"{case.name}.pkl").write_bytes(pickle.dumps(packed))


def kept(name: str) -> Case:
    """The case of this name."""
    case = pickle.loads((FOLDER / f"{name}.pkl").read_bytes())
    return dataclasses.replace(case, proto=onnx.load_from_string(case.proto))


def forget() -> None:
    """Removes the misses of the run before."""
    for path in FOLDER.glob("*.pkl"):
        path.unlink()


def replay(name: str) -> None:
    """Prints what was planted and what the trace says now."""
    case = kept(name)
    for fault in faults_of(case):
        print(f"planted: {fault}")
    print(f"{judged(case)}\n")
    print(layerdiff.trace(case.model, case.proto, case.inputs, progress=False))
