"""Kernel family ``pipeline``: whole layers as the executor runs them, forward and backward, and what else a step takes.

``<layer>_forward`` is the layer's module with autograd recording and saved tensors counted, ``<layer>_backward`` its
backward with gradients added to those of earlier micro-batches; ``input_gradient = no`` for layers that read only data.
``dense_backward_aliased`` is the backward of layers whose rows are a multiple of 2 KiB long: with few samples the rows
of the weights' gradient, which are added to one after the other, then compete for the same lines of a CPU's first
cache.
``join`` puts several inputs side by side, ``loss`` is the distance to a target, ``weight_update`` one optimizer step of
a layer's weights. ``samples`` is the local batch. Dense layers and transformers are called as in a stage of ``_LAYERS``
alike, one after the other: weights and gradients stay in the cache from call to call where those of a stage would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from executors.pipeline.modules import layer_module
from executors.pipeline.training import loss_of, optimizer_for
from planners.pipeline.layers import ALIASED
from planners.pipeline.problem import Layer
from profilers.family import GridAxis, Op, Point, Prepare, Prepared, Work, drawn

__all__ = ["OPS"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LEAST_TENSORS = 2
_LAYERS = 4
_MOST_COPIES = 32
_COLD_BYTES = 96 << 20


def _floats(shape: tuple[int, ...], point: Point, device: str, rng: np.random.Generator) -> torch.Tensor:
    made = torch.from_numpy(drawn(rng, shape))
    return made.to(device, DTYPES[point["dtype"]])


def _recorded(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A forward as a stage does it: every saved tensor passes through a hook."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return cast(torch.Tensor, module(x))


def _both_ways(module: nn.Module, x: torch.Tensor, way: str) -> Callable[[], Any]:
    """A call of one way; the graph of the backward is kept, so that it can be repeated."""
    if way == "forward":
        return lambda: _recorded(module, x)
    y = _recorded(module, x)
    gradient = torch.ones_like(y)

    def backward() -> None:
        x.grad = None
        torch.autograd.backward([y], [gradient], retain_graph=True)

    backward()
    return backward


def _stage(one: Callable[[], Callable[[], Any]]) -> Prepared:
    """Layers alike, each called in its turn."""
    turns = itertools.cycle([one() for _ in range(_LAYERS)])
    return Prepared(lambda: next(turns)())


def _dense(way: str) -> Prepare:
    def prepare(point: Point, device: str, rng: np.random.Generator) -> Prepared:
        layer = Layer(kind="dense", width=point["width"])

        def one() -> Callable[[], Any]:
            module = layer_module(layer, point["inputs"]).to(device, DTYPES[point["dtype"]])
            x = _floats((point["samples"], point["inputs"]), point, device, rng)
            x.requires_grad_(point.get("input_gradient") != "no")
            return _both_ways(module, x, way)

        return _stage(one)

    return prepare


def _transformer(way: str) -> Prepare:
    def prepare(point: Point, device: str, rng: np.random.Generator) -> Prepared:
        layer = Layer(kind="transformer", width=point["width"], hidden=point["hidden"], heads=point["heads"],
                      tokens=point["tokens"])

        def one() -> Callable[[], Any]:
            module = layer_module(layer, point["width"]).to(device, DTYPES[point["dtype"]])
            x = _floats((point["samples"], point["tokens"], point["width"]), point, device, rng).requires_grad_()
            return _both_ways(module, x, way)

        return _stage(one)

    return prepare


def _embedding(way: str) -> Prepare:
    def prepare(point: Point, device: str, rng: np.random.Generator) -> Prepared:
        layer = Layer(kind="embedding", width=point["dim"] * point["bag"], rows=point["rows"], bag=point["bag"])
        module = layer_module(layer, 0).to(device, DTYPES[point["dtype"]])
        ids = torch.from_numpy(rng.integers(0, point["rows"], (point["samples"], point["bag"]))).to(device)
        return Prepared(_both_ways(module, ids, way))

    return prepare


def _join(way: str) -> Prepare:
    """Two equal parts of 1024 columns or fewer."""
    def prepare(point: Point, device: str, rng: np.random.Generator) -> Prepared:
        count = max(2, int(point["bytes"]) // DTYPES[point["dtype"]].itemsize)
        columns = min(2048, count // 2 * 2)
        parts = [_floats((max(1, count // columns), columns // 2), point, device, rng).requires_grad_()
                 for _ in range(2)]
        if way == "forward":
            return Prepared(lambda: torch.cat(parts, dim=-1))
        y = torch.cat(parts, dim=-1)
        gradient = torch.ones_like(y)

        def backward() -> None:
            for p in parts:
                p.grad = None
            torch.autograd.backward([y], [gradient], retain_graph=True)

        return Prepared(backward)

    return prepare


def _loss(way: str) -> Prepare:
    def prepare(point: Point, device: str, rng: np.random.Generator) -> Prepared:
        count = max(1, int(point["bytes"]) // DTYPES[point["dtype"]].itemsize)
        output = _floats((count,), point, device, rng).requires_grad_()
        target = _floats((count,), point, device, rng)
        if way == "forward":
            return Prepared(lambda: float(loss_of(output, target, 1).detach()))
        loss = loss_of(output, target, 1)

        def backward() -> None:
            output.grad = None
            loss.backward(retain_graph=True)

        return Prepared(backward)

    return prepare


def _update(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    """A matrix and a vector, as a linear layer has them; so many in turn that a step finds none in the cache."""
    count = max(_LEAST_TENSORS, int(point["bytes"]) // DTYPES[point["dtype"]].itemsize)
    copies = min(_MOST_COPIES, max(1, int(_COLD_BYTES // (3 * point["bytes"]))))

    def one() -> Callable[[], Any]:
        weights = [nn.Parameter(_floats((n,), point, device, rng)) for n in (count - 1, 1)]
        for w in weights:
            w.grad = torch.ones_like(w)
        optimizer = optimizer_for(str(point["optimizer"]), weights, rate=1e-9)
        optimizer.step()
        return optimizer.step

    steps = itertools.cycle([one() for _ in range(copies)])
    return Prepared(lambda: next(steps)())


def _dense_work(passes: float) -> Callable[[Point], Work]:
    def work(p: Point) -> Work:
        size = DTYPES[p["dtype"]].itemsize
        times = passes if p.get("input_gradient") != "no" else passes / 2
        return Work(2.0 * times * p["samples"] * p["inputs"] * p["width"],
                    float(size * (p["samples"] * (p["inputs"] + p["width"]) + p["inputs"] * p["width"])))

    return work


def _transformer_work(passes: float) -> Callable[[Point], Work]:
    def work(p: Point) -> Work:
        rows = p["samples"] * p["tokens"]
        gemms = 4.0 * p["width"] ** 2 + 2.0 * p["width"] * p["hidden"] + 2.0 * p["tokens"] * p["width"]
        weights = 4 * p["width"] ** 2 + 2 * p["width"] * p["hidden"]
        return Work(2.0 * passes * rows * gemms, float(DTYPES[p["dtype"]].itemsize * (weights + 2 * rows * p["width"])))

    return work


def _moved(factor: float) -> Callable[[Point], Work]:
    return lambda p: Work(p["bytes"] / DTYPES[p["dtype"]].itemsize, factor * p["bytes"])


def _rows_moved(p: Point) -> Work:
    return Work(1.0, 2.0 * p["samples"] * p["bag"] * p["dim"] * DTYPES[p["dtype"]].itemsize)


_CPU = ({"dtype": "fp32"},)
_GPU = ({"dtype": "fp32"}, {"dtype": "bf16"})


def _with_gradients(keys: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
    return tuple({**k, "input_gradient": g} for k in keys for g in ("yes", "no"))


def _optimizers(keys: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
    return tuple({**k, "optimizer": o} for k in keys for o in ("sgd", "momentum", "adam"))


# One row is a product with a vector; from two rows on libraries repack the matrix first.
_SAMPLES = GridAxis("samples", (1, 2, 8, 64))
# Up to the weights and the bias of the largest dense layer below.
_BYTES = GridAxis("bytes", (1 << 10, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 17 << 20), step=64)
_GPU_BYTES = {"axes": (GridAxis("bytes", (1 << 12, 1 << 20, 1 << 28), step=64),), "variants": _GPU}
_WIDTHS = GridAxis("width", (64, 512, 2048), step=16)
_DENSE = (GridAxis("inputs", (64, 496, 2064), step=16), _WIDTHS, _SAMPLES)
_ALIASED = (GridAxis("inputs", (ALIASED, 2 * ALIASED, 4 * ALIASED), step=ALIASED), _WIDTHS, _SAMPLES)
_GPU_DENSE = (GridAxis("inputs", (256, 1024, 4096), step=64), GridAxis("width", (256, 1024, 4096), step=64),
              GridAxis("samples", (1, 32, 1024)))
_ENCODER = (GridAxis("width", (64, 256), step=64), GridAxis("hidden", (256, 1024), step=64),
            GridAxis("heads", (4, 16), base=2), GridAxis("tokens", (16, 128), step=8), GridAxis("samples", (1, 8)))
_GPU_ENCODER = (GridAxis("width", (512, 2048), step=64), GridAxis("hidden", (2048, 8192), step=64),
                GridAxis("heads", (8, 32), base=2), GridAxis("tokens", (128, 1024), step=8),
                GridAxis("samples", (1, 8, 64)))
_TABLE = (GridAxis("rows", (1 << 10, 1 << 13, 1 << 15), step=64), GridAxis("dim", (16, 64), step=16),
          GridAxis("bag", (1, 32)), GridAxis("samples", (1, 64)))
_GPU_TABLE = (GridAxis("rows", (1 << 15, 1 << 20), step=64), GridAxis("dim", (16, 64), step=16),
              GridAxis("bag", (1, 128)), GridAxis("samples", (1, 1024)))

_DENSE_TERMS = ("inputs width", "inputs width samples", "inputs samples", "width samples")
_ENCODER_TERMS = ("width width", "width hidden", "tokens samples", "width tokens samples", "hidden tokens samples",
                  "width width tokens samples", "width hidden tokens samples", "width tokens tokens samples",
                  "heads tokens tokens samples", "heads samples")
_BAG_TERMS = ("samples", "bag samples", "dim bag samples")


def _float_bytes(times: float) -> Callable[[Point], float]:
    """Bytes of so many numbers of the table's format."""
    return lambda keys: times * DTYPES[keys["dtype"]].itemsize


