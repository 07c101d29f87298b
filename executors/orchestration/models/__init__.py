"""The models kernels are chosen for: own constructors, published shapes, seeded random weights, nothing downloaded.

``MODELS`` maps a name to its ``ModelSpec``; ``build`` gives the module, ready to run, and inputs for it. Whole models
and, under names of their own, the block of each in which kernels are decided. A name's weights depend on the seed
alone (and a sequence length or map side, where it is part of the module, changes none of them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from executors.orchestration.models import blocks, yolov4, yolox
from executors.orchestration.models.candy import Candy
from executors.orchestration.models.efficientvit import EfficientViT, ReluLinearAttention
from executors.orchestration.models.gpt2 import Gpt2
from executors.orchestration.models.layers import calibrate, initialise, parameters
from executors.orchestration.models.segformer import DecodeConcat, Segformer
from executors.orchestration.models.yolov4 import YoloV4
from executors.orchestration.models.yolox import YoloxNano
from workbench.errors import SpecError, nearest

__all__ = ["MODELS", "ModelSpec", "build", "model", "parameters"]

_CALIBRATION_SEED = 1_000_003

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ModelSpec:
    """One model, or one block of a model.

    Attributes:
        title: what it is, for tables.
        construct: resolution -> the module, weights as torch leaves them.
        shapes: (batch, resolution) -> shapes of the inputs.
        default_resolution: the published one.
        small_resolution: one at which a forward takes a fraction of a second.
        multiple: what a resolution must be a multiple of.
        unit: what ``resolution`` counts.
        block_of: name of the model a block comes from, ``None`` for a whole model.
    """

    title: str
    construct: Callable[[int], nn.Module]
    shapes: Callable[[int, int], Shapes]
    default_resolution: int
    small_resolution: int
    multiple: int = 1
    unit: str = "pixels a side"
    block_of: str | None = None

    def resolved(self, resolution: int | None) -> int:
        """The resolution, the default one for ``None``.

        Raises:
            SpecError: not a positive multiple of ``multiple``.
        """
        if resolution is None:
            return self.default_resolution
        if resolution < self.multiple or resolution % self.multiple:
            close = max(1, round(resolution / self.multiple)) * self.multiple
            raise SpecError(f"{self.title} cannot run at {resolution} {self.unit}", where="resolution",
                            allowed=[f"positive multiples of {self.multiple}"], hint=f"{close} is the nearest")
        return resolution

    def build(self, resolution: int | None = None, *, seed: int = 0) -> nn.Module:
        """The module in eval mode, single precision, weights from ``seed``, no gradients.

        Raises:
            SpecError: the resolution does not fit.
        """
        with torch.random.fork_rng(devices=[]):
            module = self.construct(self.resolved(resolution)).eval()
        initialise(module, seed=seed)
        # nothing with a batch norm has its resolution in the module: the same statistics at all resolutions
        calibrate(module, self.example_inputs(2, self.small_resolution, _CALIBRATION_SEED))
        return module.requires_grad_(False)

    def example_inputs(self, batch: int = 1, resolution: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Standard normal inputs, single precision, contiguous.

        Raises:
            SpecError: the batch is not positive or the resolution does not fit.
        """
        if batch < 1:
            raise SpecError(f"a batch of {batch} holds nothing", where="batch", allowed=["1 and more"])
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(shape, generator=generator) for shape in self.shapes(batch, self.resolved(resolution)))


def _image(batch: int, resolution: int) -> Shapes:
    return ((batch, 3, resolution, resolution),)


def _maps(channels: int) -> Callable[[int, int], Shapes]:
    return lambda batch, side: ((batch, channels, side, side),)


def _halvings(side: int) -> tuple[int, ...]:
    return side, side // 2, side // 4, side // 8


MODELS: Mapping[str, ModelSpec] = MappingProxyType({
    "candy": ModelSpec("Candy", lambda _: Candy(), _image, 224, 64, multiple=8),
    "efficientvit-b0": ModelSpec("EfficientViT-B0", lambda _: EfficientViT(), _image, 2048, 128, multiple=32),
    "gpt2": ModelSpec("GPT-2 stack", Gpt2, lambda batch, tokens: ((batch, tokens, 768),), 1024, 32, unit="tokens"),
    "segformer-b0": ModelSpec("Segformer-B0", lambda _: Segformer(), _image, 512, 64, multiple=32),
    "yolov4": ModelSpec("YOLOv4", lambda _: YoloV4(), _image, 416, 64, multiple=32),
    "yolox-nano": ModelSpec("YOLOX-nano", lambda _: YoloxNano(), _image, 416, 128, multiple=32),
    "candy-norm": ModelSpec(
        "Candy instance norm, ReLU, reflection pad", lambda _: blocks.NormReluPad(64), _maps(64), 112, 16,
        multiple=2, block_of="candy"),
    "efficientvit-attention": ModelSpec(
        "EfficientViT ReLU linear attention, 8 heads", lambda _: ReluLinearAttention(16),
        lambda batch, side: ((batch, 384, side * side),), 64, 16, block_of="efficientvit-b0"),
    "efficientvit-attention-sum": ModelSpec(
        "EfficientViT ReLU linear attention, 8 heads, keys summed apart",
        lambda _: ReluLinearAttention(16, padded=False), lambda batch, side: ((batch, 384, side * side),), 64, 16,
        block_of="efficientvit-b0"),
    "gpt2-block": ModelSpec(
        "GPT-2 block", lambda tokens: Gpt2(tokens, depth=1, final_norm=False),
        lambda batch, tokens: ((batch, tokens, 768),), 1024, 32, unit="tokens", block_of="gpt2"),
    "segformer-attention": ModelSpec(
        "Segformer self-attention, 1 head", lambda _: blocks.SoftmaxAttention(1),
        lambda batch, side: ((batch, side ** 2, 32), *[(batch, (side // 4) ** 2, 32)] * 2), 64, 16, multiple=4,
        block_of="segformer-b0"),
    "segformer-decode": ModelSpec(
        "Segformer decode head up to the concat", lambda side: DecodeConcat(256, _halvings(side)),
        lambda batch, side: tuple((batch, s * s, 256) for s in _halvings(side)), 128, 16, multiple=8,
        block_of="segformer-b0"),
    "yolov4-csp": ModelSpec(
        "YOLOv4 CSP stage (Mish)", lambda _: yolov4.CSPStage(128, 2), _maps(128), 104, 16, block_of="yolov4"),
    "yolox-csp": ModelSpec(
        "YOLOX CSP layer (SiLU)", lambda _: yolox.CSPLayer(64, 64, 3), _maps(64), 52, 16, block_of="yolox-nano"),
})
"""Whole models first, then blocks; a block's resolution is the side of its (finest) map."""


def model(name: str) -> ModelSpec:
    """The spec of a model or block.

    Raises:
        SpecError: no such name.
    """
    if name not in MODELS:
        close = nearest(name, MODELS)
        raise SpecError(f"no model is called {name!r}", where="model", allowed=list(MODELS),
                        hint=f"did you mean {close!r}?" if close else None)
    return MODELS[name]


def build(name: str, *, batch: int = 1, resolution: int | None = None, seed: int = 0
          ) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A module and inputs to run it on, both from ``seed``.

    Args:
        name: a key of ``MODELS``.
        batch: rows of the inputs.
        resolution: side of the image or map, or tokens; ``None`` for the published one.
        seed: of weights and inputs.

    Raises:
        SpecError: no such name, or batch or resolution do not fit.
    """
    spec = model(name)
    return spec.build(resolution, seed=seed), spec.example_inputs(batch, resolution, seed)
