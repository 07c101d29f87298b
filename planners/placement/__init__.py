"""placement: which GPUs to rent, how to group them into replicas, which replica serves which workload type.

Paper: Demystifying Cost-Efficiency in LLM Serving over Heterogeneous GPUs (arXiv 2502.00722), equations 1-7:
    min T,  sum_c x_cw = 1,  sum_w x_cw f_w / (y_c h_cw) <= T,  sum_c o_c y_c <= B,  sum_c d_n(c) y_c <= a_n
The paper fixes T and bisects; ours is exact in one model, linear in theta = 1/T (``formulation``), solved by cutting
planes over y (``exact``). Reading order: problem, demand, layouts, configurations, instance, formulation, exact,
planning; then bisect and baselines, check, study (comparisons), replanning, shortage (infeasible problems).

Deviations: h from kernel times, not from runs of the engine; ties between optimal fleets go to the cheapest;
least cost at a required rate is the same model with objective and constraint exchanged.
Ignored, as in the paper: queueing and latency limits, start-up of replicas, eviction; mixed batches are taken to cost
the sum of their parts.
"""

from planners.placement.assembly import decision, predicted
from planners.placement.check import check
from planners.placement.planning import PLANNERS, bound, plan
from planners.placement.problem import Plan, Problem
from planners.placement.replanning import Switching, changes, replan
from planners.placement.study import comparison, pareto, robustness, what_if
from planners.placement.words import headline, in_words

__all__ = ["PLANNERS", "Plan", "Problem", "Switching", "bound", "changes", "check", "comparison", "decision",
           "headline", "in_words", "pareto", "plan", "predicted", "replan", "robustness", "what_if"]
