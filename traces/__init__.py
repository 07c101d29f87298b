"""Workloads and reference facts, with their loaders."""
