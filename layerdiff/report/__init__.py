"""Reports: what a trace found, and the views of it. Views only read."""

from layerdiff.report.archive import load
from layerdiff.report.record import Report

__all__ = ["Report", "load"]
