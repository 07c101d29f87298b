"""orchestration: which kernels compute a tensor program, so that their measured times sum to the least.

Paper: Optimal Kernel Orchestration for Tensor Programs with Korch (arXiv 2406.09465): a program is split into
primitives; each connected group of them may be one kernel;  min sum_k c_k u_k  so that every output is stored and every
kernel finds its inputs stored; a primitive may run in several kernels.
Reading order: views, graph, candidates, problem, load; enumeration, fusion; work, pricing, blp, lazy; planning, check,
words, claims.

Deviations: kernels need not be convex (``cone``; ``convex`` is the paper's); alternatives of rewrites compete in one
program; whole components and the whole program are candidates; the program falls apart by itself, without hand-written
cuts; kernels are measured only when a plan could want them; a boundary's cost, fitted from whole programs, is added.
"""

from planners.orchestration.candidates import Candidate, Structure
from planners.orchestration.check import check
from planners.orchestration.graph import Primitive, PrimitiveGraph, Tensor
from planners.orchestration.planning import PLANNERS, bound, plan, profile
from planners.orchestration.problem import Kernel, Limits, Plan, Problem, Program
from planners.orchestration.words import comparison, decision, headline, in_words, predicted

__all__ = ["PLANNERS", "Candidate", "Kernel", "Limits", "Plan", "Primitive", "PrimitiveGraph", "Problem", "Program",
           "Structure", "Tensor", "bound", "check", "comparison", "decision", "headline", "in_words", "plan",
           "predicted", "profile"]
