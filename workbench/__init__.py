"""The spine: spec -> problem -> plan -> outcome -> report. It names no study; studies are found by module name."""

__version__ = "0.1.0"
