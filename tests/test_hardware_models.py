"""The catalogue names its sources, model shapes reproduce published sizes, the roofline is what the hand computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import MissingProfile, SpecError
from workbench.hardware import load_catalogue, this_machine
from workbench.models import LlmShape, known_models, load_model
from workbench.roofline import Roofline
from workbench.study import data_folder

# Parameters as the model cards state them (safetensors totals on Hugging Face).
PUBLISHED_PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "smollm2-135m": 134_515_008,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
}


def test_every_entry_names_its_source_and_every_price_its_date() -> None:
    catalogue = load_catalogue()
    for entry in [*catalogue.devices.values(), *catalogue.links.values(), *catalogue.clusters.values()]:
        assert entry.source.strip()
    priced = [d for d in catalogue.devices.values() if d.price_usd_per_h is not None]
    assert len(priced) >= 7
    assert all(d.price_source and d.price_date for d in priced)


def test_prices_and_counts_are_those_of_the_paper() -> None:
    catalogue = load_catalogue()
    paper = {"RTX4090": 0.53, "A40": 0.55, "A6000": 0.83, "A100-80G-SXM": 1.75, "H100-SXM": 2.99}
    assert {n: catalogue.device(n).price_usd_per_h for n in paper} == paper
    assert catalogue.cluster("availability-1").devices == {
        "RTX4090": 16, "A40": 12, "A6000": 8, "L40": 12, "A100-80G-SXM": 6, "H100-SXM": 8}
    assert catalogue.link("NVLink").bytes_per_s == 300e9
    assert catalogue.link("Ethernet").seconds(0.625e9) == pytest.approx(1.0, rel=1e-3)


def test_data_sheets_agree_with_the_measured_tables_package() -> None:
    """Bandwidth, rate and memory of shared systems: two people's reading of the same data sheets."""
    core = pytest.importorskip("aiconfigurator_core", reason="pip install planner-workbench[gpu-tables]")
    folder = Path(core.__file__).parent / "systems"
    for name, device in load_catalogue().devices.items():
        theirs = folder / f"{device.names.get('aiconfigurator', '')}.yaml"
        if not theirs.is_file():
            continue
        facts = {k.strip(): v.split("#")[0].strip() for k, _, v in
                 (line.partition(":") for line in theirs.read_text().splitlines()) if v.strip()}
        assert device.memory_bytes_per_s == pytest.approx(float(facts["mem_bw"]), rel=0.01), name
        assert device.memory_bytes == pytest.approx(float(facts["mem_capacity"]), rel=0.01), name
        assert device.peak_flops_per_s["bf16"] == pytest.approx(float(facts["bfloat16_tc_flops"]), rel=0.01), name


def test_a_users_file_adds_devices_and_overrides_single_keys(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[devices.H100-SXM]\nprice_usd_per_h = 1.0\n'
                    '[devices.Abacus]\nmemory_bytes = 10\nmemory_bytes_per_s = 1.0\npeak_flops_per_s = {}\n'
                    'memory_efficiency = 1.0\nkernel_s = 1.0\nlink = "string"\ndevices_per_machine = 1\nsource = "me"\n'
                    '[links.string]\nlatency_s = 1.0\nbytes_per_s = 2.0\nsource = "me"\n')
    catalogue = load_catalogue(mine)
    assert catalogue.device("H100-SXM").price_usd_per_h == 1.0
    assert catalogue.device("H100-SXM").memory_bytes == load_catalogue().device("H100-SXM").memory_bytes
    assert catalogue.link(catalogue.device("Abacus").link).seconds(4) == 3.0
    overlay = data_folder("hardware") / "overlays" / "prices-2025-11.toml"
    assert load_catalogue(overlay).device("L40S").price_usd_per_h == 0.44


@pytest.mark.parametrize(("text", "complaint"), [
    ('[devices.A40]\nlink = "NVLnk"\n', "no link is called 'NVLnk'"),
    ("[devices.New]\nmemory_bytes = 1\n", "required key is missing"),
    ("[devices.A40]\nprice = 1.0\n", "unknown key"),
    ("[devices.T4]\nprice_usd_per_h = 1.0\n", "price_source"),
    ("[devices.A40]\nmemory_efficiency = 1.5\n", "at most 1"),
    ('[clusters.c]\ndevices = { A400 = 1 }\nnetwork = "Ethernet"\nsource = "me"\n', "no device is called 'A400'"),
])
def test_a_broken_hardware_file_says_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_catalogue(mine)
    assert complaint in str(caught.value)


def test_an_unknown_device_is_met_with_its_variants() -> None:
    with pytest.raises(SpecError, match="H100-SXM"):
        load_catalogue().device("h100")
    with pytest.raises(SpecError, match="RTX4090"):
        load_catalogue().device("RTX409")


def test_this_machine_is_a_device_too() -> None:
    device = this_machine()
    assert device.memory_bytes > 2**28
    assert device.memory_bytes_per_s > 1e8
    assert "measured" in device.source


def test_parameters_are_those_of_the_model_cards() -> None:
    assert {name: load_model(name).parameters for name in known_models()} == PUBLISHED_PARAMETERS


