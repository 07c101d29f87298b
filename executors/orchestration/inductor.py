"""Inductor as a back-end: a candidate's ATen graph becomes C++ (CPU) or Triton (CUDA) behind one Python call.

``compile_source`` runs Inductor's own compiler on a graph, never TorchDynamo's front end, whose guards cost tens of
microseconds a call. What it returns is the text of the wrapper module that Inductor writes: ``load`` executes it in
any later process, where the shared objects come out of Inductor's cache folder by the hash of their C++ text, so
that a warm run compiles nothing (``compilations`` counts what the folder gained).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.fx import GraphModule

__all__ = ["cache_folder", "compilations", "compile_source", "load", "loaded_from",
           "settings"]

Call = Callable[[list[Any]], Sequence[Any]]
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def settings(threads: int) -> dict[str, Any]:
    """Options of Inductor that differ from its defaults: threads as measured, no checks of shapes that are fixed."""
    return {"cpp.threads": threads, "size_asserts": False, "alignment_asserts": False, "fx_graph_cache": False,
            "compile_threads": 1, "triton.cudagraphs": False}


@contextlib.contextmanager
def cache_folder(folder: Path) -> Iterator[None]:
    """Let Inductor keep what it compiles in ``folder``; the setting is restored on exit."""
    before = os.environ.get(CACHE_VARIABLE)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[CACHE_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before


def compilations(folder: Path) -> int:
    """Shared objects and Triton binaries that Inductor has put into ``folder`` so far."""
    return sum(1 for kind in ("*.so", "*.cubin") for _ in folder.rglob(kind))


def loaded_from(folder: Path) -> list[Path]:
    """Shared objects in ``folder`` that this process has loaded (empty where the system does not say)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if line.rstrip().endswith(".so")}
    return sorted(Path(p) for p in paths if Path(p).is_relative_to(folder.resolve()))


def compile_source(graph: GraphModule, inputs: Sequence[torch.Tensor], *, threads: int = 1) -> str:
    """The wrapper module's text for ``graph`` (ATen operations, tensors in, one tuple out).

    Args:
        graph: straight-line ATen graph whose placeholders are all its inputs, weights too.
        inputs: tensors (real or fake) that have the inputs' shapes, strides, dtypes and device.
        threads: threads that the generated loops may use; they are part of the C++ text.

    Raises:
        Exception: whatever Inductor raises on graphs that it cannot lower.
    """
    import torch._inductor.config as config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), mode:
        fake = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in inputs]
    with torch.no_grad(), config.patch(settings(threads)), tracing(TracingContext(mode)):
        lowered = make_fx(lambda *args: _as_tuple(graph(*args)), decomposition_table=select_decomp_table())(*fake)
        last = lowered.graph.output_node()
        results: Any = last.args[0]
        last.meta["user_visible_output_idxs"] = list(range(len(results)))  # their strides are part of the contract
        made: Any = compile_fx_inner(lowered, fake)
    return str(made.source_code)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def load(source: str) -> Call:
    """The wrapper's ``call``: takes the inputs as a list, which it empties, and gives a tuple of outputs.

    Shared objects that the cache folder lacks are compiled here.
    """
    import torch._inductor.config as config

    name = "orchestrated_" + hashlib.sha256(source.encode()).hexdigest()[:16]
    module = ModuleType(name)
    module.__file__ = f"<{name}>"
    sys.modules[name] = module
    with config.patch(compile_threads=1):
        exec(compile(source, module.__file__, "exec"), module.__dict__)
    call: Call = module.call
    return call
