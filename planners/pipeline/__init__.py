"""pipeline: which operators form which pipeline stages, on how many devices, with which micro-batches and schedule.

Paper: GraphPipe: Improving Performance and Scalability of DNN Training with Graph Pipeline Parallelism
(arXiv 2406.17145): minimise the bottleneck max_i TPS(S_i) over DAGs of convex stages that fit memory. Ours ranks
candidates of several bottlenecks and micro-batches by simulated iteration time.
Reading order: problem, graph, models, loaders, decomposition, inflight, layers, pricing, shape, work, reading,
probe, placing, clock, assembly, search, ranking, improving, planning; then baselines, bounds, replay, check, study,
claims.

Deviations: fewest devices in the dynamic program instead of a device count (stages are split over idle ones, some may
stay idle); a stage may join or fork branches; replicas share a micro-batch evenly; k > 1 and micro-batches of single
stages are tried on the simulated clock.
Not modelled: contention between flows of one device, tensor parallelism, recomputation.
"""

from planners.pipeline.assembly import decision, headline, in_words, predicted
from planners.pipeline.check import check
from planners.pipeline.planning import PLANNERS, bound, plan
from planners.pipeline.problem import Plan, Problem
from planners.pipeline.study import comparison

__all__ = ["PLANNERS", "Plan", "Problem", "bound", "check", "comparison", "decision", "headline", "in_words", "plan",
           "predicted"]