def test_kv_bytes_are_those_of_the_vendors() -> None:
    """128 KiB a token for Llama-3.1-8B, 320 KiB for 70B in 16 bit and half in fp8, 512 KiB for Llama-2-7B."""
    assert load_model("llama-3.1-8b").kv_bytes_per_token() == 128 * 1024
    assert load_model("llama-3.1-70b").kv_bytes_per_token() == 320 * 1024
    assert load_model("llama-3.1-70b").kv_bytes_per_token("fp8") == 160 * 1024
    assert load_model("llama-2-7b").kv_bytes_per_token() == 512 * 1024


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMETERS))
def test_gemms_hold_the_layers_weights_and_tensor_parallelism_splits_them(name: str) -> None:
    shape = load_model(name)
    weights = sum(g.n * g.k for g in shape.layer_gemms())
    small = shape.layer_parameters - weights
    assert 0 <= small <= 4 * shape.hidden + shape.head_dim * (shape.heads + 2 * shape.kv_heads)
    for degree in (2, 4, 8):
        try:
            parts = shape.layer_gemms(degree)
        except SpecError:
            assert shape.heads % degree or shape.kv_heads % degree
            continue
        if degree <= shape.kv_heads:
            assert degree * sum(g.n * g.k for g in parts) == weights


def test_operations_of_a_token_are_twice_the_weights_plus_attention() -> None:
    shape = load_model("llama-3.1-8b")
    assert shape.flops_per_token() == pytest.approx(2 * (shape.parameters - shape.vocab * shape.hidden), rel=1e-3)
    assert shape.flops_per_token(1000) - shape.flops_per_token() == 4 * 32 * 32 * 128 * 1000


def test_an_impossible_split_lists_the_possible_ones() -> None:
    with pytest.raises(SpecError) as caught:
        load_model("qwen2.5-7b").layer_gemms(8)
    assert caught.value.allowed == ("1", "2", "4")


def test_a_config_from_the_hub_is_read_and_a_strange_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    facts = json.loads((data_folder("models") / "llama-3.1-8b.json").read_text())
    path.write_text(json.dumps({**facts, "rope_theta": 1e6, "architectures": ["LlamaForCausalLM"]}))
    assert load_model(path).parameters == PUBLISHED_PARAMETERS["llama-3.1-8b"]
    with pytest.raises(SpecError, match="gpt2"):
        LlmShape.from_hf_config({"model_type": "gpt2"})
    with pytest.raises(SpecError, match="hidden_size"):
        LlmShape.from_hf_config({**facts, "hidden_size": None})
    with pytest.raises(SpecError, match=r"llama-3\.1-8b"):
        load_model("llama-3.1-8")
    path.write_text("{")
    with pytest.raises(SpecError, match="JSON"):
        load_model(path)


def test_roofline_by_hand() -> None:
    """A100: 4096^3 products are bound by its 312 TFLOPS, one row by 33.5 MB over 80 % of 2.039 TB/s."""
    costs = Roofline(load_catalogue())
    big = costs.cost("gemm", device="A100-80G-SXM", dtype="bf16", m=4096, n=4096, k=4096)
    assert big.source == "analytic"
    assert big.seconds == pytest.approx(2 * 4096**3 / 312e12 + 3e-6)
    row = costs.cost("gemm", device="A100-80G-SXM", dtype="bf16", m=1, n=4096, k=4096)
    assert row.seconds == pytest.approx((2 * 4096**2 + 4 * 4096) / (0.8 * 2.039e12) + 3e-6)
    ring = costs.cost("all_reduce", device="A100-80G-SXM", ranks=4, bytes=8e6)
    assert ring.seconds == pytest.approx(6 * (10e-6 + 2e6 / 300e9))


def test_roofline_refuses_what_the_data_sheet_does_not_say() -> None:
    costs = Roofline(load_catalogue())
    with pytest.raises(MissingProfile, match="no rate for fp8"):
        costs.cost("gemm", device="A100-80G-SXM", dtype="fp8", m=1, n=1, k=1)
    with pytest.raises(MissingProfile, match="did you mean 'gemm'"):
        costs.cost("gem", device="A100-80G-SXM")
    with pytest.raises(SpecError, match="needs 'k'"):
        costs.cost("gemm", device="A100-80G-SXM", dtype="bf16", m=1, n=1)


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 64))
def test_roofline_grows_with_the_work(m: int, more: int, batch: int) -> None:
    costs = Roofline(load_catalogue())
    point = {"device": "L40S", "heads": 32, "kv_heads": 8, "head_dim": 128, "kv_dtype": "bf16"}
    for op, over in [("gemm", {"dtype": "bf16", "n": 4096, "k": 4096, "m": m, "device": "L40S"}),
                     ("attention_decode", {**point, "batch": batch, "context": m}),
                     ("attention_prefill", {**point, "batch": batch, "tokens": m})]:
        grown = {k: v + more if k in ("m", "context", "tokens") else v for k, v in over.items()}
        assert costs.cost(op, **grown).seconds >= costs.cost(op, **over).seconds
