"""How a circuit's run is verified above the size of a dense reference, and how it leaves memory for a file."""

from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executors.circuit import run, verify
from executors.circuit.outofcore import StoredState
from executors.circuit.reference import CLOSED_FORMS, Method, Place, amplitude_faults, chosen_method, dense_state
from executors.circuit.stabiliser import path_sum
from planners.circuit import Circuit, Gate, Machine, Plan, Problem, Source, plan
from planners.circuit.check import check
from planners.circuit.generators import BENCHMARKS, generate
from planners.circuit.ir import without_swaps
from tests.oracles_circuit import dense_state as oracle_state
from tests.oracles_circuit import random_circuit
from workbench.costs import open_costs
from workbench.errors import Infeasible, SpecError

CLIFFORD_1 = ("h", "s", "sdg", "x", "y", "z", "sx")
CLIFFORD_2 = ("cx", "cy", "cz", "swap", "iswap")
EVERYWHERE = Place(1e12, alone=True)


def planned(problem: Problem) -> Plan:
    costs = open_costs({"source": "gates", "table": "a100-atlas"})
    return plan(problem, costs, planner="greedy", solver="highs", time_limit_s=5, seed=0)


def problem_of(circuit: Circuit, local: int, **machine: float) -> Problem:
    return Problem(circuit=Source(inline=circuit), machine=Machine(local_qubits=local, **machine))


# -- the references themselves ---------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), qubits=st.integers(2, 6), gates=st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_sums_over_paths_equal_the_dense_state_of_clifford_circuits(seed: int, qubits: int, gates: int) -> None:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(gates):
        names = CLIFFORD_1 if rng.random() < 0.5 else CLIFFORD_2
        count = 1 if names is CLIFFORD_1 else 2
        made.append(Gate(name=str(rng.choice(names)), qubits=tuple(int(q) for q in rng.permutation(qubits)[:count])))
    circuit = Circuit(name="clifford", qubits=qubits, gates=tuple(made))
    paths = path_sum(circuit)
    assert paths is not None
    got = [paths.amplitude(x) for x in range(1 << qubits)]
    assert np.allclose(got, oracle_state(circuit), atol=1e-12)


def test_a_sum_over_paths_holds_the_closed_form_of_a_ghz_state_of_a_hundred_qubits() -> None:
    paths = path_sum(generate("ghz", qubits=100, rng=np.random.default_rng(0)))
    assert paths is not None
    assert [abs(paths.amplitude(x)) for x in (0, 2**100 - 1, 1, 2**99)] == pytest.approx([math.sqrt(0.5)] * 2 + [0, 0])


@pytest.mark.parametrize("gate", [Gate(name="t", qubits=(0,)), Gate(name="cp", qubits=(0, 1), params=(math.pi / 2,)),
                                  Gate(name="rx", qubits=(1,), params=(0.3,)), Gate(name="ccx", qubits=(0, 1, 2))])
def test_no_sum_over_paths_for_a_gate_outside_the_clifford_group(gate: Gate) -> None:
    assert path_sum(Circuit(name="other", qubits=3, gates=(gate,))) is None


@pytest.mark.parametrize("seed", range(8))
def test_the_reference_in_place_equals_tensor_contraction(seed: int) -> None:
    circuit = random_circuit(np.random.default_rng(seed), qubits=6, gates=30)
    assert np.abs(dense_state(circuit) - oracle_state(circuit)).max() < 1e-12


@pytest.mark.parametrize("family", CLOSED_FORMS)
def test_closed_forms_of_families_equal_the_dense_state(family: str) -> None:
    circuit = generate(family, qubits=9, rng=np.random.default_rng(1))
    assert np.allclose(oracle_state(circuit), [CLOSED_FORMS[family](9, x) for x in range(512)], atol=1e-12)


# -- every method accepts what is right and rejects what is wrong ----------------------------------------------------


@pytest.mark.parametrize("method", ["gate by gate", "inverse", "inverse on a file"])
@pytest.mark.parametrize("amplitude_bytes", [8, 16])
def test_each_method_tells_right_amplitudes_from_wrong_ones(method: Method, amplitude_bytes: int) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        circuit = without_swaps(random_circuit(rng, qubits=9, gates=40))
        problem = problem_of(circuit, 7, amplitude_bytes=amplitude_bytes)
        made = planned(problem)
        x = np.arange(512)
        wires = sum(((x >> q & 1) << w for q, w in enumerate(circuit.output or range(9))), np.zeros_like(x))
        right = oracle_state(circuit)[wires]
        basis = sorted(int(b) for b in rng.choice(512, 40, replace=False))
        assert amplitude_faults(problem, made, method, basis, right[basis]) == []
        for wrong in (right[basis] * np.exp(0.01j), right[basis][::-1]):
            (fault,) = amplitude_faults(problem, made, method, basis, wrong)
            assert fault.rule == "amplitudes"


def test_one_wrong_amplitude_of_a_clifford_circuit_and_of_a_closed_form_is_named() -> None:
    for family, method in (("graphstate", "sum over paths"), ("qft", "closed form"), ("wstate", "closed form")):
        problem = Problem(circuit=Source(family=family, qubits=22), machine=Machine(local_qubits=22, amplitude_bytes=8))
        made = planned(problem)
        outcome = run(problem, made, device="cpu")
        assert outcome.tables["engine"]["check"].iloc[0] == method
        assert verify(problem, made, outcome) == []
        table = outcome.tables["amplitudes"]
        table.loc[5, "imag"] += 1e-3 * 2.0**-11
        table.loc[7, "real"] += 2.0**-11
        (fault,) = verify(problem, made, outcome) if family != "wstate" else [None]
        assert fault is None or fault.where == f"basis state {table['basis'].iloc[7]}"


