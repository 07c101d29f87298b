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
# # placement: which GPUs to rent, and who serves what
#
# *Demystifying cost-efficiency in LLM serving over heterogeneous GPUs* (arXiv 2502.00722) asks: given a budget, which
# mix of GPU types, grouped into which replicas, serves a workload fastest? The paper bisects on the makespan T. With
# theta = 1/T the model is linear, so one search gives the optimum and its proof.
#
# Costs are measured kernel times of H100, A100 and L40S (package `aiconfigurator-core`). Small by default; `PAPER =
# True` uses the paper's nine workload types and three budgets on its six GPU types, with data-sheet costs, because no
# measured tables cover all six.

# %%
PAPER = False

# %%
import tempfile
from pathlib import Path

from IPython.display import HTML, display

from planners.placement import comparison, pareto
from workbench import plots
from workbench.job import resolve
from workbench.notebook import table
from workbench.outcome import side_by_side
from workbench.reproduce import reproduce
from workbench.study import load

# %% [markdown]
# ## The question
#
# An hour of a conversation service on Llama-3.1-70B for at most 30 $/h. The demand is the shipped synthetic stand-in
# of the Azure 2023 conversation trace, so that this notebook says the same everywhere.

# %%
QUESTION = {
    "study": "placement",
    "budget_usd_per_h": 30.0,
    "devices": [
        {"name": "H100-SXM", "available": 8, "price_usd_per_h": 2.99},
        {"name": "A100-80G-SXM", "available": 6, "price_usd_per_h": 1.75},
        {"name": "L40S", "available": 12, "price_usd_per_h": 0.86},
    ],
    "traffic": [{"model": "llama-3.1-70b", "trace": "azure-conv-like"}],
    "enumeration": {"max_stages": 2},
    "simulation": {"duration_s": 600.0, "load": 0.6},
    "costs": {"source": "aiconfigurator"},
}
job = resolve(QUESTION, "this notebook")

# %% [markdown]
# ## The plan and its proof

# %%
plan = job.plan()
job.check(plan)
plan

# %% [markdown]
# Shadow prices say what one more dollar an hour, or one more GPU of a type, would save.
#
# ## Beside the baselines

# %%
title, rows = comparison(job.problem, job.costs, plan)[0]
HTML(table(rows, title))

# %% [markdown]
# ## What a larger budget buys

# %%
budgets = (10.0, 15.0, 20.0, 25.0, 30.0, 40.0)
front = pareto(job.problem, job.costs, budgets)
served = [row for row in front if "rate_per_s" in row]
points = [(row["cost_usd_per_h"], row["rate_per_s"]) for row in served]
chosen = [row["budget_usd_per_h"] for row in served].index(30.0)
HTML(plots.svg(plots.pareto(points, x_label="rent, $/h", y_label="requests/s", chosen=chosen),
               label="Rate against rent"))

# %%
HTML(table(front, "The optimum at each budget"))

# %% [markdown]
# ## Predicted against simulated
#
# The simulator serves the demand request by request (continuous batching, chunked prefill, KV blocks), first all at
# once (the paper's makespan), then ten minutes of arrivals at 60 % of the planned rate.

# %%
outcome = job.simulate(plan)
clocks = side_by_side(job.study.planner.predicted(job.problem, plan), outcome)
HTML(table([{k: v for k, v in row.items() if k != "measured"} for row in clocks], "Predicted and simulated"))

# %% [markdown]
# Running a placement for real needs a serving engine, which this workbench does not have yet; `wb run placement` says
# so.
#
# ## The paper's size

# %%
if PAPER:
    from planners.placement.problem import Enumeration, Offer, Problem, Workload
    from traces.mixes import mix
    from workbench.costs import open_costs

    available = {"RTX4090": (16, 0.53), "A40": (12, 0.55), "A6000": (8, 0.83), "L40": (12, 0.83),
                 "A100-80G-SXM": (6, 1.75), "H100-SXM": (8, 2.99)}
    kinds = mix("trace1")
    found = []
    for budget in (15.0, 30.0, 60.0):
        problem = Problem(
            budget_usd_per_h=budget, enumeration=Enumeration(max_stages=2),
            devices=tuple(Offer(name=n, available=a, price_usd_per_h=p) for n, (a, p) in available.items()),
            workloads=tuple(Workload(name=f"{t.input_tokens}/{t.output_tokens}", model="llama-3-70b", requests=float(f),
                                     input_tokens=t.input_tokens, output_tokens=t.output_tokens)
                            for t, f in zip(kinds.types, kinds.counts(100_000), strict=True)))
        made = job.study.planner.plan(problem, open_costs({"source": "analytic"}), planner="exact")
        found.append({"budget_usd_per_h": budget, "makespan_s": made.makespan_s, "gap": made.certificate.gap,
                      "seconds": made.certificate.seconds})
    display(HTML(table(found, "Six GPU types, nine request types")))

# %% [markdown]
# ## Claims
#
# Published values beside ours, each with what was assumed; the longer ones wait for `PAPER` or `wb reproduce --full`.

# %%
with tempfile.TemporaryDirectory() as folder:
    claims = reproduce(load("placement"), Path(folder), full=PAPER)
columns = ("claim", "published", "ours", "unit", "clock", "verdict", "note")
HTML(table([{name: row[name] for name in columns} for row in claims], "Published values beside ours"))
