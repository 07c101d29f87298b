"""Models of the orchestration study: published sizes, shapes, independence of rows, seeds, export."""

from __future__ import annotations

import functools
import math

import pytest

torch = pytest.importorskip("torch")

from executors.orchestration.models import MODELS, ModelSpec, build, model, parameters  # noqa: E402
from executors.orchestration.models.blocks import NormReluPad, SoftmaxAttention  # noqa: E402
from executors.orchestration.models.efficientvit import ReluLinearAttention  # noqa: E402
from executors.orchestration.models.gpt2 import causal_mask  # noqa: E402
from executors.orchestration.models.layers import initialise, softmax_attention  # noqa: E402
from executors.orchestration.models.segformer import DecodeConcat  # noqa: E402
from executors.orchestration.models.yolox import _Focus  # noqa: E402
from workbench.errors import SpecError  # noqa: E402

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

NAMES = list(MODELS)
WHOLE = [name for name, spec in MODELS.items() if spec.block_of is None]

# exact where the published code's count is known, else what the papers print
PARAMETERS = {
    "candy": (1_679_235, 1_679_235),
    "efficientvit-b0": (650_000, 750_000),  # 0.7 M with the segmentation head
    "gpt2": (85_056_000, 85_056_000),  # 124,439,808 less 38,597,376 + 786,432 for embeddings
    "segformer-b0": (3_752_694, 3_752_694),
    "yolov4": (64_000_000, 64_500_000),
    "yolox-nano": (905_000, 915_000),  # 0.91 M
    "gpt2-block": (12 * 768 ** 2 + 13 * 768, 12 * 768 ** 2 + 13 * 768),
}

# (batch, ...) at the small resolution, written out by hand
OUTPUTS = {
    "candy": [(3, 64, 64)],
    "efficientvit-b0": [(19, 16, 16)],
    "gpt2": [(32, 768)],
    "segformer-b0": [(150, 16, 16)],
    "yolov4": [(255, 8, 8), (255, 4, 4), (255, 2, 2)],
    "yolox-nano": [(85, 16, 16), (85, 8, 8), (85, 4, 4)],
    "candy-norm": [(64, 18, 18)],
    "efficientvit-attention": [(128, 256)],
    "efficientvit-attention-sum": [(128, 256)],
    "gpt2-block": [(32, 768)],
    "segformer-attention": [(256, 32)],
    "segformer-decode": [(1024, 16, 16)],
    "yolov4-csp": [(128, 16, 16)],
    "yolox-csp": [(64, 16, 16)],
}


@functools.cache
def small(name: str) -> torch.nn.Module:
    return MODELS[name].build(MODELS[name].small_resolution)


def outputs(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    found = module(*inputs)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    low, high = PARAMETERS[name]
    assert low <= parameters(small(name)) <= high


def test_every_name_is_covered() -> None:
    assert set(OUTPUTS) == set(MODELS)
    assert set(PARAMETERS) >= set(WHOLE)
    assert {MODELS[name].block_of for name in NAMES} - {None} == set(WHOLE)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_do_not_mix(name: str) -> None:
    spec, module = MODELS[name], small(name)
    inputs = spec.example_inputs(2, spec.small_resolution, 5)
    both = outputs(module, inputs)
    assert [tuple(y.shape) for y in both] == [(2, *shape) for shape in OUTPUTS[name]]
    for row in (0, 1):
        alone = outputs(module, tuple(x[row:row + 1] for x in inputs))
        assert [tuple(y.shape) for y in alone] == [(1, *shape) for shape in OUTPUTS[name]]
        for one, two in zip(alone, both, strict=True):
            torch.testing.assert_close(one[0], two[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_of_order_one_and_depend_on_the_input(name: str) -> None:
    spec, module = MODELS[name], small(name)
    first, second = (outputs(module, spec.example_inputs(1, spec.small_resolution, seed)) for seed in (1, 2))
    for one, two in zip(first, second, strict=True):
        assert one.dtype == torch.float32
        assert 0.02 < float(one.std()) < 20
        assert float((one - two).std() / one.std()) > 0.05


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("gpt2", "yolov4")])
def test_rounding_stays_small(name: str) -> None:
    """Single against double precision within what a stitched program may differ from eager."""
    spec = MODELS[name]
    module, inputs = build(name, resolution=spec.small_resolution, seed=3)
    single = outputs(module, inputs)
    double = outputs(module.double(), tuple(x.double() for x in inputs))
    for one, two in zip(single, double, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("gpt2", "yolov4")])
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    spec = MODELS[name]
    before = torch.random.get_rng_state()
    again = spec.build(2 * spec.small_resolution).state_dict()
    other = spec.build(spec.small_resolution, seed=1).state_dict()
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator moved"
    for key, value in small(name).state_dict().items():
        if key != "mask":  # a constant as long as the sequence
            assert torch.equal(value, again[key]), key
        if value.is_floating_point() and key != "mask":
            assert not torch.equal(value, other[key]), key
    assert not any(p.requires_grad for p in small(name).parameters())
    assert not any(part.training for part in small(name).modules())


# the two largest only repeat what their blocks export, and take the longest
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("gpt2", "yolov4")))
                                  for name in NAMES])
