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
# # circuit: stages and kernels of a quantum circuit
#
# *Atlas* (arXiv 2408.09055) simulates a circuit whose state does not fit one device. The circuit is cut into
# **stages**, each with a choice of qubits that are local to a device, so that amplitudes are exchanged between stages
# only; inside a stage, gates are grouped into **kernels**. Fewest stages is an integer program, cheapest kernels a
# dynamic program.

# %%
PAPER = False
QUBITS = 28 if PAPER else 18

# %%
import tempfile
from pathlib import Path

from IPython.display import HTML

from workbench import plots
from workbench.job import resolve
from workbench.notebook import table
from workbench.outcome import side_by_side
from workbench.reproduce import reproduce
from workbench.study import load


def question(family, planner, qubits=QUBITS):
    """Eight shards on four nodes of two devices."""
    return resolve({
        "study": "circuit", "swaps": "relabel", "circuit": {"family": family, "qubits": qubits},
        "machine": {"local_qubits": qubits - 3, "regional_qubits": 1, "amplitude_bytes": 8},
        "costs": {"source": "gates", "table": "a100-atlas"}, "planner": {"name": planner}}, "this notebook")


# %% [markdown]
# ## The plan and its proof
#
# The kernel method circuit `qsvm` in program order needs three stages. Read with what commutes in mind (a CX, RZ, CX
# sandwich is one diagonal gate) it needs two, and both numbers are proven least.

# %%
for planner in ("exact", "commutation"):
    made = question("qsvm", planner).plan()
    print(f"{planner:12s} {len(made.stages)} stages: {made.certificate.line()}")

# %%
job = question("qsvm", "commutation")
plan = job.plan()
job.check(plan)
plan

# %% [markdown]
# `check` proves that every pair of gates that do not commute keeps its order, that each kernel touches local qubits
# only, and that the stated costs add up.
#
# ## Stages and exchanges of the eleven families
#
# Exchanges cost weighted qubit moves; the number of stages comes first, then the moves.

# %%
FAMILIES = ("ae", "dj", "ghz", "graphstate", "ising", "qft", "qpeexact", "qsvm", "su2random", "vqc", "wstate")
found = []
for family in FAMILIES:
    made = question(family, "commutation").plan()
    found.append({"family": family, "stages": len(made.stages), "proven": made.certificate.status == "optimal",
                  "moves": made.communication.objective, "kernels": sum(len(s.kernels) for s in made.stages),
                  "kernel time, ms": 1e3 * made.kernel_time.objective})
HTML(table(found, "Eleven families"))

# %% [markdown]
# ## Kernels: the dynamic program against the greedy grouping
#
# Predicted kernel time with the published A100 table; the exact planner takes the best of its kernelizers, so it is
# never worse than any of them.

# %%
planners = [name for name in load("circuit").planner.PLANNERS if name in ("exact", "atlas", "greedy")]
times = {family: {name: 1e3 * question(family, name).plan().kernel_time.objective for name in planners}
         for family in ("qft", "su2random", "vqc", "ising")}
HTML(plots.svg(plots.bars(times, quantity="kernel time", unit="ms"), label="Kernel time by planner"))

# %% [markdown]
# ## Simulated, and run for real
#
# The virtual clock plays the plan on the A100 machine of the price table. The real clock is this machine's processor:
# each shard's gates run in compiled tile kernels, and the final state is compared with an independent simulation. The
# two differ by the devices' speed, which is why the costs' device stands beside every prediction.

# %%
simulated = job.simulate(plan)
measured = job.run(plan, "cpu")
clocks = side_by_side(job.study.planner.predicted(job.problem, plan), simulated, measured)
HTML(table(clocks, "Three clocks"))

# %% [markdown]
# ## Asking the state
#
# `[outputs]` in a spec names what a run reads from the final state: amplitudes, the joint distribution of some qubits,
# samples, the expectation of a sum of Pauli products, all amplitudes as a file.

# %%
asked = resolve({
    "study": "circuit", "circuit": {"family": "ghz", "qubits": 12},
    "machine": {"local_qubits": 10, "amplitude_bytes": 8},
    "outputs": {"shots": 1000, "probabilities": [0, 11], "pauli_sum": ["0.5 Z0 Z11", "0.5 X0"]},
    "costs": {"source": "gates", "table": "a100-atlas"}}, "this notebook")
read = asked.run(asked.plan(), "cpu").tables
HTML("".join(table(read[name].to_dict("records"), name) for name in ("samples", "probabilities", "expectation")))

# %% [markdown]
# ## Claims

# %%
with tempfile.TemporaryDirectory() as folder:
    claims = reproduce(load("circuit"), Path(folder), full=PAPER)
columns = ("claim", "published", "ours", "unit", "clock", "verdict", "note")
HTML(table([{name: row[name] for name in columns} for row in claims], "Published values beside ours"))
