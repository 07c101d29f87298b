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
# # orchestration: which kernels compute a tensor program
#
# *Korch* (arXiv 2406.09465) splits a program's operators into **primitives** and asks which groups of primitives should
# be **kernels**, so that the measured times of the kernels add up to the least. A primitive may run in several kernels.
# The answer is a binary program over all candidate kernels; here one block is planned, its plan proven, and run.

# %%
PAPER = False

# %%
import tempfile
from pathlib import Path

from IPython.display import HTML

from planners.orchestration.claims import figure_4, figure_12, figure_13
from planners.orchestration.enumeration import enumerate_kernels
from planners.orchestration.load import program_graph
from planners.orchestration.problem import Limits
from workbench import plots
from workbench.job import open_job
from workbench.notebook import table
from workbench.outcome import side_by_side
from workbench.reproduce import reproduce
from workbench.study import load

# %% [markdown]
# ## The program and its candidates
#
# The demo problem is the block between two convolutions of a style network: instance normalisation, ReLU and
# reflection padding. Views cost nothing and are folded away; what is left are primitives that each make one tensor.

# %%
job = open_job("orchestration")
graph = program_graph(job.problem)
HTML(table([{"primitive": p.name, "call": p.op, "kind": p.kind, "reads": " ".join(o.tensor for o in p.inputs)}
            for p in graph.primitives], graph.name))

# %% [markdown]
# Candidates are grown backwards from each primitive. The paper's kernels are *convex*: nothing outside lies between two
# members. That is stricter than needed, because a member can be computed again elsewhere; *cones* drop it. The paper's
# small graph (its figure 4) has exactly the published 21 convex kernels.

# %%
rows = []
for program in (figure_4(), graph):
    for space in ("convex", "cone"):
        found = enumerate_kernels(program, Limits(space=space, most_linear=0, whole=False, largest=12))
        rows.append({"program": program.name, "space": space, "kernels": len(found.grown), "structures": found.kinds})
HTML(table(rows, "Candidate kernels"))

# %% [markdown]
# ## The plan and its proof
#
# Kernel times were measured, lazily: a kernel is compiled and timed only when a plan could want it, judged by a floor
# under its time. The certificate says that no plan of any candidates takes less.

# %%
plan = job.plan()
job.check(plan)
plan

# %%
HTML(table(job.study.planner.decision(plan), "Kernels in the order in which they run"))

# %% [markdown]
# ## Beside other ways to choose
#
# All planners price kernels alike. `cover` forbids redundancy, `paper` takes the released rules, `greedy-fusion` merges
# pairs by shared bytes as TorchInductor does and never looks at a time.

# %%
title, beside = job.study.planner.comparison(job.problem, job.costs, plan)[0]
HTML(table(beside, title))

# %%
times = {row["planner"]: {"predicted": 1e6 * row["predicted_s"]} for row in beside if row.get("predicted_s")}
HTML(plots.svg(plots.bars(times, quantity="predicted time", unit="us"), label="Predicted time by planner"))

# %% [markdown]
# ## The paper's own choices, replayed
#
# With the kernel times of the paper's figure 12 the four published kernels win over TensorRT's three; with the ratios
# of figure 13 the decoder's plan flips with the batch size.

# %%
norm = figure_12()
print(f"figure 12: {1e3 * norm.certificate.objective:.4f} ms in {len(norm.kernels)} kernels")
for batch in (1, 16):
    decoder, ratio = figure_13(batch)
    print(f"figure 13, batch {batch:2d}: {len(decoder.kernels)} kernels, {ratio:.2f} times as fast as the other way")

# %% [markdown]
# ## Simulated, and run for real
#
# Kernels run one after the other, so the virtual clock adds up what the plan says. The real clock is this machine's:
# kernels are compiled, stitched into one function, and its outputs are compared with double precision. Predicted times
# are those of the machine that measured the table; the ratio to another machine's clock is that of the machines.

# %%
simulated = job.simulate(plan)
measured = job.run(plan, "cpu")
HTML(table(side_by_side(job.study.planner.predicted(job.problem, plan), simulated, measured), "Three clocks"))

# %% [markdown]
# ## Claims

# %%
with tempfile.TemporaryDirectory() as folder:
    claims = [row for row in reproduce(load("orchestration"), Path(folder), full=PAPER) if row["ours"] is not None]
columns = ("claim", "published", "ours", "unit", "clock", "verdict", "note")
HTML(table([{name: row[name] for name in columns} for row in claims], "Published values beside ours"))
