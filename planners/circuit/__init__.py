"""circuit: which qubits are local when, and which gates run in one kernel, to simulate a quantum circuit.

Paper: Atlas: Hierarchical Partitioning for Quantum Circuit Simulation on GPUs (arXiv 2408.09055): staging ILP
    min s, then sum_k |Q_k local - Q_k-1 local| + c |Q_k global - Q_k-1 global|, non-insular qubits of stage k local;
and kernels that minimise sum of costs, each a dense fusion of few qubits or a tile of 2^10 amplitudes with many gates.
Reading order: ir, gateset, qasm, generators, problem, load; dag, windows, schedule, ilp, staging, layouts; kernels,
frontier, segments, kernelize, exact, kernelbound, portfolio; costs, planning, check, words.

Deviations: insularity and commutation come from matrices, not names; the fewest stages are proven by an energy bound,
the ILP runs only where bound and schedule do not meet; layouts are realised exactly; kernels are searched as paths of
down-sets, in both directions, beside the paper's DP; no pass moves a gate past one it does not commute with.
"""

from planners.circuit.check import check
from planners.circuit.ir import Circuit, Gate
from planners.circuit.planning import PLANNERS, bound, plan
from planners.circuit.problem import (
    Kernel,
    KernelLimits,
    KernelTable,
    Machine,
    Plan,
    Problem,
    Proof,
    Source,
    Stage,
)
from planners.circuit.words import comparison, decision, headline, in_words, predicted

__all__ = ["PLANNERS", "Circuit", "Gate", "Kernel", "KernelLimits", "KernelTable", "Machine", "Plan", "Problem",
           "Proof", "Source", "Stage", "bound", "check", "comparison", "decision", "headline", "in_words", "plan",
           "predicted"]
