"""Write the corrected file: apply what was proven, check it on other inputs and sizes, trace it again."""

from layerdiff.repair.story import repair

__all__ = ["repair"]
