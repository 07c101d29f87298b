"""Triton kernels, one module a family; the family's own functions call them for tensors on an NVIDIA GPU.

``kernels_for`` imports a module on first use, so that nothing here needs triton where tensors live on a CPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

__all__ = ["kernels_for"]


@functools.cache
def _module(name: str) -> Any:
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f"profilers.gpu.{name}")


def kernels_for(tensor: Any, name: str) -> Any:
    """The Triton module ``profilers.gpu.<name>`` for a CUDA tensor; ``None`` for others, or without triton."""
    return _module(name) if tensor.device.type == "cuda" else None
