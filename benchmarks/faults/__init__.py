"""Faulty exports with a known true layer, to score layerdiff on."""

from __future__ import annotations

from benchmarks.faults.cases import Foundry, generate
from benchmarks.faults.category import Category
from benchmarks.faults.fault import Fault, FaultyCase, FaultyPair
from benchmarks.faults.one_call import ONE_CALL_KINDS
from benchmarks.faults.registry import KINDS

__all__ = ["KINDS", "ONE_CALL_KINDS", "Category", "Fault", "FaultyCase", "FaultyPair", "Foundry", "generate"]
