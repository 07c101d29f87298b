"""Synthetic workloads: seeds give bytes, processes obey their closed forms, fits resemble what they were fitted to."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import catalogue, fit, registry, synthetic
from traces.mixes import mix, mixes
from traces.requests import RequestTable, TraceStatistics, dispersion, make_table
from workbench.errors import SpecError, TraceError

FITTED = {"azure-conv-like": "azure-2023-conv", "azure-code-like": "azure-2023-code",
          "mooncake-conversation-like": "mooncake-conversation", "sharegpt-like": "sharegpt-lengths"}
LENGTHS = synthetic.LognormalLengths(
    kind="lognormal", rank_correlation=0.6, input=synthetic.Lognormal(median_tokens=500, sigma=0.8),
    output=synthetic.Lognormal(median_tokens=200, sigma=0.5))


def model(arrivals: object, lengths: object = LENGTHS, **changes: object) -> synthetic.Workload:
    return synthetic.Workload(kind="workload", title="t", source="test", licence="none", requests=100,
                              arrivals=arrivals, lengths=lengths, **changes)


def drawn(workload: synthetic.Workload, *, seed: int = 0, requests: int | None = None, duration_s: float | None = None,
          rate_per_s: float | None = None) -> RequestTable:
    return synthetic.generate(workload, rng=np.random.default_rng(seed), name="t", requests=requests,
                              duration_s=duration_s, rate_per_s=rate_per_s)


@pytest.fixture
def mirror() -> Path:
    folder = os.environ.get(registry.MIRROR_VARIABLE)
    if not folder:
        pytest.skip(f"public traces needed: set {registry.MIRROR_VARIABLE} to a mirror of them")
    return Path(folder)


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", synthetic.names())
def test_a_seed_gives_its_bytes_and_another_seed_others(name: str) -> None:
    first, again, other = (catalogue.load(name, seed=seed, requests=300) for seed in (7, 7, 8))
    assert first.equals(again) and first.content_id() == again.content_id()
    assert first.content_id() != other.content_id()


def test_another_process_draws_the_same_bytes() -> None:
    code = ("from traces import catalogue;"
            "print(catalogue.load('mooncake-conversation-like', requests=200).content_id())")
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert printed.stdout.strip() == catalogue.load("mooncake-conversation-like", requests=200).content_id()


@pytest.mark.parametrize("name", synthetic.names())
def test_a_longer_run_starts_with_the_shorter_one(name: str) -> None:
    assert catalogue.load(name, requests=500).first(120).equals(
        dataclasses.replace(catalogue.load(name, requests=120), history=()))


# --- arrivals against closed forms -----------------------------------------------------------------------------------


def test_constant_poisson_and_gamma_gaps_have_their_moments() -> None:
    constant = drawn(model(synthetic.Constant(kind="constant", rate_per_s=4)), requests=50)
    np.testing.assert_allclose(np.diff(constant.arrival_s), 0.25)
    for arrivals, cv in ((synthetic.Poisson(kind="poisson", rate_per_s=4), 1.0),
                         (synthetic.Gamma(kind="gamma", rate_per_s=4, cv=0.3), 0.3),
                         (synthetic.Gamma(kind="gamma", rate_per_s=4, cv=2.5), 2.5)):
        found = drawn(model(arrivals), requests=100_000).statistics()
        assert found.rate_per_s == pytest.approx(4, rel=0.03) and found.arrival_cv == pytest.approx(cv, rel=0.03)


def closed_form(states: tuple[synthetic.State, ...], rate: float, window_s: float) -> tuple[float, float]:
    """CV of the gaps and dispersion of counts of a Markov-modulated Poisson process, from its generator matrix.

    CV: E[T^2] = 2 a (L - Q)^-2 1, a = p L / rate. Dispersion: 1 + 2 / (rate w) times the sum over the nonzero
    eigenvalues m of Q of c (e^(m w) - 1 - m w) / m^2, c the weight of each in the covariance of the rate.
    """
    stays = np.array([s.mean_stay_s for s in states])
    share = stays / stays.sum()
    rates = np.array([s.relative_rate for s in states])
    rates = rates * rate / (share @ rates)
    k = len(states)
    q = np.where(np.eye(k) > 0, -1.0, 1 / (k - 1)) / stays[:, None]
    inverse = np.linalg.inv(np.diag(rates) - q)
    cv = np.sqrt(2 * (share * rates / rate) @ inverse @ inverse @ np.ones(k) * rate**2 - 1)
    m, v = np.linalg.eig(q)
    weight = ((share * rates) @ v) * (np.linalg.inv(v) @ rates)
    terms = [w * (np.exp(x * window_s) - 1 - x * window_s) / x**2 for x, w in zip(m, weight, strict=True)
             if abs(x) > 1e-9]
    return float(cv), float(np.real(1 + 2 * sum(terms) / (rate * window_s)))


@pytest.mark.parametrize("states", [((2.0, 1.0), (0.0, 1.0)), ((6.0, 2.0), (0.1, 5.0), (1.0, 3.0))])
def test_modulated_arrivals_obey_the_closed_form(states: tuple[tuple[float, float], ...]) -> None:
    chosen = tuple(synthetic.State(relative_rate=r, mean_stay_s=s) for r, s in states)
    found = drawn(model(synthetic.Modulated(kind="modulated", rate_per_s=5, states=chosen)), requests=400_000, seed=1)
    cv, spread = closed_form(chosen, 5.0, 10.0)
    assert found.statistics().rate_per_s == pytest.approx(5, rel=0.02)
    assert found.statistics().arrival_cv == pytest.approx(cv, rel=0.03)
    assert dispersion(found.arrival_s, window_s=10.0) == pytest.approx(spread, rel=0.05)


def test_the_diurnal_rate_swings_around_its_mean() -> None:
    day = synthetic.Diurnal(kind="diurnal", rate_per_s=10, amplitude=0.8, period_s=1000)
    times = drawn(model(day), duration_s=20_000, seed=2).arrival_s
    assert len(times) == pytest.approx(200_000, rel=0.01)
    # integral of the rate over the first and second half of a period: 1/2 -+ amplitude / pi of it
    assert np.mean(times % 1000 < 500) == pytest.approx(0.5 + 0.8 / np.pi, abs=0.005)


def test_ticks_round_arrivals_down_and_batches_have_none() -> None:
    ticked = drawn(model(synthetic.Poisson(kind="poisson", rate_per_s=2), tick_s=3.0), requests=500)
    assert not (ticked.arrival_s % 3.0).any() and len(set(ticked.arrival_s)) < 400
    batch = model(synthetic.Batch(kind="batch"))
    assert drawn(batch).arrivals == "absent" and len(drawn(batch)) == 100
    assert drawn(batch, requests=50_000, rate_per_s=3).statistics().arrival_cv == pytest.approx(1, abs=0.03)
    with pytest.raises(TraceError, match="a duration needs one"):
        drawn(batch, duration_s=5)


def test_count_duration_and_rate_fix_each_other() -> None:
    poisson = model(synthetic.Poisson(kind="poisson", rate_per_s=50))
    by_time = drawn(poisson, duration_s=400)
    assert by_time.span_s < 400 and len(by_time) == pytest.approx(20_000, rel=0.03)
    assert len(drawn(poisson, duration_s=400, rate_per_s=5)) == pytest.approx(2000, rel=0.1)
    both = drawn(poisson, requests=20_000, duration_s=100)
    assert len(both) == 20_000 and both.span_s == pytest.approx(100, rel=0.03)
    with pytest.raises(TraceError, match="leave one out"):
        drawn(poisson, requests=10, duration_s=1, rate_per_s=10)
    with pytest.raises(TraceError, match="no request arrives"):
        drawn(poisson, duration_s=1e-9)
    with pytest.raises(TraceError, match="duration_s must be a positive number"):
        drawn(poisson, duration_s=0)


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_lognormal_lengths_have_the_closed_form_mean_and_correlation() -> None:
    found = drawn(model(synthetic.Batch(kind="batch")), requests=300_000).statistics()
    assert found.input_mean_tokens == pytest.approx(500 * np.exp(0.8**2 / 2), rel=0.01)
    assert found.output_mean_tokens == pytest.approx(200 * np.exp(0.5**2 / 2), rel=0.01)
    assert found.length_rank_correlation == pytest.approx(0.6, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 8))
def test_a_joint_table_changes_neither_marginal(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    joint = np.mean([np.eye(n)[rng.permutation(n)] for _ in range(3)], axis=0)  # doubly stochastic
    flat = synthetic.Quantiles(probability=(0.0, 1.0), value=(1e3, 1e6))  # hardly any ties
    lengths = synthetic.QuantileLengths(kind="quantiles", input=flat, output=flat,
                                        joint=tuple(tuple(row) for row in joint))
    found = drawn(model(synthetic.Batch(kind="batch"), lengths), requests=20_000, seed=seed)
    uniform = np.rint(np.exp(np.linspace(np.log(1e3), np.log(1e6), 20_000)))
    assert fit.ks_distance(found.input_tokens, uniform) < 0.025
    assert fit.ks_distance(found.output_tokens, uniform) < 0.025
    refitted = np.array(fit.fit_joint(found.input_tokens, found.output_tokens, classes=n))
    assert np.abs(refitted - joint).max() < 0.08


def test_the_mixes_are_the_published_percentages_with_an_explicit_order() -> None:
    published = {"trace1": [33, 7, 8, 7, 27, 6, 6, 3, 3], "trace2": [22, 5, 5, 21, 5, 5, 19, 6, 12],
                 "trace3": [4, 14, 3, 20, 27, 1, 25, 0, 6]}  # arXiv 2502.00722
    lengths = [(i, o) for i in (2455, 824, 496) for o in (510, 253, 18)]
    assert set(mixes()) == set(published)
    for name, percentages in published.items():
        assert sum(percentages) == 100
        assert [t.order for t in mix(name).types] == list(range(1, 10))
        assert [(t.input_tokens, t.output_tokens) for t in mix(name).types] == lengths
        assert [round(100 * t.share, 9) for t in mix(name).types] == percentages
        assert "not confirmed" in mix(name).source
        shares = catalogue.load(name, requests=50_000).bin_types().shares
        np.testing.assert_allclose(shares, np.array(percentages) / 100, atol=0.008)
    with pytest.raises(TraceError, match="did you mean 'trace1'"):
        mix("trace11")


@given(st.integers(1, 5000), st.sampled_from(["trace1", "trace2", "trace3"]))
def test_whole_counts_of_a_mix_add_up_and_stay_next_to_the_shares(requests: int, name: str) -> None:
    counts = mix(name).counts(requests)
    assert sum(counts) == requests
    assert all(abs(c - t.share * requests) < 1 for c, t in zip(counts, mix(name).types, strict=True))


# --- resemblance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "inputs", "outputs"), [
    ("azure-conv-like", 1154.7, 211.1), ("azure-code-like", 2047.8, 27.9), ("mooncake-conversation-like", 12035, 343)])
def test_means_are_within_two_per_cent_of_the_published_ones(name: str, inputs: float, outputs: float) -> None:
    plain = dataclasses.replace(synthetic.workload(name), prefix=None)
    found = drawn(plain, requests=200_000).statistics()
    assert found.input_mean_tokens == pytest.approx(inputs, rel=0.02)
    assert found.output_mean_tokens == pytest.approx(outputs, rel=0.02)


@pytest.mark.parametrize("name", synthetic.names())
def test_every_workload_has_its_reference_statistics(name: str) -> None:
    chosen = synthetic.workload(name)
    assert set(chosen.reference) <= {f.name for f in dataclasses.fields(TraceStatistics)}
    found = drawn(dataclasses.replace(chosen, prefix=None), requests=300_000, seed=3).statistics()
    tolerance = {"input_mean_tokens": 0.02, "output_mean_tokens": 0.02, "input_median_tokens": 0.05,
                 "output_median_tokens": 0.05, "input_p90_tokens": 0.05, "output_p90_tokens": 0.05,
                 "input_p99_tokens": 0.1, "output_p99_tokens": 0.1, "rate_per_s": 0.05, "arrival_cv": 0.06,
                 "dispersion_60s": 0.2}
    checked = set(chosen.reference) & set(tolerance)
    assert checked
    for key in checked:
        assert getattr(found, key) == pytest.approx(chosen.reference[key], rel=tolerance[key]), key


@pytest.mark.parametrize(("name", "public"), FITTED.items())
def test_lengths_resemble_the_public_trace(name: str, public: str, mirror: Path) -> None:
    real = catalogue.load(public)
    alike = drawn(dataclasses.replace(synthetic.workload(name), prefix=None), requests=200_000)
    assert fit.ks_distance(alike.input_tokens, real.input_tokens) < 0.025
    assert fit.ks_distance(alike.output_tokens, real.output_tokens) < 0.025
    # joint lengths: total variation distance over the nine types of the placement study
    assert np.abs(alike.bin_types().shares - real.bin_types().shares).sum() / 2 < 0.03


@pytest.mark.parametrize(("name", "public"), FITTED.items())
def test_shipped_tables_are_what_the_fit_gives(name: str, public: str, mirror: Path) -> None:
    real = catalogue.load(public)
    shipped = synthetic.workload(name).lengths
    refitted = fit.fit(real).lengths
    assert shipped == refitted


def test_prompts_share_prefixes_as_much_as_in_the_public_trace(mirror: Path) -> None:
    real = catalogue.load("mooncake-conversation")
    assert real.blocks is not None
    shares = []
    for seed in range(3):
        blocks = catalogue.load("mooncake-conversation-like", seed=seed).blocks
        assert blocks is not None
        shares.append(blocks.reuse_share())
    assert np.mean(shares) == pytest.approx(real.blocks.reuse_share(), abs=0.02)


def test_synthetic_blocks_are_prefixes_of_the_right_number() -> None:
    found = catalogue.load("mooncake-conversation-like", requests=800)
    assert found.blocks is not None
    before: dict[int, int] = {}
    for prompt, tokens in zip(found.blocks, found.input_tokens, strict=True):
        assert len(prompt) == -(-tokens // 512)
        for parent, block in zip([-1, *prompt[:-1].tolist()], prompt.tolist(), strict=True):
            assert before.setdefault(block, parent) == parent  # one block, one history
    assert found.blocks.reuse_share() > 0.2


# --- fitting and files -----------------------------------------------------------------------------------------------


def test_a_fit_reproduces_rate_burstiness_and_lengths_of_any_table() -> None:
    rng = np.random.default_rng(5)
    times = np.cumsum(rng.gamma(0.25, 2.0, 20_000))
    lengths = np.rint(np.exp(rng.normal(6, 1, 20_000))).clip(1).astype(int)
    original = make_table(arrival_s=times, input_tokens=lengths, output_tokens=lengths // 3 + 1, name="mine",
                          source="mine", licence="private")
    fitted = fit.fit(original)
    alike = drawn(fitted, requests=20_000).statistics()
    for key in ("rate_per_s", "arrival_cv", "input_mean_tokens", "output_mean_tokens"):
        assert getattr(alike, key) == pytest.approx(getattr(original.statistics(), key), rel=0.06), key
    assert alike.length_rank_correlation > 0.95


def test_a_fit_written_and_read_is_the_same_workload(tmp_path: Path) -> None:
    source = catalogue.load("mooncake-conversation-like", requests=400)
    for workload in (fit.fit(source), synthetic.workload("mooncake-conversation-like"), synthetic.workload("trace2")):
        path = tmp_path / "w.toml"
        path.write_text(fit.to_toml(workload))
        assert synthetic.read_workload(path) == workload


def test_constant_lengths_can_be_fitted() -> None:
    same = make_table(input_tokens=[5] * 50, output_tokens=[9] * 50, name="t", source="t", licence="t")
    alike = drawn(fit.fit(same), requests=100)
    assert set(alike.input_tokens) == {5} and set(alike.output_tokens) == {9}


@pytest.mark.parametrize(("old", "new", "message"), [
    ('kind = "batch"', 'kind = "poison"\nrate_per_s = 1.0', "did you mean 'poisson'"),
    ('kind = "batch"', 'kind = "poisson"\nrate_per_s = 0.0', "rate_per_s must be a positive number"),
    ('kind = "batch"', 'kind = "gamma"\nrate_per_s = 1.0\ncv = 0.0', "cv must be positive"),
    ('kind = "batch"', 'kind = "modulated"\nrate_per_s = 1.0\nstates = []', "at least two states"),
    ('kind = "batch"', 'kind = "diurnal"\nrate_per_s = 1.0\namplitude = 2.0', "amplitude must be in 0 to 1"),
    ('mix = "trace1"', "", "give either a named mix or types"),
    ('mix = "trace1"', 'mixx = "trace1"', "did you mean 'mix'"),
    ("requests = 1000", 'requests = "many"', "requests"),
])
def test_faulty_workload_files_are_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    text = (synthetic.WORKLOADS_FOLDER / "trace1.toml").read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(SpecError, match=message):
        catalogue.load(path)


@pytest.mark.parametrize(("probability", "value", "message"), [
    ((0.0, 0.5), (1.0, 2.0), "from 0 to 1"), ((0.0, 1.0), (2.0, 1.0), "must not decrease"),
    ((0.0, 1.0), (1.0,), "equally many"), ((0.0, 0.5, 0.5, 1.0), (1.0, 2.0, 3.0, 4.0), "increase")])
def test_impossible_quantile_tables_are_refused(probability: tuple[float, ...], value: tuple[float, ...],
                                                message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic.Quantiles(probability=probability, value=value)
