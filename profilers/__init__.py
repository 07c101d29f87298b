"""Profilers: one file per kernel family; each measures real kernels on the machine at hand."""
