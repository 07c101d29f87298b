"""Executors: the same study names; each simulates a plan on a virtual clock and runs it on a real one."""
