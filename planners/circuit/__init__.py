"""Quantum circuit simulation in stages and kernels (Atlas, arXiv 2408.09055)."""

from planners.circuit.ir import Circuit, Gate
from planners.circuit.problem import Kernel, KernelTable, Machine, Plan, Problem, Source, Stage

__all__ = ["Circuit", "Gate", "Kernel", "KernelTable", "Machine", "Plan", "Problem", "Source", "Stage"]
