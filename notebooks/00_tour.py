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
# # A tour of the workbench
#
# Every study answers one question the same way: a **spec** states the problem, `plan` searches and *proves* how good
# its answer is, `check` derives the answer's value again from the plan alone, `simulate` plays it on a virtual clock
# and `run` on the real one. This notebook walks one study step by step, then all of them at once. It takes about half
# a minute.

# %%
import tempfile
from pathlib import Path

from IPython.display import HTML

from workbench import plots
from workbench.job import open_job
from workbench.notebook import table
from workbench.outcome import side_by_side
from workbench.tour import tour, toy_spec

# %% [markdown]
# ## The question
#
# Two operators whose outputs a third one joins, on three devices. A pipeline that runs stages in a chain keeps one
# branch waiting for the other; a pipeline that is a graph does not (GraphPipe, arXiv 2406.17145).

# %%
print(toy_spec("pipeline").read_text().split("[[operators]]")[0])

# %% [markdown]
# ## The plan, and why to believe it
#
# A plan shows its decision and its certificate: the objective, a proven bound, the gap between the two, and who found
# it.

# %%
job = open_job(str(toy_spec("pipeline")))
plan = job.plan()
plan

# %% [markdown]
# `check` shares no code with the search. It is silent when nothing is violated; here is what it says of a plan that
# somebody edited to look faster.

# %%
from dataclasses import replace

from workbench.errors import CheckFailed

job.check(plan)
try:
    job.check(replace(plan, iteration_s=plan.iteration_s / 2))
except CheckFailed as error:
    print(error.message)

# %% [markdown]
# ## Two clocks, one schedule
#
# `simulate` plays the schedule on the virtual clock. `run` starts one process a stage, sends real tensors between
# them and compares every gradient with training in a single process. This spec asks for *paced* execution: kernels
# are slept, messages are real, so the measured time can be compared with the prediction on any machine.

# %%
simulated = job.simulate(plan)
measured = job.run(plan, "cpu")
HTML(table(side_by_side(job.study.planner.predicted(job.problem, plan), simulated, measured), "Three clocks"))

# %%
HTML(plots.svg(plots.gantt(simulated.timeline), label="Gantt chart of the simulated iteration"))

# %% [markdown]
# ## All studies
#
# The same five steps on a toy of every study; a study that cannot run yet says so.

# %%
with tempfile.TemporaryDirectory() as folder:
    metrics, went = tour(Path(folder))
HTML(table([{k: v for k, v in row.items() if k != "folder"} for row in went], "How each study went"))

# %%
HTML(table(metrics, "Predicted, simulated, measured"))

# %% [markdown]
# Next: the notebook of a study, or `wb report placement` for a whole page about one plan.
