"""Dense matrix products C[m, n] = A[m, k] B[n, k]^T, the linear layers of every model, in the formats of the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from profilers.family import GridAxis, Op, Point, Prepared, Work, drawn, in_turn

__all__ = ["OPS", "gemm"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def gemm(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """x W^T, (m, k) and (n, k) -> (m, n), weights stored as linear layers store them."""
    return torch.nn.functional.linear(x_MK, weight_NK)


def _prepare(point: Point, device: str, rng: np.random.Generator) -> Prepared:
    dtype = DTYPES[point["dtype"]]
    x = torch.from_numpy(drawn(rng, (point["m"], point["k"]))).to(device, dtype)
    weight = torch.from_numpy(drawn(rng, (point["n"], point["k"]))).to(device, dtype)

    def one() -> Callable[[], torch.Tensor]:
        own = weight.clone()
        return lambda: gemm(x, own)

    return in_turn(one, weight.nbytes, device)


def _work(point: Point) -> Work:
    m, n, k, size = point["m"], point["n"], point["k"], DTYPES[point["dtype"]].itemsize
    return Work(2.0 * m * n * k, float(size * (m * k + n * k + m * n)))


OPS = (
    Op(name="gemm", about="linear layer", variants=({"dtype": "fp32"}, {"dtype": "bf16"}), prepare=_prepare, work=_work,
       terms=("n k m", "n k", "k m", "n m"),
       axes=(GridAxis("n", (64, 512, 4096, 49152), step=16), GridAxis("k", (64, 512, 2048), step=16),
             # Up to three fp32 rows are so many products with a vector, each of which reads all weights; four are one.
             GridAxis("m", (1, 3, 4, 16, 128))),
       on_cuda={"variants": ({"dtype": "bf16"}, {"dtype": "fp32"}),
                "axes": (GridAxis("n", (1024, 4096, 16384), step=128), GridAxis("k", (1024, 4096, 16384), step=128),
                         GridAxis("m", (1, 16, 128, 1024, 8192)))}),
)
