"""Ahead-of-time compilation of CUDA C sources with NVRTC, the compiler cupy hands them to; no GPU or driver is needed.

The library comes with the wheel nvidia-cuda-nvrtc-cu12 (extra ``kernels``) or a CUDA toolkit. It turns a source into
PTX; machine code, registers and spills then come from the assembler bundled with Triton, as for Triton's own kernels.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.errors import NotBuilt

__all__ = ["nvrtc", "ptx_of"]


@functools.cache
def nvrtc() -> Any:
    """NVRTC's library, or ``None`` where there is none."""
    try:
        wheel = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        wheel = None
    folders = [Path(place) for place in (wheel.submodule_search_locations or ())] if wheel else []
    found = [str(path) for folder in folders for path in sorted((folder / "lib").glob("libnvrtc.so*"))]
    for name in [*found, ctypes.util.find_library("nvrtc")]:
        if name:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
    return None


def ptx_of(source: str, capability: int, options: Sequence[str] = ()) -> str:
    """PTX of a CUDA C source for ``capability`` (80: A100, 90: H100).

    Raises:
        NotBuilt: no NVRTC here, or it refuses the source; carries its log.
    """
    library = nvrtc()
    if library is None:
        raise NotBuilt("no NVRTC library found", hint="pip install 'planner-workbench[kernels]'")
    program = ctypes.c_void_p()
    _call(library, "CreateProgram", ctypes.byref(program), source.encode(), b"source.cu", 0, None, None)
    try:
        texts = [f"-arch=compute_{capability}".encode(), *(option.encode() for option in options)]
        if library.nvrtcCompileProgram(program, len(texts), (ctypes.c_char_p * len(texts))(*texts)):
            raise NotBuilt(f"NVRTC refuses the source: {_text(library, 'ProgramLog', program).strip()[-400:]}")
        return _text(library, "PTX", program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _call(library: Any, name: str, *arguments: Any) -> None:
    status = getattr(library, f"nvrtc{name}")(*arguments)
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise NotBuilt(f"nvrtc{name}: {library.nvrtcGetErrorString(status).decode()}")


def _text(library: Any, name: str, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _call(library, f"Get{name}Size", program, ctypes.byref(size))
    made = ctypes.create_string_buffer(size.value)
    _call(library, f"Get{name}", program, made)
    return made.value.decode()
