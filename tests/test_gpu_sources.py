"""CUDA C sources (cupy's raw kernels) compile for A100 and H100 with NVRTC, within registers and shared memory.

What they compute is tested where they are used; here is only what a compiler can say on a machine without a GPU.
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("the assembler comes with triton: pip install 'planner-workbench[kernels]'", allow_module_level=True)

from executors.circuit import gpu
from executors.circuit.tileprogram import GROUP_SIZES, TILE_BITS
from profilers.gpu.compile import SHARED_BYTES, Compiled, compile_source
from profilers.gpu.nvrtc import nvrtc, ptx_of
from workbench.errors import NotBuilt

pytestmark = pytest.mark.skipif(nvrtc() is None, reason="needs NVRTC: pip install 'planner-workbench[kernels]'")

REGISTERS = 65536  # of a multiprocessor of either device, for all threads of a block (CUDA C++ Programming Guide)


@pytest.fixture(scope="module", params=[("float", 80), ("float", 90), ("double", 80), ("double", 90)],
                ids=lambda given: f"{given[0]}-sm_{given[1]}")
def made(request: pytest.FixtureRequest) -> tuple[str, int, dict[str, Compiled]]:
    real, capability = request.param
    return real, capability, compile_source(gpu.source(), capability, ("--std=c++17", f"-DREAL={real}"))


def test_every_kernel_becomes_machine_code_that_one_block_can_run(made: Any) -> None:
    _, capability, kernels = made
    assert set(kernels) == {"tiles", *(f"group{m}" for m in GROUP_SIZES)}
    for name, found in kernels.items():
        threads = gpu.THREADS if name == "tiles" else gpu._GROUP_THREADS
        assert found.cubin[:4] == b"\x7fELF", name
        assert f".target sm_{capability}" in found.ptx, name
        assert found.spill_bytes == 0, (name, found.spill_bytes)
        assert 0 < found.registers * threads <= REGISTERS, (name, found.registers)


def test_the_largest_launches_fit_in_shared_memory(made: Any) -> None:
    real, capability, kernels = made
    launcher: Any = SimpleNamespace(kind=np.dtype("complex64" if real == "float" else "complex128"))
    largest: Any = SimpleNamespace(bits=tuple(range(TILE_BITS)), doubled=True)
    tiles = gpu.Launcher._shared_bytes(launcher, largest)
    matrix = launcher.kind.itemsize << 2 * max(GROUP_SIZES)
    assert kernels["tiles"].shared_bytes + tiles <= SHARED_BYTES[capability]
    assert all(kernels[f"group{m}"].shared_bytes + matrix <= 48 * 1024 for m in GROUP_SIZES), "no opt-in is asked for"


def test_a_source_that_is_wrong_is_refused_with_the_compilers_words() -> None:
    with pytest.raises(NotBuilt, match=r"identifier \"missing\" is undefined"):
        ptx_of('extern "C" __global__ void f(float *x) { *x = missing; }', 90)
