# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # pipeline: stages that form a graph, not a chain
#
# *GraphPipe* (arXiv 2406.17145): a model with branches need not be trained in a chain of stages. When stages form a
# DAG, branches run side by side, a micro-batch crosses fewer stages, and fewer activations are held. The planner is a
# dynamic program over series-parallel graphs; its candidates are ranked by simulated iteration time.

# %%
PAPER = False
DEVICES = (4, 8, 16, 32) if PAPER else (4, 8, 16)
BRANCHES = (2, 4, 8, 16) if PAPER else (2, 4, 8)

# %%
import tempfile
from pathlib import Path

from IPython.display import HTML

from workbench import plots
from workbench.job import open_job, resolve
from workbench.notebook import table
from workbench.outcome import side_by_side
from workbench.reproduce import reproduce
from workbench.study import load


def question(family, *, devices, batch, planner, **sizes):
    """A model of the paper on nodes of four GPUs of 16 GB; times from measured kernels of the A100."""
    return resolve({
        "study": "pipeline", "batch_samples": batch, "model": {"family": family, **sizes},
        "micro_batches": [1 << p for p in range(batch.bit_length()) if 1 << p <= 512],
        "cluster": {"devices": devices, "devices_per_machine": 4, "memory_bytes": 16e9,
                    "device": "A100-80G-SXM", "dtype": "bf16", "inside": {"latency_s": 1e-5, "bytes_per_s": 5e10},
                    "between": {"latency_s": 1e-5, "bytes_per_s": 12.5e9}},
        "costs": {"source": "aiconfigurator", "fallback": "analytic"}, "planner": {"name": planner}}, "this notebook")


# %% [markdown]
# ## The question, the plan, the proof
#
# Two branches of two layers and a join, on four devices.

# %%
job = open_job("pipeline")
plan = job.plan()
job.check(plan)
plan

# %%
simulated = job.simulate(plan)
HTML(plots.svg(plots.gantt(simulated.timeline), label="Gantt chart of one iteration"))

# %% [markdown]
# ## Against chains
#
# Iteration time of the graph pipeline over the best chain (PipeDream's search, or our own stages put in a chain and
# improved by the same moves), by number of devices. Above 1 the graph wins. Kernels are measured ones: how their
# efficiency falls with small micro-batches decides how much a shallower pipeline gains.

# %%
gains = {}
for family, batch in (("multi-modal", 256), ("candle-uno", 4096), ("transformer", 256)):
    ratios = []
    for devices in DEVICES:
        chain = min(question(family, devices=devices, batch=batch, planner=p).plan().iteration_s
                    for p in ("pipedream", "sequential-refined"))
        graph = question(family, devices=devices, batch=batch, planner="graph").plan().iteration_s
        ratios.append(chain / graph)
    gains[family] = (DEVICES, ratios)
HTML(plots.svg(plots.lines(gains, x_label="devices", y_label="times faster than the best chain"),
               label="Gain of graph pipelines by devices"))

# %% [markdown]
# What a model without branches (the transformer) gains comes from micro-batches and schedules of single stages alone.
# Branches over PipeDream's chain:

# %%
by_branches = []
for branches in BRANCHES:
    graph, chain = (question("candle-uno", devices=8, batch=1024, planner=p, branches=branches).plan()
                    for p in ("graph", "pipedream"))
    by_branches.append({"branches": branches,
                        "graph, ms": 1e3 * graph.iteration_s, "PipeDream, ms": 1e3 * chain.iteration_s,
                        "gain": chain.iteration_s / graph.iteration_s, "search, s": graph.certificate.seconds})
HTML(table(by_branches, "CANDLE-Uno on eight devices"))

# %% [markdown]
# ## Run for real
#
# One process a stage replica over gloo; gradients must equal those of single-process training bit for bit. The demo's
# operator times are those of an invented device, so predicted and measured are not comparable here. They are where
# layers were measured on the machine that trains: `wb profile pipeline`, then `wb run
# traces/specs/pipeline-measured.toml` (its `[costs]` say where the tables lie).

# %%
measured = job.run(plan, "cpu")
HTML(table(side_by_side(job.study.planner.predicted(job.problem, plan), simulated, measured), "Three clocks"))

# %% [markdown]
# ## Claims

# %%
with tempfile.TemporaryDirectory() as folder:
    claims = reproduce(load("pipeline"), Path(folder), full=PAPER)
columns = ("claim", "published", "ours", "unit", "clock", "verdict", "note")
HTML(table([{name: row[name] for name in columns} for row in claims], "Published values beside ours"))
