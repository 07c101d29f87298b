"""GPU programs of plan kernels equal a dense reference: on the host (the device source compiled as C++), and on a GPU.

The host build runs each block with one thread, which is what the source's loops allow; machine code for A100 and H100
is made ahead of time with nvcc, or with NVRTC where cupy is installed.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from executors.circuit import run, verify
from executors.circuit.gpu import available, source, time_kernels
from executors.circuit.outcome import exchange_shards
from executors.circuit.state import allocate, gather
from executors.circuit.tileprogram import OP, STEP, TERM, TILE_BITS, GroupMatrix, TileProgram, kernel_programs
from planners.circuit import Circuit, Gate, Machine, Problem, Source
from planners.circuit.generators import BENCHMARKS
from planners.circuit.ir import without_swaps
from planners.circuit.load import planned_circuit
from planners.circuit.planning import plan as planned
from tests.test_circuit_run import dense, problem_of, random_circuit, random_plan
from workbench.costs import open_costs
from workbench.errors import SpecError

SHIM = """
#include <cmath>
#define __global__
#define __device__
#define __shared__
#define __syncthreads()
#define __align__(n) alignas(n)
struct axis { unsigned x; };
static axis threadIdx = {0}, blockIdx = {0}, blockDim = {1}, gridDim = {1};
"""
RECORDS = {"step": STEP, "op": OP, "term": TERM}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler to run the device source on the host")
    folder = tmp_path_factory.mktemp("gpu")
    sizes = "".join(f'extern "C" int size_of_{name}() {{ return sizeof({name}); }}\n' for name in RECORDS)
    (folder / "gates.cpp").write_text(SHIM + source() + "\nu64 memory[1 << 16];\n" + sizes)
    subprocess.run([compiler, "-O1", "-std=c++17", "-shared", "-fPIC", "-DREAL=double", str(folder / "gates.cpp"), "-o",
                    str(folder / "gates.so")], check=True, capture_output=True)
    return ctypes.CDLL(str(folder / "gates.so"))


def launch_on_host(library, program: TileProgram | GroupMatrix, shard: np.ndarray, number: int, local: int) -> None:
    def pointer(values: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(values.ctypes.data)

    if isinstance(program, GroupMatrix):
        at, matrix = np.array(program.bits, dtype=np.int32), program.matrix.copy()
        m = len(program.bits)
        getattr(library, f"group{m}")(pointer(shard), pointer(matrix), pointer(at), ctypes.c_ulonglong(len(shard) >> m))
        return
    at, pool = np.array(program.bits, dtype=np.int32), program.pool.copy()
    bits = len(program.bits)
    library.tiles(pointer(shard), pointer(program.steps), ctypes.c_int(len(program.steps)), pointer(program.ops),
                  pointer(program.terms), pointer(pool), pointer(at), ctypes.c_int(bits),
                  ctypes.c_ulonglong(len(shard) >> bits), ctypes.c_ulonglong(number << local),
                  ctypes.c_int(program.doubled))


def on_host(library, problem: Problem, plan, qubits: int) -> np.ndarray:
    """The final state in the circuit's own order of wires."""
    code, stages = kernel_programs(problem, plan)
    state = allocate(1 << qubits, np.complex128)
    state[0] = 1
    shards = list(state.reshape(code.shards, -1))
    for stage, kernels in zip(code.stages, stages, strict=True):
        if stage.exchange is not None:
            exchange_shards(shards, stage.exchange)
        for programs, (number, shard) in itertools.product(kernels.kernels, enumerate(shards)):
            launch_on_host(library, programs[number], shard, number, code.local_bits)
    return gather(state, code.placement, qubits=qubits)


def by_wire(circuit: Circuit) -> np.ndarray:
    n = circuit.qubits
    x = np.arange(1 << n)
    return dense(circuit)[sum(((x >> q & 1) << w for q, w in enumerate(circuit.output or range(n))), np.zeros_like(x))]


def test_records_have_the_layout_of_the_device_source(twin) -> None:
    for name, kind in RECORDS.items():
        assert getattr(twin, f"size_of_{name}")() == kind.itemsize


@pytest.mark.parametrize("kind", ["fusion", "tile"])
@pytest.mark.parametrize("seed", range(10))
def test_device_source_on_the_host_equals_the_reference(seed: int, kind: str, twin) -> None:
    rng = np.random.default_rng(300 + seed)
    n = 8
    local = int(rng.integers(5, 9))
    circuit = without_swaps(random_circuit(rng, n, 40))
    plan = random_plan(circuit, local, rng, kind=kind)
    assert np.abs(on_host(twin, problem_of(circuit, local), plan, n) - by_wire(circuit)).max() < 1e-11


@pytest.mark.parametrize("family", [*BENCHMARKS, "supremacy", "quantum_volume"])
def test_planned_families_on_the_host_equal_the_reference(family: str, twin) -> None:
    """Thirteen qubits: tiles are smaller than the shard, and phases cross their edges."""
    n = TILE_BITS + 2
    problem = Problem(circuit=Source(family=family, qubits=n, seed=0), machine=Machine(local_qubits=n - 1))
    plan = planned(problem, open_costs({"source": "gates", "table": "a100-atlas"}), planner="exact", solver="highs",
                   time_limit_s=20, seed=0)
    found, reference = on_host(twin, problem, plan, n), by_wire(planned_circuit(problem, plan))
    assert abs(abs(np.vdot(reference, found)) - 1) < 1e-10