def test_the_strongest_method_that_fits_is_chosen() -> None:
    def method(family: str, qubits: int, place: Place = EVERYWHERE) -> Method:
        machine = Machine(local_qubits=qubits, amplitude_bytes=8)
        return chosen_method(Problem(circuit=Source(family=family, qubits=qubits), machine=machine), place)

    assert method("vqc", 20) == "gate by gate"
    assert method("dj", 28) == "sum over paths"
    assert method("qft", 28) == "closed form"
    assert method("ising", 22) == "gate by gate"
    assert method("vqc", 26) == "inverse"
    assert method("vqc", 26, Place(2.0**28, alone=True)) == "inverse on a file"
    assert method("vqc", 26, Place(2.0**28, alone=False)) == "none"


@pytest.mark.parametrize("family", ["vqc", "su2random", "qsvm"])
def test_a_run_of_21_qubits_is_verified_by_its_inverse(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executors.circuit.reference.DENSE_WORK", 0)
    problem = Problem(circuit=Source(family=family, qubits=21), machine=Machine(local_qubits=19, amplitude_bytes=8))
    made = planned(problem)
    outcome = run(problem, made, device="cpu")
    assert outcome.tables["engine"]["check"].iloc[0] == "inverse"
    assert verify(problem, made, outcome) == []
    outcome.tables["amplitudes"]["real"] *= 1.001
    assert [v.rule for v in verify(problem, made, outcome)] == ["amplitudes"]


# -- memory limit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*BENCHMARKS, "supremacy"])
def test_a_state_above_the_memory_limit_goes_to_a_file_and_says_so(family: str) -> None:
    limit = 2.0**13
    problem = Problem(circuit=Source(family=family, qubits=11), machine=Machine(local_qubits=11, memory_bytes=limit))
    made = planned(problem)
    assert {len(stage.local) for stage in made.stages} == {8}
    assert check(problem, made) == []
    with pytest.warns(UserWarning, match="out of core: state in a file"):
        outcome = run(problem, made, device="cpu")
    assert "file" in outcome.tables["engine"]["state"].iloc[0]
    assert outcome.counters["file_bytes"] == len(made.stages) * 2 * 16 * 2**11
    assert verify(problem, made, outcome) == []


def test_a_shard_above_the_memory_limit_is_infeasible() -> None:
    circuit = generate("qft", qubits=10, rng=np.random.default_rng(0))
    problem = problem_of(circuit, 10)
    made = planned(problem)
    small = dataclasses.replace(problem, machine=dataclasses.replace(problem.machine, memory_bytes=4096.0))
    with pytest.raises(Infeasible, match="a shard takes"):
        run(small, made, device="cpu")


def test_a_limit_below_two_amplitudes_is_refused() -> None:
    with pytest.raises(SpecError, match="hold no two amplitudes"):
        Machine(local_qubits=3, memory_bytes=16.0)


def test_a_stored_state_reads_like_an_array(tmp_path: Path) -> None:
    values = np.arange(64) + 1j
    values.tofile(tmp_path / "state")
    state = StoredState(tmp_path / "state", np.complex128)
    assert len(state) == 64
    assert np.array_equal(state[8:24], values[8:24])
    assert np.array_equal(state[np.array([3, 60])], values[[3, 60]])


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to handle")
def test_a_run_that_is_told_to_end_leaves_no_state_file_behind() -> None:
    code = ("import time\n"
            "from executors.circuit.outofcore import scratch_folder\n"
            "with scratch_folder() as folder:\n"
            "    (folder / 'state').write_bytes(bytes(1024))\n"
            "    print(folder, flush=True)\n"
            "    time.sleep(60)\n")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        assert (folder / "state").exists()
        child.terminate()
        assert child.wait(30) == 128 + signal.SIGTERM
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_28_qubits_run_under_512_mebibytes() -> None:
    """2 GiB of single-precision amplitudes in a process that never holds 512 MiB, code and libraries included."""
    code = (
        "import time\n"
        "from executors.circuit import run, verify\n"
        "from planners.circuit import Machine, Problem, Source, plan\n"
        "from workbench.costs import open_costs\n"
        "problem = Problem(circuit=Source(family='su2random', qubits=28, layers=1),\n"
        "                  machine=Machine(local_qubits=28, amplitude_bytes=8, memory_bytes=2.0**29))\n"
        "made = plan(problem, open_costs({'source': 'gates', 'table': 'a100-atlas'}), planner='greedy',\n"
        "            solver='highs', time_limit_s=20, seed=0)\n"
        "began = time.perf_counter()\n"
        "outcome = run(problem, made, device='cpu')\n"
        "took = time.perf_counter() - began\n"
        "began = time.perf_counter()\n"
        "assert outcome.counters['file_bytes'] == len(made.stages) * 2 * 2**31\n"
        "assert outcome.tables['engine']['check'].iloc[0] == 'inverse on a file'\n"
        "assert verify(problem, made, outcome) == []\n"
        "print(len(made.stages), took, outcome['total_s'], time.perf_counter() - began)\n"
        "peak = int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024\n"
        "assert peak < 2**29, peak\n"
        "print(peak)\n")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
