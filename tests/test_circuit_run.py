"""The circuit executor: every engine, every place a shard can live, against a dense reference and closed forms."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executors.circuit import profiled, run, simulate, verify
from executors.circuit.compiled import CACHED_BYTES, Compiled, Engine, engine, native_engine
from executors.circuit.costs import (
    CLASSES,
    MEMORY,
    Calibration,
    classes_of,
    kernel_amplitudes,
    predict,
)
from executors.circuit.emit import KINDS, Program
from executors.circuit.interpreted import Interpreter
from executors.circuit.local import TileShape, compile_circuit, execute
from executors.circuit.lower import Lowering
from executors.circuit.measure import (
    PauliTerm,
    amplitudes,
    expectation,
    marginal,
    norm,
    parse_pauli,
    sample,
    save,
)
from executors.circuit.outofcore import run_on_file
from executors.circuit.run import run_in_process
from executors.circuit.sharded import compile_plan, engine_for, exchange_bytes
from executors.circuit.simulate import FittedCosts, exchange_seconds, run_seconds, transitions
from executors.circuit.state import gather
from executors.circuit.tiling import tile_kernels
from planners.circuit import Circuit, Gate, Kernel, KernelTable, Machine, Plan, Problem, Source, Stage
from planners.circuit.gateset import BUILDERS
from planners.circuit.generators import BENCHMARKS, generate
from planners.circuit.ir import commute, from_matrix, without_swaps
from profilers.gates import GateCosts, fit
from workbench.errors import MissingProfile, NotBuilt, SpecError
from workbench.plan import Certificate

HAS_COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
TABLE = KernelTable(name="none", fusion_s=(0.0,) * 8, tile_s=(0.0,), tile_gate_s={"*": 0.0}, tile_qubits=5)
NOTHING = Certificate(objective=0, sense="min", unit="", status="heuristic", planner="test", seconds=0)
TOLERANCE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-11}

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler on this machine")


def dense(circuit: Circuit) -> npt.NDArray[np.complex128]:
    """State vector by one tensor contraction a gate."""
    n = circuit.qubits
    psi = np.zeros((2,) * n, dtype=complex)
    psi[(0,) * n] = 1
    for g in circuit.gates:
        k = len(g.qubits)
        axes = [n - 1 - q for q in reversed(g.qubits)]
        psi = np.moveaxis(np.tensordot(g.matrix.reshape((2,) * (2 * k)), psi, axes=(range(k, 2 * k), axes)),
                          range(k), axes)
    return psi.reshape(-1)


def haar(rng: np.random.Generator, side: int) -> npt.NDArray[np.complex128]:
    q, r = np.linalg.qr(rng.normal(size=(side, side)) + 1j * rng.normal(size=(side, side)))
    return q * (np.diag(r) / np.abs(np.diag(r)))


def random_circuit(rng: np.random.Generator, n: int, count: int) -> Circuit:
    """Named gates of every kind, extra controls of either value, Haar matrices on 1 to 3 qubits."""
    names = [name for name, (k, _, _) in BUILDERS.items() if 0 < k <= n]
    gates = []
    for _ in range(count):
        order = [int(q) for q in rng.permutation(n)]
        if rng.random() < 0.1:
            k = int(rng.integers(1, min(3, n) + 1))
            gates.append(from_matrix(haar(rng, 1 << k), tuple(order[:k])))
            continue
        name = names[int(rng.integers(len(names)))]
        k, parameters, _ = BUILDERS[name]
        extra = int(rng.random() < 0.15 and k < n)
        exact = rng.random() < 0.3
        angles = rng.integers(-4, 5, parameters) * math.pi / 2 if exact else rng.uniform(-7, 7, parameters)
        gates.append(Gate(name=name, qubits=tuple(order[: k + extra]), params=tuple(float(a) for a in angles),
                          controls=tuple(int(v) for v in rng.integers(0, 2, extra))))
    return Circuit(name="random", qubits=n, gates=tuple(gates))


def random_plan(circuit: Circuit, local: int, rng: np.random.Generator, *, kind: str = "tile") -> Plan:
    """A legal plan from random local sets (far from optimal: it exchanges often and moves whole shards)."""
    n = circuit.qubits
    left, stages = list(range(len(circuit.gates))), []
    while left or not stages:
        first = circuit.gates[left[0]].mixing if left else ()
        inside = list(dict.fromkeys([*first, *(int(q) for q in rng.permutation(n))]))[:local]
        blocked: set[int] = set()
        done, rest = [], []
        for g in left:
            gate = circuit.gates[g]
            if blocked.isdisjoint(gate.qubits) and set(gate.mixing) <= set(inside):
                done.append(g)
            else:
                blocked |= set(gate.qubits)
                rest.append(g)
        left = rest
        outside = [int(q) for q in rng.permutation([q for q in range(n) if q not in inside])]
        groups = kernel_groups(circuit, done, inside, kind)
        stages.append(Stage(local=tuple(inside), regional=tuple(outside[:1]), global_=tuple(outside[1:]),
                            kernels=tuple(Kernel(kind=k, qubits=q, gates=g, cost_s=1e-3) for k, q, g in groups)))
    return Plan(stages=tuple(stages), table=TABLE, certificate=NOTHING, communication=NOTHING, kernel_time=NOTHING)


def kernel_groups(circuit: Circuit, gates: list[int], inside: list[int], kind: str):
    """Consecutive gates whose local wires number at most 4 (fusion) or that mix at most 2 (tile)."""
    groups: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    wires: set[int] = set()
    members: list[int] = []

    def close() -> None:
        if members:
            groups.append((kind, tuple(sorted(wires, key=inside.index)), tuple(members)))

    for g in gates:
        gate = circuit.gates[g]
        mine = {q for q in (gate.qubits if kind == "fusion" else gate.mixing + gate.insular) if q in inside}
        if members and len(wires | mine) > (4 if kind == "fusion" else 2):
            close()
            wires, members = set(), []
        wires |= mine
        members.append(g)
    close()
    return groups


def problem_of(circuit: Circuit, local: int, amplitude_bytes: int = 16) -> Problem:
    return Problem(circuit=Source(inline=circuit), machine=Machine(local_qubits=local, amplitude_bytes=amplitude_bytes))


def stored(circuit: Circuit, dtype: npt.DTypeLike, on: Engine, shape: TileShape | None = None):
    code = compile_circuit(circuit, dtype=dtype, on=on, shape=shape)
    state, _ = execute(code, on=on)
    return gather(state, code.placement, qubits=circuit.qubits)


# -- correctness of the engines --------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("block", [0, *(pytest.param(b, marks=pytest.mark.slow) for b in (1, 2, 3, 4))])
def test_five_hundred_random_circuits_equal_a_dense_reference(block: int) -> None:
    on = native_engine()
    for seed in range(100 * block, 100 * block + 100):
        rng = np.random.default_rng(seed)
        circuit = random_circuit(rng, int(rng.integers(4, 13)), int(rng.integers(5, 45)))
        reference = dense(circuit)
        for dtype in (np.float32, np.float64):
            error = np.abs(stored(circuit, dtype, on) - reference).max()
            assert error < TOLERANCE[np.dtype(dtype)], (seed, dtype, error)


@needs_compiler
@pytest.mark.parametrize("width", [16, 32, 64])
def test_every_vector_width_and_small_tiles_give_the_same_state(width: int) -> None:
    if width > native_engine().vector_bytes:
        pytest.skip(f"this processor has no {8 * width}-bit vectors")
    on = Compiled(width)
    for seed in range(12):
        rng = np.random.default_rng(1000 + seed)
        circuit = random_circuit(rng, int(rng.integers(9, 12)), 40)
        reference = dense(circuit)
        for dtype, shape in itertools.product((np.float32, np.float64), (TileShape(size=8, run=5), None)):
            assert np.abs(stored(circuit, dtype, on, shape) - reference).max() < TOLERANCE[np.dtype(dtype)]


def test_the_interpreter_agrees_with_the_reference() -> None:
    for seed in range(15):
        rng = np.random.default_rng(2000 + seed)
        circuit = random_circuit(rng, int(rng.integers(2, 10)), 30)
        got = stored(circuit, np.float64, Interpreter(), TileShape(size=6, run=3))
        assert np.abs(got - dense(circuit)).max() < 1e-11


def test_without_a_compiler_the_interpreter_says_that_it_is_one(monkeypatch: pytest.MonkeyPatch,
                                                                tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    engine.cache_clear()
    native_engine.cache_clear()
    try:
        with pytest.warns(UserWarning, match="numpy interpreter"):
            assert "no C compiler" in engine().name
        with pytest.raises(NotBuilt, match="no C compiler"):
            native_engine()
    finally:
        engine.cache_clear()
        native_engine.cache_clear()


@pytest.mark.parametrize("family", [*BENCHMARKS, "supremacy", "quantum_volume", "clifford_t"])
def test_every_family_equals_the_reference_from_zero_and_from_any_state(family: str) -> None:
    """Any start: the program for a general state, run on |0...0> that it is not told about."""
    circuit = generate(family, qubits=12, rng=np.random.default_rng(8))
    reference = dense(circuit)
    for live in (False, True):
        code = compile_circuit(circuit, dtype=np.float64, live=live, shape=TileShape(size=9, run=4))
        state, _ = execute(code)
        assert np.abs(gather(state, code.placement, qubits=12) - reference).max() < 1e-11


def test_qft_of_a_basis_state_is_the_fourier_row() -> None:
    n, x = 16, 0b1011001110001111
    gates = [Gate(name="x", qubits=(q,)) for q in range(n) if x >> q & 1]
    for i in reversed(range(n)):
        gates.append(Gate(name="h", qubits=(i,)))
        gates += [Gate(name="cp", qubits=(i, j), params=(math.pi / 2 ** (i - j),)) for j in reversed(range(i))]
    got = stored(Circuit(name="qft", qubits=n, gates=tuple(gates)), np.float64, engine())
    k = np.arange(1 << n)
    mirrored = np.zeros_like(k)
    for q in range(n):
        mirrored |= (k >> q & 1) << (n - 1 - q)
    assert np.allclose(got, np.exp(2j * math.pi * x * mirrored / 2**n) / 2 ** (n / 2), atol=1e-10)


@pytest.mark.parametrize(("family", "closed"), [
    ("ghz", lambda n, x: (x == 0) | (x == 2**n - 1)),
    ("wstate", lambda n, x: np.bitwise_count(x) == 1),
])
def test_ghz_and_w_states_have_their_closed_form(family: str, closed: Callable[..., npt.NDArray[np.bool_]]) -> None:
    n = 18
    got = np.abs(stored(generate(family, qubits=n, rng=np.random.default_rng(0)), np.float64, engine()))
    support = closed(n, np.arange(1 << n))
    assert np.allclose(got, np.where(support, 1 / math.sqrt(support.sum()), 0), atol=1e-10)


def test_a_graph_state_has_the_sign_of_its_edges() -> None:
    n = 17
    circuit = generate("graphstate", qubits=n, rng=np.random.default_rng(3))
    x = np.arange(1 << n)
    edges = sum(((x >> g.qubits[0]) & (x >> g.qubits[1]) & 1 for g in circuit.gates if g.name == "cz"),
                np.zeros_like(x))
    got = stored(circuit, np.float64, engine())
    assert np.allclose(got, (-1.0) ** edges / 2 ** (n / 2), atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_state_beyond_the_cache_is_written_around_it(dtype: type) -> None:
    """Its first passes stream rows that nobody read; the closed form of a graph state holds at every probe."""
    n = (CACHED_BYTES // (2 * np.dtype(dtype).itemsize)).bit_length()
    circuit = generate("graphstate", qubits=n, rng=np.random.default_rng(3))
    code = compile_circuit(circuit, dtype=dtype)
    assert any(int(k["empty"]) & int(k["inside"]) for k in code.program.kernels)
    state, _ = execute(code)
    assert norm(state) == pytest.approx(1, abs=1e-5)
    x = np.random.default_rng(0).integers(0, 1 << n, 2000)
    edges = sum(((x >> g.qubits[0]) & (x >> g.qubits[1]) & 1 for g in circuit.gates if g.name == "cz"),
                np.zeros_like(x))
    got = amplitudes(state, code.placement, x.tolist()) * 2 ** (n / 2)
    assert np.allclose(got, (-1.0) ** edges, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("family", ["su2random", "vqc", "supremacy", "quantum_volume", "qsvm"])
def test_a_circuit_and_its_mirror_return_to_zero(family: str) -> None:
    """Full-size tiles, several kernels, moved wires: 17 qubits against a tile of 15."""
    there = generate(family, qubits=17, rng=np.random.default_rng(5), layers=2)
    back = tuple(from_matrix(g.matrix.conj().T, g.qubits) for g in reversed(there.gates))
    mirror = Circuit(name="mirror", qubits=17, gates=there.gates + back)
    for dtype, limit in ((np.float32, 2e-5), (np.float64, 1e-12)):
        got = stored(mirror, dtype, native_engine())
        assert abs(got[0] - 1) < limit
        assert np.abs(got[1:]).max() < limit


def test_a_gate_wider_than_a_tile_is_refused() -> None:
    circuit = Circuit(name="wide", qubits=7, gates=(from_matrix(haar(np.random.default_rng(0), 32), (0, 1, 2, 3, 4)),))
    with pytest.raises(SpecError, match="more than the 4 of a tile"):
        compile_circuit(circuit, dtype=np.float64, on=Interpreter(), shape=TileShape(size=4, run=2))


@given(seed=st.integers(0, 10**6), size=st.integers(3, 6), run=st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_tiles_hold_what_they_mix_and_keep_the_order_of_what_does_not_commute(seed: int, size: int, run: int) -> None:
    rng = np.random.default_rng(seed)
    circuit = random_circuit(rng, 8, 30)
    lowering = Lowering(8)
    for gate in circuit.gates:
        lowering.add(gate)
    primitives = lowering.take()
    from executors.circuit.tileprogram import controls_of, matrix_of, mixed_of

    if any(len(mixed_of(p)) > size for p in primitives):
        return
    kernels = tile_kernels(primitives, wires=range(8), size=size, run=run, low=None)
    order = [p for k in kernels for step in k.steps for p in step.primitives]
    assert sorted(map(id, order)) == sorted(map(id, primitives))
    for k in kernels:
        assert len(k.wires) == size
        assert set(k.low) <= k.wires
        assert all(set(mixed_of(p)) <= k.wires for step in k.steps for p in step.primitives)
    assert all(set(b.low) <= a.wires for a, b in itertools.pairwise(kernels))

    def as_gate(p) -> Gate:
        if hasattr(p, "terms"):
            x = np.arange(1 << len(p.wires))
            angle = sum(a * np.all([x >> p.wires.index(w) & 1 for w in term], axis=0) for term, a in p.terms.items())
            return from_matrix(np.diag(np.exp(1j * angle)), p.wires)
        wires = (*mixed_of(p), *(w for w, _ in controls_of(p)))
        matrix = np.eye(1 << len(wires), dtype=complex)
        k = len(mixed_of(p))
        held = sum(v << (k + i) for i, (_, v) in enumerate(controls_of(p)))
        matrix[held : held + (1 << k), held : held + (1 << k)] = matrix_of(p)
        return from_matrix(matrix, wires)

    place = {id(p): i for i, p in enumerate(order)}
    gates = {id(p): as_gate(p) for p in primitives}
    for a, b in itertools.combinations(primitives, 2):
        if place[id(a)] > place[id(b)]:
            assert commute(gates[id(a)], gates[id(b)])


# -- plans: one process, ranks, file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_plan_in_one_process_equals_the_reference_and_sends_its_closed_form(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(7, 11))
    local = n - int(rng.integers(0, 4))
    circuit = without_swaps(random_circuit(rng, n, 35))
    plan = random_plan(circuit, local, rng)
    for amplitude_bytes, dtype in ((8, np.float32), (16, np.float64)):
        problem = problem_of(circuit, local, amplitude_bytes)
        outcome = run(problem, plan, device="cpu")
        assert verify(problem, plan, outcome) == []
        on = engine_for(local, dtype)
        code = compile_plan(problem, plan, dtype=dtype, on=on)
        done = run_in_process(code, dtype=dtype, on=on)
        got = gather(done.state, dataclasses.replace(code.placement), qubits=n)
        x = np.arange(1 << n)
        wires = sum(((x >> q & 1) << w for q, w in enumerate(circuit.output or range(n))), np.zeros_like(x))
        assert np.abs(got - dense(circuit)[wires]).max() < TOLERANCE[np.dtype(dtype)]
        assert len(done.exchange_s) == len(plan.stages) - 1
        assert done.sent_bytes == exchange_bytes(code, amplitude_bytes)


def test_verify_rejects_a_wrong_amplitude() -> None:
    circuit = generate("ghz", qubits=6, rng=np.random.default_rng(0))
    problem = problem_of(circuit, 6)
    plan = random_plan(circuit, 6, np.random.default_rng(0))
    outcome = run(problem, plan, device="cpu")
    outcome.tables["amplitudes"].loc[0, "real"] += 0.1
    assert [v.rule for v in verify(problem, plan, outcome)] == ["amplitudes"]


def test_an_unknown_device_is_refused() -> None:
    circuit = generate("ghz", qubits=6, rng=np.random.default_rng(0))
    with pytest.raises(SpecError, match="no device is called"):
        run(problem_of(circuit, 6), random_plan(circuit, 6, np.random.default_rng(0)), device="tpu")


@pytest.mark.parametrize("seed", range(6))
def test_out_of_core_reads_and_writes_the_state_once_a_stage(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(50 + seed)
    n = 10
    local = int(rng.integers(7, 10))
    circuit = without_swaps(random_circuit(rng, n, 30))
    plan = random_plan(circuit, local, rng)
    on = engine_for(local, np.float64)
    code = compile_plan(problem_of(circuit, local), plan, dtype=np.float64, on=on)
    done = run_on_file(code, tmp_path / "state", dtype=np.float64, on=on)
    state = np.fromfile(tmp_path / "state", dtype=np.complex128)
    wires = circuit.output or tuple(range(n))
    x = np.arange(1 << n)
    index = sum(((x >> q & 1) << w for q, w in enumerate(wires)), np.zeros_like(x))
    assert np.abs(gather(state, done.placement, qubits=n) - dense(circuit)[index]).max() < 1e-11
    assert done.read_bytes == done.written_bytes == len(plan.stages) * state.nbytes


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, *(pytest.param(r, marks=pytest.mark.slow) for r in (4, 8))])
def test_ranks_over_gloo_equal_one_process_and_send_the_closed_form(ranks: int, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="ranks need torch: pip install planner-workbench[run]")
    from executors.circuit.ranks import spawn

    n, bits = 10, ranks.bit_length() - 1
    rng = np.random.default_rng(ranks)
    circuit = without_swaps(random_circuit(rng, n, 40))
    plan = random_plan(circuit, n - bits, rng)
    dtype = np.float32 if ranks == 4 else np.float64
    problem = problem_of(circuit, n - bits, 2 * np.dtype(dtype).itemsize)
    parts = spawn(problem, plan, ranks=ranks, dtype=dtype, folder=tmp_path)
    code = compile_plan(problem, plan, dtype=dtype)
    together = run_in_process(code, dtype=dtype, on=engine_for(n - bits, dtype))
    assert np.abs(np.concatenate([p.state for p in parts]) - together.state).max() < (1e-6 if ranks == 4 else 1e-10)
    assert np.sum([p.sent_bytes for p in parts], axis=0).tolist() == exchange_bytes(code, 2 * np.dtype(dtype).itemsize)
    assert all(len(p.sent_bytes) == len(plan.stages) - 1 for p in parts)


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_at_most_a_tenth_above_the_state() -> None:
    """25 qubits in single precision: 256 MiB of state, all of it written."""
    code = (
        "import numpy as np\n"
        "from planners.circuit.generators import BENCHMARKS, generate\n"
        "from executors.circuit.local import compile_circuit, execute\n"
        "def peak():\n"
        "    return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024\n"
        "warm = compile_circuit(generate('su2random', qubits=18, rng=np.random.default_rng(0)), dtype=np.float32)\n"
        "execute(warm)\n"
        "circuit = generate('su2random', qubits=25, rng=np.random.default_rng(0), layers=1)\n"
        "c = compile_circuit(circuit, dtype=np.float32)\n"
        "before = peak()\n"
        "state, _ = execute(c)\n"
        "print((peak() - before) / state.nbytes)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.1


# -- what is read from a state ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    circuit = random_circuit(np.random.default_rng(77), 9, 60)
    code = compile_circuit(circuit, dtype=np.float64)
    state, _ = execute(code)
    return circuit, state, code.placement, dense(circuit)


def test_amplitudes_and_marginals_equal_the_reference(measured, tmp_path: Path) -> None:
    circuit, state, placement, reference = measured
    basis = [0, 5, 511, 300]
    assert np.allclose(amplitudes(state, placement, basis), reference[basis], atol=1e-12)
    qubits = (7, 0, 3)
    x = np.arange(512)
    key = sum((x >> q & 1) << i for i, q in enumerate(qubits))
    assert np.allclose(marginal(state, placement, qubits), np.bincount(key, np.abs(reference) ** 2, 8), atol=1e-12)
    assert abs(norm(state) - 1) < 1e-12
    save(state, placement, tmp_path / "state.npy", qubits=circuit.qubits)
    assert np.allclose(np.load(tmp_path / "state.npy"), reference, atol=1e-12)


@given(letters=st.lists(st.sampled_from("IXYZ"), min_size=9, max_size=9))
@settings(max_examples=40, deadline=None)
def test_pauli_expectations_equal_the_reference(letters: list[str], measured) -> None:
    _, state, placement, reference = measured
    matrices = {"I": np.eye(2), "X": np.array([[0, 1], [1, 0]]), "Y": np.array([[0, -1j], [1j, 0]]),
                "Z": np.diag([1, -1])}
    psi = reference.reshape((2,) * 9)
    for q, letter in enumerate(letters):
        psi = np.moveaxis(np.tensordot(matrices[letter], psi, axes=(1, 8 - q)), 0, 8 - q)
    exact = float(np.vdot(reference, psi.reshape(-1)).real)
    term = PauliTerm(coefficient=2.0, paulis={q: p for q, p in enumerate(letters) if p != "I"})
    assert expectation(state, placement, [term]) == pytest.approx(2 * exact, abs=1e-12)


def test_samples_follow_the_probabilities(measured) -> None:
    _, state, placement, reference = measured
    count = 200_000
    drawn = sample(state, placement, count, rng=np.random.default_rng(1))
    got = np.bincount(drawn, minlength=512) / count
    probability = np.abs(reference) ** 2
    assert np.all(np.abs(got - probability) <= 6 * np.sqrt(probability / count) + 1e-9)


def test_pauli_text_is_read_and_refused() -> None:
    assert parse_pauli("X0 z12").paulis == {0: "X", 12: "Z"}
    for wrong in ("Q1", "X", "X1 Z1"):
        with pytest.raises(SpecError):
            parse_pauli(wrong)


# -- costs of the native kernels ---------------------------------------------------------------------------------------


class ExactMachine:
    """An engine that computes nothing and says that kernels take known times a class, and 7 us to start on one tile."""

    name = "exact"
    truth: ClassVar[dict[str, float]] = {name: 1e-12 * (3 + 5 * i) for i, name in enumerate((*MEMORY, *CLASSES))}

    def lanes(self, dtype: npt.DTypeLike) -> int:
        return 4 if np.dtype(dtype).itemsize == 4 else 3

    def run(self, program: Program, state: npt.NDArray[np.complexfloating], *, shard: int, threads: int
            ) -> npt.NDArray[np.float64]:
        known = kernel_amplitudes(program, lanes=self.lanes(program.dtype), threads=threads)
        taken = np.array([sum(self.truth[name] * count for name, count in kernel.items()) for kernel in known])
        first = program.kernels[0]
        one = int(first["inside"]) | int(first["empty"]) == (1 << program.address_bits) - 1
        taken[0] += 7e-6 if one else 0.0
        return taken


def test_calibration_finds_the_costs_of_a_machine_that_has_them() -> None:
    calibration = Calibration(dtype=np.float64, threads=2, on=ExactMachine())
    calibration.round()
    costs = calibration.costs()
    for name, seconds in costs.class_s.items():
        assert seconds == pytest.approx(ExactMachine.truth[name], rel=1e-6)
    assert costs.start_s == pytest.approx(7e-6, rel=1e-3)
    assert set(costs.class_s) == {*MEMORY, *CLASSES} - {"permute16"}, "vectors of eight reals have no sixteen sources"
    with pytest.raises(MissingProfile, match="permute16"):
        costs.seconds("permute16")


def test_fitted_costs_are_never_negative() -> None:
    found = fit([{"a": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}], [1.0, 0.9, 0.8])
    assert found["b"] == 0
    assert 0.8 < found["a"] < 1.0


@needs_compiler
@pytest.mark.parametrize("name", profiled.CLASSES)
def test_gates_that_are_profiled_are_applied_as_often_as_counted_and_keep_the_norm(name: str) -> None:
    """Their operations run several times in one kernel, whose scale must make up for every unnormalised turn."""
    op = next(op for op in profiled.OPS if op.name == "tile_gate")
    point = {"gate": name, "amplitudes": 1 << 15, "amplitude_bytes": 16}
    made = op.prepare(point, "cpu", np.random.default_rng(0))
    try:
        for _ in range(3):
            made.run()
        assert norm(profiled._state(15, 8)) == pytest.approx(1, abs=1e-9)
        assert made.timer is not None
        assert made.timer.block(made.run, 2) > 0
    finally:
        assert op.finish is not None
        op.finish()


@needs_compiler
def test_every_operation_of_every_family_has_a_class_and_a_price() -> None:
    lanes = native_engine().lanes(np.float32)
    unit = GateCosts(device="unit", amplitude_bytes=8, tile_qubits=15, threads=1, start_s=0.0,
                     class_s={**dict.fromkeys(MEMORY, 1.0), **dict.fromkeys(CLASSES, 0.0)})
    for family in [*BENCHMARKS, "supremacy", "quantum_volume", "clifford_t"]:
        code = compile_circuit(generate(family, qubits=18, rng=np.random.default_rng(1)), dtype=np.float32)
        # free operations leave memory: every amplitude of the tiles that are not empty, once
        assert all(2**15 <= seconds <= 2**18 for seconds in predict(code.program, unit, lanes=lanes))
        names = {name for kernel in classes_of(code.program, lanes=lanes) for name, _ in kernel}
        assert names <= {*MEMORY, *CLASSES}


@needs_compiler
def test_the_parts_of_a_phase_are_those_of_its_walk_over_blocks() -> None:
    """Against a walk block by block as the compiled code does it, for phases that nothing outside the tile steers."""
    seen = 0
    for family in ("qft", "vqc", "ising", "supremacy"):
        program = compile_circuit(generate(family, qubits=15, rng=np.random.default_rng(3)), dtype=np.float32).program
        for kernel, parts in zip(program.kernels, classes_of(program, lanes=4), strict=True):
            want = dict.fromkeys(("phase_scalar", "phase_table", "phase_product"), 0.0)
            bits = int(kernel["bits"])
            for op in program.ops[int(kernel["first"]) : int(kernel["first"]) + int(kernel["count"])]:
                if KINDS[int(op["kind"])] != "phase":
                    continue
                seen += 1
                assert not op["count"]
                low, crossing = int(op["bit"][0]), int(op["control_mask"])
                at = int(op["reals"]) + (2 << low) * (int(op["flag"]) + crossing.bit_count())
                table_at = [bool(op["flag"])] * (bits - low + 1)
                for b in range(1 << (bits - low)):
                    if b:
                        k = (b & -b).bit_length() - 1
                        want["phase_product"] += bool(crossing >> k & 1 and table_at[k + 1]) / (1 << (bits - low))
                        table_at[: k + 1] = [table_at[k + 1] or bool(crossing >> k & 1)] * (k + 1)
                    plain = program.reals[at + 2 * b] == 1 and program.reals[at + 2 * b + 1] == 0
                    kind = "phase_table" if table_at[0] else "" if plain else "phase_scalar"
                    if kind:
                        want[kind] += 1 / (1 << (bits - low))
            for name, share in want.items():
                assert sum(s for n, s in parts if n == name) == pytest.approx(share)
    assert seen > 5


# -- the virtual clock -----------------------------------------------------------------------------------------------


def test_the_closed_form_reproduces_the_published_shuffle_times() -> None:
    """Raw artifact timings of one shuffle at 29 to 36 qubits (dj), 4 GiB shards: within 7 %."""
    published_ms = {29: 36.6, 30: 18.2, 31: 158.0, 32: 230.8, 33: 281.0, 34: 311.7, 35: 325.0, 36: 340.6}
    for n, ms in published_ms.items():
        regional = min(2, n - 28)
        took = exchange_seconds(2.0**32, regional=regional, global_=n - 28 - regional)
        assert took * 1e3 == pytest.approx(ms, rel=0.07)


def test_the_simulated_clock_is_the_sum_of_kernels_and_exchanges() -> None:
    rng = np.random.default_rng(9)
    circuit = without_swaps(random_circuit(rng, 9, 30))
    plan = random_plan(circuit, 7, rng)
    outcome = simulate(problem_of(circuit, 7), plan, None)
    kernels = sum(len(s.kernels) for s in plan.stages)
    assert outcome["kernel_s"] == pytest.approx(1e-3 * kernels)
    assert outcome["total_s"] == pytest.approx(outcome["kernel_s"] + outcome["communication_s"])
    assert outcome.timeline is not None
    assert outcome.timeline.violations() == []


def test_the_run_model_adds_its_kernels_gates_and_transitions() -> None:
    circuit = generate("qft", qubits=8, rng=np.random.default_rng(0))
    plan = random_plan(circuit, 7, np.random.default_rng(2), kind="fusion")
    table = dataclasses.replace(TABLE, fusion_s=tuple(float(m) for m in range(8)))
    plan = dataclasses.replace(plan, table=table)
    unit = FittedCosts(fusion_scale=2.0, tile_s=0.0, gate_s={}, transition_s=100.0)
    fused = sum(2.0 * len(k.qubits) for stage in plan.stages for k in stage.kernels)
    exchanged = sum(exchange_seconds(16 * 2.0**7, regional=r, global_=g) for r, g, _, _ in transitions(plan))
    assert run_seconds(circuit, plan, fitted=unit) == pytest.approx(
        fused + 100.0 * (len(plan.stages) - 1) + exchanged)
