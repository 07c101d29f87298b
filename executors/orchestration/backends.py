"""The back-ends a kernel may run on, by name; the best measured one wins.

A back-end prepares a structure once (``prepare``: slow, in a worker process, gives a payload of text or bytes to keep)
and turns structure and payload into statements (``fragment``: quick, in the process that runs them). Both raise
``Cannot`` where it has no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from executors.orchestration import eager, inductor, library, ortsession
from executors.orchestration.kernels import Cannot, Fragment, Operands, examples, first_line, graph_module
from planners.orchestration.candidates import Structure

__all__ = ["BACKENDS", "BackEnd", "available"]

Payload = str | bytes | None


@dataclass(frozen=True, slots=True)
class BackEnd:
    """One way to make kernels."""

    name: str
    about: str
    prepare: Callable[[Structure, str, int], Payload]
    fragment: Callable[[Structure, Payload, Operands], Fragment]
    devices: tuple[str, ...] = ("cpu", "cuda")
    compiles: bool = False
    alternatives: Callable[[Structure, str], Sequence[str]] | None = None
    """Payloads to choose among by measuring, for back-ends that have several."""
    lacking: Callable[[], str | None] = lambda: None


def _nothing(structure: Structure, device: str, threads: int) -> Payload:
    del structure, device, threads
    return None


def _eager(structure: Structure, payload: Payload, operands: Operands) -> Fragment:
    del payload
    return eager.fragment(structure, operands)


def _library(structure: Structure, payload: Payload, operands: Operands) -> Fragment:
    assert isinstance(payload, str)
    return library.fragment(structure, payload, operands)


def _which(structure: Structure, device: str, threads: int) -> Payload:
    del threads
    return library.variants(structure, device)[0]


def _compile(structure: Structure, device: str, threads: int) -> Payload:
    try:
        return inductor.compile_source(graph_module(structure), _data_like(structure, device), threads=threads)
    except Cannot:
        raise
    except Exception as error:  # Inductor has no common class for what it cannot lower
        raise Cannot(f"Inductor: {type(error).__name__}: {first_line(error)}") from error


def _data_like(structure: Structure, device: str) -> list[torch.Tensor]:
    """Tensors on ``meta`` storage sizes that stand for all inputs but the constants."""
    return [x for x, v in zip(examples(structure, device=device), structure.inputs, strict=True)
            if v.role != "constant"]


def _inductor(structure: Structure, payload: Payload, operands: Operands) -> Fragment:
    assert isinstance(payload, str)
    call = inductor.load(payload)
    objects: dict[str, object] = {"call": call}
    arguments = []
    for i, value in enumerate(structure.inputs):
        if value.role == "constant":
            continue
        if i in operands.fixed:
            objects[f"w{i}"] = operands.fixed[i]
            arguments.append(f"{{p}}w{i}")
        else:
            arguments.append(f"{{{i}}}")
    outputs = ", ".join(f"{{out{i}}}" for i in range(len(structure.outputs)))
    return Fragment((f"{outputs}, = {{p}}call([{', '.join(arguments)}])",), objects)


BACKENDS: Mapping[str, BackEnd] = {b.name: b for b in (
    BackEnd("eager", "ATen calls, elementwise ones in place where nobody reads the operand any more", _nothing, _eager),
    BackEnd("library", "library kernels for recognised patterns: attention, norms, softmax, packed convolutions",
            _which, _library, alternatives=library.variants),
    BackEnd("inductor", "generated C++ or Triton", _compile, _inductor, compiles=True),
    BackEnd("onnxruntime", "a session of ONNX Runtime", ortsession.prepare, ortsession.fragment, devices=("cpu",),
            lacking=ortsession.lacking),
)}


def available(device: str) -> list[str]:
    """Names of the back-ends that can be used here on ``device``."""
    return [b.name for b in BACKENDS.values() if device in b.devices and b.lacking() is None]
