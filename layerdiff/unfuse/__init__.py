"""A runtime's fused operators taken apart into the standard ones that define them."""

from layerdiff.unfuse.runtime import unfused

__all__ = ["unfused"]
