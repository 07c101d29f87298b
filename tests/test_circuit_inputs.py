"""Circuits in: what matrices say about gates, OpenQASM 2 and 3, other libraries' circuits, generated families."""

from __future__ import annotations

import cmath
import gzip
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.circuit import Circuit, Gate, Machine, Problem, Source
from planners.circuit.gateset import BUILDERS
from planners.circuit.generators import BENCHMARKS, FAMILIES, generate
from planners.circuit.ir import axes, commute, embed, from_matrix, product_of, specialise, structure_of, without_swaps
from planners.circuit.load import merge_gates, source_circuit
from planners.circuit.peephole import diagonal_groups
from planners.circuit.problem import move
from planners.circuit.qasm import inverse, parse_qasm, read_qasm
from tests.oracles_circuit import (
    apply_gate,
    dense_state,
    fourier_state,
    mixing_by_definition,
    permuted,
    random_circuit,
    unitary_of,
)
from traces.registry import available, fetch
from workbench.errors import SpecError

NAMED = [name for name, (qubits, _, _) in BUILDERS.items() if qubits]


def named(name: str, rng: np.random.Generator) -> Gate:
    qubits, params, _ = BUILDERS[name]
    return Gate(name=name, qubits=tuple(range(qubits)), params=tuple(float(a) for a in rng.uniform(-3, 3, params)))


def public(name: str) -> Path:
    if available(name) is None:
        pytest.skip(f"public file {name} is not here: set WB_DATA_MIRROR, or wb traces fetch {name}")
    return fetch(name)


# -- gates and their structure ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMED)
def test_every_named_gate_is_unitary_and_classified_by_its_entries(name: str) -> None:
    gate = named(name, np.random.default_rng(len(name)))
    matrix = gate.matrix
    assert np.allclose(matrix @ matrix.conj().T, np.eye(len(matrix)))
    assert set(gate.structure.mixing) == mixing_by_definition(matrix)
    assert set(gate.structure.mixing) | set(gate.structure.insular) == set(range(len(gate.qubits)))


