"""Pairs of input tensors with known differences, made by real pipelines, and how often the exact chain is found."""