def test_phases_of_every_kind_inside_and_across_a_tile(twin) -> None:
    """CP and CCZ-like phases between all pairs of qubits below, across and above the tile's edge."""
    rng = np.random.default_rng(5)
    n = TILE_BITS + 3
    gates = [Gate(name="h", qubits=(q,)) for q in range(n)]
    for _ in range(60):
        a, b = rng.choice(n, 2, replace=False)
        gates.append(Gate(name="cp", qubits=(int(a), int(b)), params=(float(rng.uniform(-3, 3)),)))
    gates += [Gate(name="ccz", qubits=tuple(int(q) for q in rng.choice(n, 3, replace=False))) for _ in range(8)]
    gates += [Gate(name="ry", qubits=(q,), params=(0.3,)) for q in range(0, n, 3)]
    circuit = Circuit(name="test", qubits=n, gates=tuple(gates))
    plan = random_plan(circuit, n, rng, kind="tile")
    assert np.abs(on_host(twin, problem_of(circuit, n), plan, n) - by_wire(circuit)).max() < 1e-11


def test_rounds_hold_most_operations_of_a_layer() -> None:
    """A layer of one-qubit gates on eleven wires takes four rounds of three wires, not eleven."""
    gates = tuple(Gate(name="ry", qubits=(q,), params=(0.1 + q,)) for q in range(TILE_BITS))
    circuit = Circuit(name="test", qubits=TILE_BITS, gates=gates)
    plan = random_plan(circuit, TILE_BITS, np.random.default_rng(0), kind="tile")
    _, stages = kernel_programs(problem_of(circuit, TILE_BITS), plan)
    rounds = sum(len(programs[0].steps) for stage in stages for programs in stage.kernels)
    assert rounds <= -(-TILE_BITS // 3) + 2 * len(stages[0].kernels)


def test_a_matrix_as_wide_as_the_tile(twin) -> None:
    rng = np.random.default_rng(8)
    circuit = without_swaps(random_circuit(rng, 5, 12))
    plan = random_plan(circuit, 5, rng, kind="fusion")
    assert np.abs(on_host(twin, problem_of(circuit, 5), plan, 5) - by_wire(circuit)).max() < 1e-11


def test_phases_join_and_runs_of_cx_become_one_permutation() -> None:
    """All pairs of CP and then all pairs of CX: one phase, one permutation."""
    pairs = list(itertools.combinations(range(8), 2))
    gates = [Gate(name="cp", qubits=pair, params=(0.1 + sum(pair),)) for pair in pairs]
    gates += [Gate(name="cx", qubits=pair) for pair in pairs]
    circuit = Circuit(name="test", qubits=8, gates=tuple(gates))
    problem = Problem(circuit=Source(inline=circuit), machine=Machine(local_qubits=8))
    _, stages = kernel_programs(problem, planned(problem, open_costs({"source": "gates", "table": "a100-atlas"}),
                                                 planner="exact", solver="highs", time_limit_s=20, seed=0))
    steps = [int(step["kind"]) for stage in stages for programs in stage.kernels for step in programs[0].steps]
    assert len(steps) <= 4


def test_shards_of_two_qubits_are_refused() -> None:
    circuit = Circuit(name="test", qubits=4, gates=(Gate(name="h", qubits=(0,)),))
    with pytest.raises(SpecError, match="at least 3 local qubits"):
        kernel_programs(problem_of(circuit, 2), random_plan(circuit, 2, np.random.default_rng(0), kind="tile"))


@pytest.mark.parametrize(("real", "arch"), list(itertools.product(("float", "double"), ("sm_80", "sm_90"))))
def test_device_source_compiles_for_real_gpus(real: str, arch: str, tmp_path: Path) -> None:
    if nvcc := shutil.which("nvcc"):
        (tmp_path / "gates.cu").write_text(source())
        subprocess.run([nvcc, f"-arch={arch}", "-std=c++17", f"-DREAL={real}", "-cubin", "-o", "gates.cubin",
                        "gates.cu"], cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / "gates.cubin").read_bytes()[:4] == b"\x7fELF"
        return
    nvrtc = pytest.importorskip("cupy.cuda.nvrtc", reason="needs nvcc, or cupy (extra gpu)", exc_type=ImportError)
    try:
        nvrtc.getVersion()
    except Exception:  # the loader's own error types differ between versions
        pytest.skip("needs nvcc or the NVRTC library")
    program = nvrtc.createProgram(source(), "gates.cu", (), ())
    nvrtc.compileProgram(program, (f"-arch={arch}", "--std=c++17", f"-DREAL={real}"))
    assert nvrtc.getCUBIN(program)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fusion", "tile"])
def test_a_plan_on_the_gpu_equals_the_reference(kind: str) -> None:
    if not available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(4)
    circuit = without_swaps(random_circuit(rng, 14, 60))
    plan = random_plan(circuit, 12, rng, kind=kind)
    problem = problem_of(circuit, 12)
    assert verify(problem, plan, run(problem, plan, device="cuda")) == []


@pytest.mark.gpu
@pytest.mark.parametrize("family", BENCHMARKS)
def test_planned_families_on_the_gpu_pass_verification(family: str) -> None:
    if not available():
        pytest.skip("no CUDA device")
    problem = Problem(circuit=Source(family=family, qubits=16, seed=0), machine=Machine(local_qubits=14))
    plan = planned(problem, open_costs({"source": "gates", "table": "a100-atlas"}), planner="exact", solver="highs",
                   time_limit_s=20, seed=0)
    assert verify(problem, plan, run(problem, plan, device="cuda")) == []
    times = time_kernels(problem, plan, dtype=np.dtype(np.float64), rounds=2)
    assert len(times) == sum(len(stage.kernels) for stage in plan.stages)
    assert all(t.seconds > 0 for t in times)
