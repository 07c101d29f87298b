"""Planners: one module per study; each searches for a plan and proves how good it is."""