_TWICE = (("bytes", lambda keys: 2.0),)
OPS = (
    Op(name="dense_forward", about="linear layer and tanh", variants=_CPU, prepare=_dense("forward"), axes=_DENSE,
       work=_dense_work(1), terms=_DENSE_TERMS, held=(("inputs width", _float_bytes(1)),),
       on_cuda={"axes": _GPU_DENSE, "variants": _GPU}),
    Op(name="dense_backward", about="its backward", variants=_with_gradients(_CPU), prepare=_dense("backward"),
       axes=_DENSE, work=_dense_work(2), terms=_DENSE_TERMS, held=(("inputs width", _float_bytes(3)),),
       on_cuda={"axes": _GPU_DENSE, "variants": _with_gradients(_GPU)}),
    Op(name="dense_backward_aliased", about="its backward, rows of whole 2 KiB", variants=_with_gradients(_CPU),
       prepare=_dense("backward"), axes=_ALIASED, work=_dense_work(2), terms=_DENSE_TERMS,
       held=(("inputs width", _float_bytes(3)),), devices=("cpu",)),
    Op(name="transformer_forward", about="encoder layer", variants=_CPU, prepare=_transformer("forward"),
       axes=_ENCODER, work=_transformer_work(1), terms=_ENCODER_TERMS,
       on_cuda={"axes": _GPU_ENCODER, "variants": _GPU}),
    Op(name="transformer_backward", about="its backward", variants=_CPU, prepare=_transformer("backward"),
       axes=_ENCODER, work=_transformer_work(2), terms=_ENCODER_TERMS,
       on_cuda={"axes": _GPU_ENCODER, "variants": _GPU}),
    Op(name="embedding_forward", about="bag of rows of a table", variants=_CPU, prepare=_embedding("forward"),
       axes=_TABLE, work=_rows_moved, terms=_BAG_TERMS, on_cuda={"axes": _GPU_TABLE, "variants": _GPU}),
    Op(name="embedding_backward", about="its backward (dense gradient)", variants=_CPU, prepare=_embedding("backward"),
       axes=_TABLE, work=_rows_moved, terms=("rows dim", *_BAG_TERMS), held=(("rows dim", _float_bytes(2)),),
       on_cuda={"axes": _GPU_TABLE, "variants": _GPU}),
    Op(name="join_forward", about="inputs side by side", variants=_CPU, prepare=_join("forward"), axes=(_BYTES,),
       work=_moved(2), on_cuda=_GPU_BYTES, terms=("bytes",), held=_TWICE),
    Op(name="join_backward", about="gradients of the parts", variants=_CPU, prepare=_join("backward"), axes=(_BYTES,),
       work=_moved(2), on_cuda=_GPU_BYTES, terms=("bytes",), held=_TWICE),
    Op(name="loss_forward", about="squared distance to a target", variants=_CPU, prepare=_loss("forward"),
       axes=(_BYTES,), work=_moved(2), on_cuda=_GPU_BYTES, terms=("bytes",), held=_TWICE),
    Op(name="loss_backward", about="its gradient", variants=_CPU, prepare=_loss("backward"), axes=(_BYTES,),
       work=_moved(2), on_cuda=_GPU_BYTES, terms=("bytes",), held=_TWICE),
    Op(name="weight_update", about="optimizer step of a layer", variants=_optimizers(_CPU), prepare=_update,
       axes=(_BYTES,), work=_moved(3), terms=("bytes",), on_cuda={**_GPU_BYTES, "variants": _optimizers(_GPU)}),
)
