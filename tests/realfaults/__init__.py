"""Faults from public bug reports, re-created from their facts inside networks of at least eight layers."""

from __future__ import annotations

from tests.realfaults import arithmetic, indices, layers, norms, sequences, windows
from tests.realfaults.case import Case, RealFault

REAL_FAULTS: dict[str, RealFault] = {
    fault.name: fault for family in (windows, sequences, norms, arithmetic, indices, layers) for fault in family.FAULTS
}

__all__ = ["REAL_FAULTS", "Case", "RealFault"]
