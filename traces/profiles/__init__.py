"""Cost sources: each module turns one body of measurements into profile tables.

A module has a spec class ``Options`` and ``open(options) -> CostModel``; ``[costs] source = "<module>"`` selects it.
"""