def test_export(name: str) -> None:
    spec, module = MODELS[name], small(name)
    inputs = spec.example_inputs(1, spec.small_resolution, 7)
    kept = [x.clone() for x in inputs]
    exported = torch.export.export(module, inputs).module()
    for one, two in zip(outputs(exported, inputs), outputs(module, inputs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(x, y) for x, y in zip(inputs, kept, strict=True)), "an input was written to"


def test_block_shapes_at_the_published_resolution() -> None:
    shapes = {name: spec.shapes(1, spec.default_resolution) for name, spec in MODELS.items() if spec.block_of}
    assert shapes["candy-norm"] == ((1, 64, 112, 112),)
    assert shapes["efficientvit-attention"] == ((1, 384, 4096),)
    assert shapes["segformer-attention"] == ((1, 4096, 32), (1, 256, 32), (1, 256, 32))
    assert shapes["segformer-decode"] == tuple((1, n, 256) for n in (16384, 4096, 1024, 256))


def test_softmax_attention_against_torch() -> None:
    q, k, v = (torch.randn(2, n, 24, generator=torch.Generator().manual_seed(n)) for n in (8, 8, 8))

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 8, 3, 8).transpose(1, 2)

    for mask in (None, causal_mask(8)):
        expected = torch.nn.functional.scaled_dot_product_attention(heads(q), heads(k), heads(v),
                                                                    is_causal=mask is not None)
        torch.testing.assert_close(softmax_attention(q, k, v, 3, mask), expected.transpose(1, 2).reshape(2, 8, 24))
    assert torch.equal(SoftmaxAttention(3)(q, k, v), softmax_attention(q, k, v, 3))


@pytest.mark.parametrize("padded", [True, False])
def test_linear_attention_against_the_quadratic_form(padded: bool) -> None:
    dim, heads, tokens = 4, 3, 10
    qkv = torch.randn(2, heads * 3 * dim, tokens, generator=torch.Generator().manual_seed(0))
    found = ReluLinearAttention(dim, padded=padded)(qkv)
    for batch in range(2):
        for head in range(heads):
            own = qkv[batch, head * 3 * dim:(head + 1) * 3 * dim].double()
            q, k, v = own[:dim].relu(), own[dim:2 * dim].relu(), own[2 * dim:]
            weights = q.T @ k  # (queries, keys), no softmax: each row divided by its sum
            expected = (weights @ v.T / (weights.sum(1, keepdim=True) + 1e-15)).T
            own = found[batch, head * dim:(head + 1) * dim].double()
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_norm_relu_pad_against_its_definition() -> None:
    module = NormReluPad(2).eval()
    initialise(module, seed=0)
    x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
    scale, shift = module.norm.weight[:, None, None], module.norm.bias[:, None, None]
    inner = ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp_min(0)
    torch.testing.assert_close(module(x), inner[:, :, [1, 0, 1, 2, 1]][..., [1, 0, 1, 2, 3, 2]])


def test_decode_concat_puts_the_coarsest_branch_first() -> None:
    module = DecodeConcat(2, (4, 2))
    initialise(module, seed=0)
    fine, coarse = torch.randn(1, 16, 2), torch.full((1, 4, 2), 3.0)
    found = module(fine, coarse)
    torch.testing.assert_close(found[0, :2], (3.0 + module.biases[1])[:, None, None].expand(2, 4, 4))
    torch.testing.assert_close(found[0, 2:, 1, 3], fine[0, 7] + module.biases[0])


def test_focus_takes_every_second_pixel() -> None:
    seen = []
    focus = _Focus(1, 4).eval()
    focus.conv.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    focus(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]))
    assert seen[0].flatten().tolist() == [0.0, 2.0, 1.0, 3.0]  # top left, bottom left, top right, bottom right


def test_gpt2_does_not_look_ahead() -> None:
    spec = MODELS["gpt2-block"]
    (x,) = spec.example_inputs(1, spec.small_resolution, 0)
    changed = x.clone()
    changed[:, 20] += 1
    difference = (small("gpt2-block")(x) - small("gpt2-block")(changed)).abs().amax(-1)[0]
    assert float(difference[:20].max()) == 0.0
    assert float(difference[20:].min()) > 0.0


def test_gelu_is_the_tanh_form() -> None:
    block = small("gpt2-block").blocks[0]
    x = torch.randn(1, 3, 768, generator=torch.Generator().manual_seed(0)) * 3
    mask = causal_mask(3)
    q, k, v = block.qkv(block.norm1(x)).split(768, dim=-1)
    mid = x + block.out(softmax_attention(q, k, v, 12, mask))
    up = block.up(block.norm2(mid))
    gelu = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up ** 3)))
    torch.testing.assert_close(block(x, mask), mid + block.down(gelu), rtol=1e-4, atol=1e-4)


def test_wrong_names_and_sizes_are_told() -> None:
    with pytest.raises(SpecError) as unknown:
        model("segformer-b1")
    assert unknown.value.allowed == tuple(MODELS)
    assert "'segformer-b0'" in str(unknown.value)
    with pytest.raises(SpecError, match="no model is called"):
        build("")
    with pytest.raises(SpecError) as side:
        build("yolox-nano", resolution=100)
    assert "96 is the nearest" in str(side.value)
    for resolution in (0, -32):
        with pytest.raises(SpecError, match="cannot run at"):
            build("yolov4", resolution=resolution)
    with pytest.raises(SpecError, match="holds nothing"):
        MODELS["candy"].example_inputs(0)


def test_inputs_follow_seed_and_batch() -> None:
    spec: ModelSpec = MODELS["segformer-attention"]
    first, again, other = (spec.example_inputs(2, 8, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert [tuple(x.shape) for x in first] == [(2, 64, 32), (2, 4, 32), (2, 4, 32)]
