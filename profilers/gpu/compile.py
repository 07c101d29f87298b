"""Ahead-of-time compilation of every GPU kernel, on any machine: no GPU and no driver are needed.

``CASES`` names a kernel, its argument types and constants, and whether its inner product must use tensor cores. Shared
memory is what the compiler asks for; registers and spills are what the assembler bundled with Triton reports. CUDA C
sources (cupy's raw kernels) go through NVRTC to the same assembler.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from profilers.gpu.attention import rows_a_step
from profilers.gpu.lsh import rows_a_program
from profilers.gpu.nvrtc import ptx_of

__all__ = ["CASES", "SHARED_BYTES", "Case", "Compiled", "compile_case", "compile_source"]

# Most shared memory a block may ask for, by compute capability (CUDA C++ Programming Guide, technical specifications).
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way a kernel is compiled."""

    module: str
    kernel: str
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    tensor_cores: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What came out: machine code, its PTX text, a block's shared memory, a thread's registers and spilled bytes."""

    cubin: bytes
    ptx: str
    shared_bytes: int
    registers: int
    spill_bytes: int


_ATTENTION = {"selected": "*i32", "sums": "*fp32", "tops": "*fp32", "totals": "*fp32", "scale": "fp32", "rows": "i32",
              "count": "i32", "part": "i32"}
_DECODE = {"PARTS": 8, "GROUP": 4, "HEADS": 16, "D": 128, "BLOCK": 64, "IEEE": False}
CASES = (
    *(Case(module="attention", kernel="decode_kernel", tensor_cores=True,
           types={**dict.fromkeys(("q", "k", "v"), f"*{dtype}"), **_ATTENTION},
           constants={**_DECODE, "SELECTED": selected})
      for dtype, selected in (("fp16", True), ("bf16", True), ("bf16", False))),
    Case(module="attention", kernel="decode_kernel", tensor_cores=True,
         types={**dict.fromkeys(("q", "k", "v"), "*bf16"), **_ATTENTION},
         constants={**_DECODE, "GROUP": 3, "D": 64, "SELECTED": False}),
    *(Case(module="attention", kernel="decode_kernel", tensor_cores=False,
           types={**dict.fromkeys(("q", "k", "v"), "*fp32"), **_ATTENTION},
           constants={**_DECODE, "D": d, "BLOCK": rows_a_step(d, 4), "SELECTED": True, "IEEE": True})
      for d in (128, 256)),
    Case(module="attention", kernel="join_kernel", tensor_cores=False,
         types={"sums": "*fp32", "tops": "*fp32", "totals": "*fp32", "out": "*bf16"},
         constants={"GROUP": 4, "PARTS": 8, "PADDED": 8, "D": 128}),
    Case(module="pq", kernel="scan_kernel", tensor_cores=False,
         types={"table": "*fp32", "codes": "*u8", "out": "*fp32", "tokens": "i32"},
         constants={"GROUP": 4, "SUBSPACES": 2, "CENTROIDS": 64, "BLOCK": 1024}),
    Case(module="lsh", kernel="hash_kernel", tensor_cores=True,
         types={"x": "*fp16", "rotations": "*fp16", "out": "*i64", "rows": "i32", "width": "i32"},
         constants={"HASHES": 6, "ROTATION": 32, "BT": 64, "BK": 32, "FULL": False}),
    *(Case(module="lsh", kernel="hash_kernel", tensor_cores=True,
         types={"x": "*fp32", "rotations": "*fp32", "out": "*i64", "rows": "i32", "width": "i32"},
         constants={"HASHES": 6, "ROTATION": rotation, "BT": rows_a_program(rotation), "BK": 32, "FULL": True})
      for rotation in (16, 32, 128, 256)),
    Case(module="lsh", kernel="segment_sum_kernel", tensor_cores=False,
         types={"x": "*fp32", "order": "*i64", "first": "*i64", "out": "*fp32", "width": "i32"},
         constants={"BLOCK": 256}),
)


def compile_case(case: Case, capability: int) -> Compiled:
    """Compile one case to machine code for ``capability`` (80: A100, 90: H100)."""
    kernel = getattr(importlib.import_module(f"profilers.gpu.{case.module}"), case.kernel)
    names = kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in case.types.items() if "*" in kind}
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(case.constants), attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "num_stages": 3})
    (used,) = _assembled(made.asm["ptx"])[1].values()
    return Compiled(cubin=made.asm["cubin"], ptx=made.asm["ptx"], shared_bytes=made.metadata.shared,
                    registers=used.registers, spill_bytes=used.spill_bytes)


def compile_source(source: str, capability: int, options: Sequence[str] = ()) -> dict[str, Compiled]:
    """Every kernel of a CUDA C source by name; shared memory without what a launch adds.

    Raises:
        NotBuilt: no NVRTC here, or it refuses the source.
    """
    ptx = ptx_of(source, capability, options)
    cubin, kernels = _assembled(ptx)
    return {name: Compiled(cubin=cubin, ptx=ptx, shared_bytes=used.shared_bytes, registers=used.registers,
                           spill_bytes=used.spill_bytes) for name, used in kernels.items()}


class _Used(NamedTuple):
    registers: int
    spill_bytes: int
    shared_bytes: int


def _assembled(ptx: str) -> tuple[bytes, dict[str, _Used]]:
    """Machine code, and for each kernel registers a thread, bytes spilled (stores and loads) and static shared memory.

    They are what ``ptxas -v`` says for the PTX's own target.
    """
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None, "PTX names its target"
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        made = source.with_suffix(".cubin")
        said = subprocess.run([assembler, "-v", f"--gpu-name={target[1]}", source, "-o", made], check=True,
                              capture_output=True, text=True).stderr
        cubin = made.read_bytes()
    kernels = {}
    for part in said.split("Compiling entry function '")[1:]:
        used = re.search(r"Used (\d+) registers", part)
        assert used is not None, said
        shared = re.search(r"(\d+) bytes smem", part)
        kernels[part.partition("'")[0]] = _Used(int(used[1]), sum(map(int, re.findall(r"(\d+) bytes spill", part))),
                                                int(shared[1]) if shared else 0)
    return cubin, kernels
