"""What a run reads from the final state, against a dense reference; and what it leaves when it cannot go on."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from executors.circuit import run
from executors.circuit.outputs import check_for_ranks, read_outputs
from executors.circuit.run import run_in_process
from executors.circuit.sharded import compile_plan, engine_for
from planners.circuit import Circuit, Machine, Plan, Problem, Source, plan
from planners.circuit.ir import without_swaps
from planners.circuit.outputs import Outputs
from tests.oracles_circuit import dense_state, permuted, random_circuit
from workbench.costs import open_costs
from workbench.errors import Infeasible, SpecError, WorkbenchError

QUBITS = 9
PAULIS = {"X": np.array([[0, 1], [1, 0]]), "Y": np.array([[0, -1j], [1j, 0]]), "Z": np.diag([1, -1])}
TERMS = ("0.5 Z0 Z8", "X1 Y3 z2", "-2 Y5", "0.25")


def planned(problem: Problem) -> Plan:
    costs = open_costs({"source": "gates", "table": "a100-atlas"})
    return plan(problem, costs, planner="greedy", solver="highs", time_limit_s=5, seed=0)


def asked(folder: Path | None = None, terms: tuple[str, ...] = TERMS) -> Outputs:
    return Outputs(amplitudes=("000000000", "101100111", "111111111"), probabilities=(7, 0, 3), shots=20000, seed=5,
                   pauli_sum=terms, state_file=None if folder is None else str(folder / "state.npy"))


def problem_of(circuit: Circuit, outputs: Outputs, **machine: float) -> Problem:
    return Problem(circuit=Source(inline=circuit), outputs=outputs,
                   machine=Machine(local_qubits=7, amplitude_bytes=16, **machine))


def reference(circuit: Circuit) -> npt.NDArray[np.complex128]:
    swapless = without_swaps(circuit)
    return permuted(dense_state(swapless), swapless.output)


def expected(psi: npt.NDArray[np.complex128], term: str) -> float:
    """By one tensor contraction a Pauli matrix."""
    factors = term.split()
    value = 1.0
    if factors[0][0] not in "XYZxyz":
        value, factors = float(factors[0]), factors[1:]
    after = psi.reshape((2,) * QUBITS)
    for factor in factors:
        axis = QUBITS - 1 - int(factor[1:])
        after = np.moveaxis(np.tensordot(PAULIS[factor[0].upper()], after, axes=(1, axis)), 0, axis)
    return value * float(np.vdot(psi, after.reshape(-1)).real)


def agrees(tables: dict, psi: npt.NDArray[np.complex128], terms: tuple[str, ...] = TERMS) -> None:
    """Every table asked for by ``asked`` is what the reference state says."""
    got = tables["asked_amplitudes"]
    index = [int(text, 2) for text in got["basis"]]
    assert np.allclose(got["real"] + 1j * got["imag"], psi[index], atol=1e-12)
    weight = np.abs(psi) ** 2
    x = np.arange(1 << QUBITS)
    shares = tables["probabilities"]
    for bits, share in zip(shares["q7 q0 q3"], shares["probability"], strict=True):
        held = [(x >> q & 1) == int(b) for q, b in zip((7, 0, 3), bits, strict=True)]
        assert share == pytest.approx(weight[np.all(held, axis=0)].sum(), abs=1e-12)
    samples = tables["samples"]
    assert samples["count"].sum() == 20000
    seen = np.zeros(1 << QUBITS)
    seen[[int(text, 2) for text in samples["basis"]]] = samples["count"] / 20000
    assert np.all(np.abs(seen - weight) <= 6 * np.sqrt(weight / 20000) + 5 / 20000)
    values = tables["expectation"]
    assert np.allclose(values["value"], [expected(psi, term) for term in terms], atol=1e-12)


@pytest.mark.parametrize("memory_bytes", [None, 4096.0])
def test_everything_asked_of_a_run_is_what_the_reference_says(memory_bytes: float | None, tmp_path: Path) -> None:
    """Four shards in memory; and sixteen from a file."""
    circuit = random_circuit(np.random.default_rng(3), qubits=QUBITS, gates=60)
    problem = problem_of(circuit, asked(tmp_path), **({} if memory_bytes is None else {"memory_bytes": memory_bytes}))
    made = planned(problem)
    if memory_bytes is None:
        outcome = run(problem, made, device="cpu")
    else:
        with pytest.warns(UserWarning, match="out of core"):
            outcome = run(problem, made, device="cpu")
    psi = reference(circuit)
    agrees(dict(outcome.tables), psi)
    assert outcome["expectation"] == pytest.approx(sum(expected(psi, term) for term in TERMS), abs=1e-12)
    assert np.allclose(np.load(tmp_path / "state.npy"), psi, atol=1e-12)
    assert [p.name for p in tmp_path.iterdir()] == ["state.npy"]


def in_parallel(count: int, work: Callable[[int, Callable], None]) -> None:
    """``work(i, add)`` on ``count`` threads whose ``add`` sums over all of them, as ranks sum."""
    barrier, parts, faults = threading.Barrier(count), [np.zeros(0)] * count, []

    def member(i: int) -> None:
        def add(mine: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
            parts[i] = mine
            barrier.wait(20)
            result = np.sum(parts, axis=0)
            barrier.wait(20)
            return result

        try:
            work(i, add)
        except BaseException as fault:
            faults.append(fault)
            barrier.abort()

    threads = [threading.Thread(target=member, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults


def test_shards_that_know_only_themselves_give_the_same_together() -> None:
    circuit = random_circuit(np.random.default_rng(4), qubits=QUBITS, gates=60)
    problem = problem_of(circuit, Outputs())
    made = planned(problem)
    on = engine_for(7, np.float64)
    code = compile_plan(problem, made, dtype=np.float64, on=on)
    whole = run_in_process(code, dtype=np.float64, on=on).state
    inside = [q for q, address in enumerate(code.placement.address) if address < code.local_bits]
    terms = ("0.5 Z0 Z8", f"X{inside[0]} Y{inside[3]} Z{inside[2]}")
    outputs = asked(terms=terms)
    check_for_ranks(outputs, code.placement, code.local_bits)
    found: list[dict] = [{}] * code.shards

    def rank(i: int, add: Callable) -> None:
        part = np.ascontiguousarray(whole.reshape(code.shards, -1)[i])
        found[i] = read_outputs(outputs, part, code.placement, qubits=QUBITS, add=add, shard=i, shards=code.shards)[0]

    in_parallel(code.shards, rank)
    for tables in found:
        agrees(tables, reference(circuit), terms)
    outside = next(q for q in range(QUBITS) if q not in inside)
    for wrong in (Outputs(pauli_sum=(f"X{outside}",)), Outputs(state_file="all.npy")):
        with pytest.raises(SpecError, match="rank"):
            check_for_ranks(wrong, code.placement, code.local_bits)


@pytest.mark.parametrize(("outputs", "says"), [
    ({"amplitudes": ("01",)}, "no basis state of 9 qubits"), ({"amplitudes": ("01234567a",)}, "no basis state"),
    ({"probabilities": (9,)}, "no qubit 9"), ({"pauli_sum": ("X0 Z9",)}, "no qubit 9")])
def test_outputs_that_the_circuit_lacks_are_refused_when_planning(outputs: dict, says: str) -> None:
    circuit = random_circuit(np.random.default_rng(0), qubits=QUBITS, gates=5)
    with pytest.raises(SpecError, match=says):
        planned(problem_of(circuit, Outputs(**outputs)))


@pytest.mark.parametrize("outputs", [{"shots": -1}, {"probabilities": (1, 1)}, {"probabilities": tuple(range(21))},
                                     {"pauli_sum": ("Q1",)}, {"state_file": "state.txt"}])
def test_outputs_that_make_no_sense_are_refused_at_once(outputs: dict) -> None:
    with pytest.raises(SpecError):
        Outputs(**outputs)


def test_a_state_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    circuit = random_circuit(np.random.default_rng(0), qubits=QUBITS, gates=5)
    problem = problem_of(circuit, Outputs(state_file=str(tmp_path / "taken" / "state.npy")))
    with pytest.raises(WorkbenchError, match="cannot write"):
        run(problem, planned(problem), device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


# -- runs on a file that end early -----------------------------------------------------------------------------------


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_: object) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("call", "broken", "error"), [
    ("posix_fallocate", full_disk, Infeasible), ("pwrite", full_disk, Infeasible), ("preadv", interrupt,
                                                                                     KeyboardInterrupt)])
@pytest.mark.filterwarnings("ignore:out of core")
def test_a_run_on_a_file_that_ends_early_leaves_no_file(call: str, broken: Callable, error: type[BaseException],
                                                        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, call):
        pytest.skip(f"this system has no {call}")
    problem = problem_of(random_circuit(np.random.default_rng(0), qubits=QUBITS, gates=20), Outputs(),
                         memory_bytes=4096.0)
    made = planned(problem)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, call, broken)
    with pytest.raises(error, match=r"No space left|^$"):
        run(problem, made, device="cpu")
    assert list(tmp_path.iterdir()) == []
