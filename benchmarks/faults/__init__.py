"""Faulty exports with a known true layer, to score layerdiff on."""

from __future__ import annotations

from benchmarks.faults.cases import Foundry, generate
from benchmarks.faults.fault import Fault, FaultyCase
from benchmarks.faults.registry import KINDS

__all__ = ["KINDS", "Fault", "FaultyCase", "Foundry", "generate"]