def test_insularity_comes_from_the_matrix_not_the_name() -> None:
    # a controlled RZ is diagonal, an RX by pi flips, an RX by 0 does nothing, a CX written as a matrix is a CX
    assert Gate(name="crz", qubits=(0, 1), params=(0.3,)).mixing == ()
    assert Gate(name="rx", qubits=(0,), params=(math.pi,)).structure.flips == (0,)
    assert Gate(name="rx", qubits=(0,), params=(0.0,)).structure.diagonal == (0,)
    assert from_matrix(Gate(name="cx", qubits=(0, 1)).matrix, (4, 2)).mixing == (2,)
    assert Gate(name="swap", qubits=(0, 1)).mixing == (0, 1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_specialising_equals_projecting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    circuit = random_circuit(rng, qubits=3, gates=1)
    gate = circuit.gates[0]
    fixed = {p: int(rng.integers(2)) for p in gate.structure.insular if rng.integers(2)}
    inner, held = specialise(gate.matrix, fixed)
    k = len(gate.qubits)
    free = [p for p in range(k) if p not in fixed]
    for column in range(1 << len(free)):
        state = np.zeros(1 << k, dtype=complex)
        start = sum((column >> i & 1) << p for i, p in enumerate(free)) | sum(v << p for p, v in fixed.items())
        state[start] = 1
        after = gate.matrix @ state
        for row in range(1 << len(free)):
            end = sum((row >> i & 1) << p for i, p in enumerate(free)) | sum(v << p for p, v in held.items())
            assert after[end] == pytest.approx(inner[row, column])
        assert np.linalg.norm(inner[:, column]) == pytest.approx(1)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_commuting_is_decided_as_by_full_matrices_and_equal_axes_imply_it(seed: int) -> None:
    circuit = random_circuit(np.random.default_rng(seed), qubits=3, gates=2)
    a, b = circuit.gates
    ab, ba = unitary_of([b, a], 3), unitary_of([a, b], 3)
    assert commute(a, b) == (np.abs(ab - ba).max() < 1e-8)
    way_a, way_b = dict(zip(a.qubits, axes(a), strict=True)), dict(zip(b.qubits, axes(b), strict=True))
    if all("i" in (way_a[q], way_b[q]) or way_a[q] == way_b[q] != "none" for q in set(way_a) & set(way_b)):
        assert commute(a, b)


def test_axes_of_the_usual_gates() -> None:
    assert axes(Gate(name="cx", qubits=(0, 1))) == ("z", "x")
    assert axes(Gate(name="rxx", qubits=(0, 1), params=(0.4,))) == ("x", "x")
    assert axes(Gate(name="cy", qubits=(0, 1))) == ("z", "y")
    assert axes(Gate(name="rz", qubits=(0,), params=(0.0,))) == ("i",)
    assert axes(Gate(name="h", qubits=(0,))) == ("none",)


def test_products_and_embeddings_equal_applying_gate_after_gate() -> None:
    rng = np.random.default_rng(3)
    circuit = random_circuit(rng, qubits=3, gates=6)
    product = product_of(circuit.gates)
    whole = embed(product.matrix, product.qubits, 3)
    assert np.allclose(whole, unitary_of(circuit.gates, 3))
    state = rng.normal(size=8) + 0j
    gate = circuit.gates[0]
    assert np.allclose(embed(gate.matrix, gate.qubits, 3) @ state, apply_gate(state, gate.matrix, gate.qubits))


def test_wrong_gates_are_refused_with_a_reason() -> None:
    with pytest.raises(SpecError, match="unknown gate 'hh'"):
        _ = Gate(name="hh", qubits=(0,)).matrix
    with pytest.raises(SpecError, match="not unitary"):
        _ = from_matrix(np.ones((2, 2)), (0,)).matrix
    with pytest.raises(SpecError, match="twice"):
        Circuit(name="x", qubits=2, gates=(Gate(name="cx", qubits=(1, 1)),))
    with pytest.raises(SpecError, match="leaves the circuit"):
        Circuit(name="x", qubits=2, gates=(Gate(name="x", qubits=(2,)),))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_taking_swaps_out_keeps_the_state(seed: int) -> None:
    rng = np.random.default_rng(seed)
    circuit = random_circuit(rng, qubits=4, gates=12, kinds=["swap", "cx", "u3", "t"])
    plain = without_swaps(circuit)
    assert all(gate.name != "swap" for gate in plain.gates)
    assert np.allclose(permuted(dense_state(plain), plain.output), dense_state(circuit))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_merging_diagonal_groups_keeps_the_state(seed: int) -> None:
    rng = np.random.default_rng(seed)
    circuit = random_circuit(rng, qubits=3, gates=14, kinds=["cx", "rz", "h", "p"])
    groups = diagonal_groups(circuit)
    merged = merge_gates(circuit, groups)
    assert np.allclose(dense_state(merged), dense_state(circuit))
    assert len(merged.gates) == len(circuit.gates) - sum(len(g) - 1 for g in groups)


def test_ladders_merge_into_diagonal_gates() -> None:
    circuit = generate("qsvm", qubits=6, rng=np.random.default_rng(0))
    merged = merge_gates(circuit, diagonal_groups(circuit))
    assert {gate.name for gate in merged.gates} == {"h", "p", "rz", "unitary"}
    assert sum(not gate.mixing for gate in merged.gates if gate.name == "unitary") == 2 * 5


@settings(max_examples=100, deadline=None)
@given(data=st.data(), count=st.integers(1, 7))
def test_a_move_takes_one_layout_to_the_other_in_three_steps(data: st.DataObject, count: int) -> None:
    local = data.draw(st.integers(1, count))
    before = tuple(data.draw(st.permutations(range(count))))
    after = tuple(data.draw(st.permutations(range(count))))
    steps = move(before, after, local_qubits=local)
    now = list(before)
    for p in range(local):
        now[steps.local[p]] = before[p]
    for a, b in steps.exchange:
        now[a], now[b] = now[b], now[a]
    outer = list(now)
    for i, t in enumerate(steps.shards):
        outer[local + t] = now[local + i]
    assert tuple(outer) == after
    assert len(steps.exchange) == len(set(after[:local]) - set(before[:local]))


# -- OpenQASM ------------------------------------------------------------------------------------------------------

QELIB = {
    # the standard header's definitions, to hold named matrices against (up to a global phase)
    "rccx": "u2(0,pi) c; u1(pi/4) c; cx b,c; u1(-pi/4) c; cx a,c; u1(pi/4) c; cx b,c; u1(-pi/4) c; u2(0,pi) c;",
    "ccx": "h c; cx b,c; tdg c; cx a,c; t c; cx b,c; tdg c; cx a,c; t b; t c; h c; cx a,b; t a; tdg b; cx a,b;",
    "cswap": "cx c,b; ccx a,b,c; cx c,b;",
    "ch": "h b; sdg b; cx a,b; h b; t b; cx a,b; t b; h b; s b; x b; s a;",
    "crz": "u1(0.7/2) b; cx a,b; u1(-0.7/2) b; cx a,b;",
    "cu1": "u1(0.7/2) a; cx a,b; u1(-0.7/2) b; cx a,b; u1(0.7/2) b;",
    "rzz": "cx a,b; u1(0.7) b; cx a,b;",
    "rxx": "h a; h b; cx a,b; rz(0.7) b; cx a,b; h b; h a;",
    "iswap": "s a; s b; h a; cx a,b; cx b,a; h b;",
    "dcx": "cx a,b; cx b,a;",
    "swap": "cx a,b; cx b,a; cx a,b;",
    "csx": "h b; cu1(pi/2) a,b; h b;",
    "cy": "sdg b; cx a,b; s b;",
    "sxdg": "s a; h a; s a;",
    "ryy": "rx(pi/2) a; rx(pi/2) b; cx a,b; rz(0.7) b; cx a,b; rx(-pi/2) a; rx(-pi/2) b;",
    "rzx": "h b; cx a,b; rz(0.7) b; cx a,b; h b;",
}


@pytest.mark.parametrize("name", QELIB)
def test_named_gates_equal_their_textbook_circuits(name: str) -> None:
    qubits, params, _ = BUILDERS[name]
    wires = "abc"[:qubits]
    text = f"OPENQASM 2.0; qreg q[{qubits}]; gate mine {','.join(wires)} {{ {QELIB[name]} }} mine "
    text += ",".join(f"q[{i}]" for i in range(qubits)) + ";"
    textbook = unitary_of(parse_qasm(text).gates, qubits)
    matrix = Gate(name=name, qubits=tuple(range(qubits)), params=(0.7,) * params).matrix
    phase = np.vdot(matrix.ravel(), textbook.ravel())
    assert abs(phase) == pytest.approx(len(matrix))


def test_qasm3_modifiers_broadcasts_loops_and_expressions() -> None:
    text = """
    OPENQASM 3.0; include "stdgates.inc";
    const int n = 3;
    qubit[n] q; bit[n] c; /* a
    comment */
    gate twist(a, b) x, y { rx(a/2) x; ctrl @ rz(b**2) x, y; gphase(pi/4); }
    h q;                      // broadcast
    for int i in [0:n-2] { cx q[i], q[i+1]; }
    inv @ twist(0.4, 1.5) q[0], q[2];
    negctrl @ ctrl @ x q[0], q[1], q[2];
    pow(2) @ t q[1];
    pow(0.5) @ x q[0];
    ctrl(2) @ gphase(0.3) q[0], q[1];
    let pair = q[{2, 0}];
    cz pair[0], pair[1];
    barrier q;
    c = measure q;
    """
    circuit = parse_qasm(text)
    by_hand: list[Gate] = [Gate(name="h", qubits=(q,)) for q in range(3)]
    by_hand += [Gate(name="cx", qubits=(0, 1)), Gate(name="cx", qubits=(1, 2))]
    by_hand += [Gate(name="crz", qubits=(0, 2), params=(-1.5**2,)), Gate(name="rx", qubits=(0,), params=(-0.2,))]
    by_hand += [Gate(name="x", qubits=(0, 1, 2), controls=(0, 1)), Gate(name="s", qubits=(1,))]
    by_hand += [Gate(name="sx", qubits=(0,)), Gate(name="cp", qubits=(0, 1), params=(0.3,)),
                Gate(name="cz", qubits=(2, 0))]
    wanted = cmath.exp(-0.25j * math.pi) * unitary_of(by_hand, 3)
    assert np.allclose(unitary_of(circuit.gates, 3), wanted)


@pytest.mark.parametrize(("line", "complaint"), [
    ("if (c == 1) x q[0];", "classical control"),
    ("reset q[0];", "reset of qubit 0"),
    ("measure q[0] -> c[0]; h q[0];", "measurement inside a circuit"),
    ("opaque magic a;", "opaque"),
    ("hh q[0];", "unknown gate 'hh'"),
    ("cx q[0], q[0];", "twice"),
    ("x q[5];", "leaves register"),
    ("rz q[0];", "takes 1 qubits and 1 parameters"),
    ("x r[0];", "unknown register"),
    ("rz(alpha) q[0];", "unknown value 'alpha'"),
    ("x q[0] ]", "expected"),
    ("cx q, r2;", "unknown register"),
])
def test_what_cannot_be_planned_is_refused_with_its_line(line: str, complaint: str) -> None:
    text = f'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[2];\ncreg c[2];\nh q[0];\n{line}\n'
    with pytest.raises(SpecError, match=complaint) as caught:
        parse_qasm(text, where="file.qasm")
    assert "file.qasm:6" in str(caught.value)


def test_measurement_at_the_end_and_reset_at_the_start_are_accepted() -> None:
    text = 'OPENQASM 2.0; qreg q[2]; creg c[2]; reset q; h q[0]; barrier q; cx q[0],q[1]; measure q -> c;'
    assert [gate.name for gate in parse_qasm(text).gates] == ["h", "cx"]


@pytest.mark.parametrize("name", NAMED)
def test_inverse_gates_undo(name: str) -> None:
    gate = named(name, np.random.default_rng(5))
    assert np.allclose(inverse(gate).matrix @ gate.matrix, np.eye(len(gate.matrix)))


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read the circuit"):
        read_qasm(tmp_path / "none.qasm")


def test_plain_and_gzip_files_read_alike(tmp_path: Path) -> None:
    text = "OPENQASM 2.0; qreg a[1]; qreg b[2]; cx a[0], b[1]; ry(-pi/3) b[0];"
    (tmp_path / "c.qasm").write_text(text)
    (tmp_path / "z.qasm.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = read_qasm(tmp_path / "c.qasm"), read_qasm(tmp_path / "z.qasm.gz")
    assert plain.gates == packed.gates
    assert [g.qubits for g in plain.gates] == [(0, 2), (1,)]


GATES_AT_28 = {"ae": 514, "bv": 66, "dj": 82, "ghz": 28, "graphstate": 56, "ising": 302, "qft": 406, "qpeexact": 432,
               "qsvm": 274, "su2random": 1246, "vqc": 1873, "wstate": 109}


@pytest.mark.parametrize("family", GATES_AT_28)
def test_public_circuits_have_their_published_number_of_gates(family: str) -> None:
    assert len(read_qasm(public(f"qasm-{family}_n28")).gates) == GATES_AT_28[family]


@pytest.mark.parametrize("family", sorted(set(BENCHMARKS) - {"graphstate", "qpeexact"}))
def test_generated_families_have_the_public_files_gates_on_every_wire(family: str) -> None:
    def by_wire(circuit: Circuit) -> list[list[tuple[bool, tuple[int, ...]]]]:
        wires: list[list[tuple[bool, tuple[int, ...]]]] = [[] for _ in range(circuit.qubits)]
        for gate in circuit.gates:
            for q in gate.qubits:
                wires[q].append((bool(gate.mixing), gate.qubits))
        return wires

    real = read_qasm(public(f"qasm-{family}_n28"))
    made = generate(family, qubits=28, rng=np.random.default_rng(7))
    # rotations by 0 in the public ising file are the identity: compare which wires gates touch, there
    if family == "ising":
        assert [g.qubits for g in real.gates] == [g.qubits for g in made.gates]
    else:
        assert by_wire(real) == by_wire(made)


# -- other libraries -----------------------------------------------------------------------------------------------

def test_qiskit_circuits_keep_their_unitary() -> None:
    qiskit = pytest.importorskip("qiskit")
    quantum_info = pytest.importorskip("qiskit.quantum_info")
    from planners.circuit.adapters import from_qiskit

    given_circuit = qiskit.QuantumCircuit(3, 3, global_phase=0.3)
    given_circuit.h(0)
    given_circuit.cx(0, 1, ctrl_state=0)
    given_circuit.ecr(1, 2)
    given_circuit.append(qiskit.circuit.library.QFTGate(3), [2, 0, 1])
    given_circuit.cu(0.1, 0.2, 0.3, 0.4, 0, 2)
    given_circuit.barrier()
    given_circuit.mcp(0.7, [0, 1], 2)
    wanted = quantum_info.Operator(given_circuit).data
    given_circuit.measure(0, 0)
    assert np.allclose(unitary_of(from_qiskit(given_circuit).gates, 3), wanted)
    given_circuit.x(0)
    with pytest.raises(SpecError, match="measured qubit"):
        from_qiskit(given_circuit)
    free = qiskit.QuantumCircuit(1)
    free.rx(qiskit.circuit.Parameter("t"), 0)
    with pytest.raises(SpecError, match="free parameter"):
        from_qiskit(free)


def test_cirq_circuits_keep_their_unitary() -> None:
    cirq = pytest.importorskip("cirq")
    from planners.circuit.adapters import from_cirq

    a, b, c = cirq.LineQubit.range(3)
    given_circuit = cirq.Circuit(cirq.H(a), cirq.CNOT(a, c) ** 0.5, cirq.ISWAP(b, c), cirq.TOFFOLI(c, a, b),
                                 cirq.FSimGate(0.3, 0.4)(a, b))
    read = from_cirq(given_circuit)
    # there the first qubit is the most significant
    index = [int(format(i, "03b")[::-1], 2) for i in range(8)]
    assert np.allclose(unitary_of(read.gates, 3)[np.ix_(index, index)], cirq.unitary(given_circuit))


@pytest.mark.parametrize("seed", range(6))
def test_random_qiskit_circuits_give_qiskits_own_state(seed: int) -> None:
    pytest.importorskip("qiskit")
    library = pytest.importorskip("qiskit.circuit.random")
    quantum_info = pytest.importorskip("qiskit.quantum_info")
    from planners.circuit.adapters import from_qiskit

    given_circuit = library.random_circuit(5, 8, max_operands=4, seed=seed)
    wanted = np.asarray(quantum_info.Statevector(given_circuit).data)
    assert np.abs(dense_state(from_qiskit(given_circuit)) - wanted).max() < 1e-10


@pytest.mark.parametrize("seed", range(6))
def test_random_cirq_circuits_give_cirqs_own_state(seed: int) -> None:
    cirq = pytest.importorskip("cirq")
    from planners.circuit.adapters import from_cirq

    given_circuit = cirq.testing.random_circuit(cirq.LineQubit.range(5), 12, 0.7, random_state=seed)
    # every qubit takes part, so that both sides count five
    given_circuit.append(cirq.I.on_each(*cirq.LineQubit.range(5)))
    wanted = cirq.Simulator(dtype=np.complex128).simulate(given_circuit).final_state_vector
    index = [int(format(i, "05b")[::-1], 2) for i in range(32)]
    assert np.abs(dense_state(from_cirq(given_circuit))[index] - wanted).max() < 1e-10


# -- generated families --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_are_seeded_and_normalised(family: str) -> None:
    one, same, other = (generate(family, qubits=6, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert one == same
    assert np.linalg.norm(dense_state(one)) == pytest.approx(1)
    if family not in ("ghz", "qft", "wstate"):
        assert one != other


def test_ghz_w_and_graph_states_have_their_closed_forms() -> None:
    n, rng = 6, np.random.default_rng(0)
    ghz = dense_state(generate("ghz", qubits=n, rng=rng))
    assert ghz[0] == pytest.approx(math.sqrt(0.5)) == ghz[-1]
    w = dense_state(generate("wstate", qubits=n, rng=rng))
    assert np.allclose(abs(w[[1 << q for q in range(n)]]), 1 / math.sqrt(n))
    graph = generate("graphstate", qubits=n, rng=rng)
    edges = [gate.qubits for gate in graph.gates if gate.name == "cz"]
    signs = [(-1) ** sum(k >> a & k >> b & 1 for a, b in edges) for k in range(1 << n)]
    assert np.allclose(dense_state(graph), np.array(signs) / 2 ** (n / 2))
    assert set(Counter(q for e in edges for q in e).values()) == {2}


def test_the_fourier_transform_of_every_basis_state() -> None:
    n = 5
    qft = generate("qft", qubits=n, rng=np.random.default_rng(0))
    for value in range(1 << n):
        flips = tuple(Gate(name="x", qubits=(q,)) for q in range(n) if value >> q & 1)
        state = dense_state(Circuit(name="x", qubits=n, gates=flips + qft.gates))
        assert np.allclose(state, fourier_state(n, value))


def test_exact_phase_estimation_ends_in_one_basis_state() -> None:
    for seed in range(4):
        state = dense_state(generate("qpeexact", qubits=6, rng=np.random.default_rng(seed)))
        assert abs(state).max() == pytest.approx(1)


def test_deutsch_jozsa_and_bernstein_vazirani_answers() -> None:
    n = 6
    balanced = dense_state(generate("dj", qubits=n, rng=np.random.default_rng(1)))
    inputs = (1 << n - 1) - 1
    assert np.abs(balanced[[k for k in range(1 << n) if not k & inputs]]).max() == pytest.approx(0, abs=1e-12)
    bv = generate("bv", qubits=n, rng=np.random.default_rng(1))
    secret = sum(1 << gate.qubits[0] for gate in bv.gates if gate.name == "cx")
    assert np.linalg.norm(dense_state(bv)[[secret, secret | 1 << n - 1]]) == pytest.approx(1)


def test_the_linear_solver_solves() -> None:
    n = 7
    circuit = generate("hhl", qubits=n, rng=np.random.default_rng(4))
    load = circuit.gates[0]
    system = load.qubits
    clock = n - 1 - len(system)
    first = next(gate for gate in circuit.gates if gate.controls == (1,))
    values, vectors = np.linalg.eig(first.matrix[1::2, 1::2])
    eigen = np.rint(np.angle(values) % (2 * math.pi) * 2**clock / (2 * math.pi))
    right = load.matrix[:, 0]
    solution = np.linalg.solve(vectors, right) / eigen
    wanted = vectors @ solution
    state = dense_state(circuit)
    found = np.array([state[1 | k << system[0]] for k in range(1 << len(system))])
    assert np.allclose(found, wanted)


def test_a_source_is_exactly_one_thing() -> None:
    with pytest.raises(SpecError, match="exactly one place"):
        Source(family="qft", qubits=3, file="x.qasm")
    with pytest.raises(SpecError, match="number of qubits"):
        Source(family="qft")
    with pytest.raises(SpecError, match="did you mean 'qft'"):
        source_circuit(Problem(circuit=Source(family="qtf", qubits=3), machine=Machine(local_qubits=3)))


def test_structure_of_an_identity_claims_no_controls() -> None:
    assert structure_of(np.eye(4, dtype=complex)).controls == ()
