"""Triton kernels: equal to the CPU kernels through the interpreter, and compiled to machine code for A100 and H100.

Both run in processes of their own: the interpreter must be switched on before triton is imported, and a kernel that is
interpreted cannot be compiled.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if any(importlib.util.find_spec(name) is None for name in ("torch", "triton")):
    pytest.skip("the Triton kernels need torch and triton: pip install 'planner-workbench[run,gpu]'",
                allow_module_level=True)

ROOT = Path(__file__).parent.parent

NUMERICS = """
import numpy as np, torch
from profilers import attention, lsh, pq
from profilers.gpu import attention as gpu_attention, lsh as gpu_lsh, pq as gpu_pq
def near(found, reference, *given, **close):
    # the reference runs on the CPU, by formulations of its own
    given = [x.cpu() if isinstance(x, torch.Tensor) else x for x in given]
    torch.testing.assert_close(found.cpu(), reference(*given), **close)
rng = np.random.default_rng(0)
def there(array): return torch.from_numpy(array).to(DEVICE)
def draw(*shape): return there(rng.standard_normal(shape, dtype=np.float32))
for group, count in ((4, 100), (1, 64), (5, 1)):
    q, k, v = draw(2, group, 32), draw(2, 300, 32), draw(2, 300, 32)
    chosen = there(np.stack([rng.permutation(300)[:count] for _ in range(2)]))
    near(gpu_attention.decode_selected(q, k, v, chosen), attention.decode_selected, q, k, v, chosen, rtol=1e-4,
         atol=1e-5)
half = [x.half() for x in (q, k, v)]
near(gpu_attention.decode_selected(*half, chosen).float(), attention.decode_selected, q, k, v, chosen, rtol=1e-2,
     atol=1e-2)
for rows in (1, 70, 256, 1100):
    q, k, v = draw(2, 2, 4, 32), draw(2, 2, rows, 32), draw(2, 2, rows, 32)
    near(gpu_attention.decode(q, k, v), attention.decode, q, k, v, rtol=1e-4, atol=1e-5)
table, codes = draw(2, 3, 2, 64), there(rng.integers(0, 64, (2, 2, 1500)).astype(np.uint8))
near(gpu_pq.scan(table, codes), pq.scan, table, codes)
x = draw(150, 70)
spun = lsh.rotations(70, 3, 32, rng).to(DEVICE)
near(gpu_lsh.codes(x, spun, 3), lsh.codes, x, spun, 3)
tied = torch.zeros(2, 16, device=DEVICE); tied[1, [9, 4]] = -1.0
assert gpu_lsh.codes(tied, torch.eye(16, device=DEVICE), 1)[:, 0].tolist() == [0, 20]
keys = there(rng.integers(0, 9, 150))
made = lsh.bucket(x.cpu(), keys.cpu())
found = gpu_lsh.segment_centroids(x, made.inverse_T.to(DEVICE), made.counts_B.to(DEVICE))
near(found, lambda c: c, made.centroids_BH)
"""

COMPILE = """
from profilers.gpu.compile import CASES, SHARED_BYTES, compile_case
for case in CASES:
    for capability in (80, 90):
        made = compile_case(case, capability)
        name = f"{case.kernel} {sorted(case.types.values())} for sm_{capability}"
        assert made.cubin[:4] == b"\\x7fELF", name
        assert made.shared_bytes <= SHARED_BYTES[capability], (name, made.shared_bytes)
        found = "mma.sync" in made.ptx or "wgmma.mma_async" in made.ptx
        assert found == case.tensor_cores, (name, found)
        assert ".local" not in made.ptx, f"{name} keeps arrays in local memory"
        assert made.spill_bytes == 0, (name, made.spill_bytes)
        assert 0 < made.registers <= 255, (name, made.registers)
        print(name, len(made.cubin), made.shared_bytes, made.registers)
"""

EVERY_KERNEL = """
import importlib, pkgutil, triton
import profilers.gpu
from profilers.gpu.compile import CASES
found = {(m.name, name) for m in pkgutil.iter_modules(profilers.gpu.__path__) if m.name != "compile"
         for name, value in vars(importlib.import_module(f"profilers.gpu.{m.name}")).items()
         if isinstance(value, triton.runtime.JITFunction)}
print(*sorted(found ^ {(case.module, case.kernel) for case in CASES}), len(found))
"""


def in_process(code: str, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean | environment, text=True,
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_interpreted_kernels_equal_the_cpu_kernels(tmp_path: Path) -> None:
    in_process(f"DEVICE = 'cpu'{NUMERICS}", TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path))


def test_every_kernel_compiles_for_a100_and_h100_within_shared_memory_and_on_tensor_cores(tmp_path: Path) -> None:
    lines = in_process(COMPILE, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert len(lines) == 28


def test_no_kernel_is_left_out_of_the_compiled_cases() -> None:
    assert in_process(EVERY_KERNEL).split() == ["5"]


@pytest.mark.gpu
def test_kernels_equal_the_cpu_kernels_on_a_real_device(tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device; the interpreter and the compiler tests cover these kernels")
    in_process(f"DEVICE = 'cuda'{NUMERICS}", TRITON_CACHE_DIR=str(tmp_path))
