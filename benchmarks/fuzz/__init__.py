"""Mutated models and reports: whatever comes in, a report or a LayerdiffError comes out."""
