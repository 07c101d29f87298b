"""The CPU kernels equal plain definitions: attention, product quantisation, cross-polytope hashing."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the kernels need torch: pip install 'planner-workbench[run]'")

from profilers import attention, lsh, native, pq  # noqa: E402
from workbench.errors import SpecError  # noqa: E402


def plain_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(G, D) queries over (S, D) rows, in float64."""
    scores = q.astype(float) @ k.astype(float).T / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v.astype(float)


needs_one_pass = pytest.mark.skipif(attention._native() is None, reason="no C compiler here")


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("way", [attention.decode, attention._fused, attention._products,
                                 pytest.param(attention._one_pass, marks=needs_one_pass)])
def test_decode_equals_the_definition_in_every_formulation(way: object, width: int) -> None:
    if way is attention._one_pass and width % 32:
        pytest.skip("the pass in C takes widths that are multiples of 32")
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, n, width)).astype(np.float32) for n in (4, 50, 50))
    found = way(*map(torch.from_numpy, (q, k, v))).numpy()  # type: ignore[operator]
    for b in range(2):
        for n in range(3):
            np.testing.assert_allclose(found[b, n], plain_attention(q[b, n], k[b, n], v[b, n]), atol=1e-5)


@needs_one_pass
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), group=st.integers(1, 9), width=st.sampled_from([32, 64, 96, 128]),
       rows=st.sampled_from([1, 2, 3, 5, 63, 64, 65, 129, 200]), large=st.sampled_from([1.0, 30.0]),
       dtype=st.sampled_from([torch.float32, torch.bfloat16]), heads=st.sampled_from([1, 2, 3]),
       threads=st.sampled_from([1, 2, 5]))
def test_one_pass_over_views_of_larger_caches_equals_the_definition(seed: int, group: int, width: int, rows: int,
                                                                    large: float, dtype: torch.dtype, heads: int,
                                                                    threads: int) -> None:
    """Any number of queries and rows, scores far apart, keys and values with gaps between heads and rows; heads that
    do not divide evenly among the threads, so that rows are walked in parts."""
    rng = np.random.default_rng(seed)
    q = torch.from_numpy(large * rng.standard_normal((2, heads, group, width), dtype=np.float32)).to(dtype)
    cache = torch.from_numpy(rng.standard_normal((2, heads, rows + 3, 2, width), dtype=np.float32)).to(dtype)
    k, v = cache[:, :, 2:rows + 2, 0], cache[:, :, 1:rows + 1, 1]
    before = torch.get_num_threads(), attention._THREADED_BYTES, attention._PART_ROWS
    torch.set_num_threads(threads)
    attention._THREADED_BYTES, attention._PART_ROWS = 1, 8
    try:
        found = attention._one_pass(q, k, v).float().numpy()
    finally:
        torch.set_num_threads(before[0])
        attention._THREADED_BYTES, attention._PART_ROWS = before[1:]
    error = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-4}
    for b in range(2):
        for n in range(heads):
            np.testing.assert_allclose(found[b, n], plain_attention(*(x[b, n].float().numpy() for x in (q, k, v))),
                                       **error)


@needs_one_pass
def test_one_pass_gives_not_a_number_where_a_key_is_none() -> None:
    q, k, v = (torch.ones(1, 2, n, 32) for n in (3, 80, 80))
    k[0, 1, 70, 5] = float("nan")
    found = attention._one_pass(q, k, v)
    assert (found[0, 0] == 1).all()
    assert found[0, 1].isnan().all()


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("threads", [1, 2])
def test_decode_over_selected_rows_equals_the_definition_on_those_rows(
        width: int, index: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads take three heads' rows in parts."""
    monkeypatch.setattr(attention, "_THREADED_BYTES", 1)
    monkeypatch.setattr(attention, "_PART_ROWS", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((3, n, width)).astype(np.float32) for n in (4, 200, 200))
    chosen = np.stack([rng.permutation(200)[:67] for _ in range(3)])
    given = (*map(torch.from_numpy, (q, k, v)), torch.from_numpy(chosen).to(index))
    ways = [attention.decode_selected(*given)]
    if width % 32 == 0 and attention._native() is not None:
        ways.append(attention._one_pass(*(x[None] for x in given[:3]), given[3])[0])
    for found, n in itertools.product(ways, range(3)):
        np.testing.assert_allclose(found[n].numpy(), plain_attention(q[n], k[n, chosen[n]], v[n, chosen[n]]),
                                   atol=1e-5)


@pytest.mark.parametrize("tokens", [9, 13, 15, 16, 30])
def test_prefill_with_shared_kv_heads_is_causal_attention_of_each_query_head(tokens: int) -> None:
    """Prompts with rows added and without."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, n, tokens, 8)).astype(np.float32) for n in (6, 2, 2))
    found = attention.prefill(*map(torch.from_numpy, (q, k, v))).numpy()
    assert found.shape == q.shape
    for head in range(6):
        for t in range(tokens):
            kv = head // 3
            np.testing.assert_allclose(found[0, head, t], plain_attention(
                q[0, head, t:t + 1], k[0, kv, :t + 1], v[0, kv, :t + 1])[0], atol=1e-5)


def test_drafted_tokens_see_their_past_their_ancestors_and_themselves() -> None:
    """A tree 0 -> (1, 2), 2 -> 3 after 20 rows: each token equals plain attention over the rows it may see."""
    rng = np.random.default_rng(3)
    q = rng.standard_normal((1, 2, 3, 4, 16)).astype(np.float32)
    k, v = (rng.standard_normal((1, 2, 24, 16)).astype(np.float32) for _ in range(2))
    ancestors = [[0], [0, 1], [0, 2], [0, 2, 3]]
    tree = np.array([[j in seen for j in range(4)] for seen in ancestors])
    found = attention.verify(*map(torch.from_numpy, (q, k, v, tree))).numpy()
    for n in range(2):
        for t, seen in enumerate(ancestors):
            rows = [*range(20), *(20 + j for j in seen)]
            np.testing.assert_allclose(found[0, n, :, t], plain_attention(q[0, n, :, t], k[0, n, rows], v[0, n, rows]),
                                       atol=1e-5)


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler here")
@pytest.mark.parametrize("source", sorted(Path(native.__file__).parent.glob("*.c")), ids=lambda path: path.stem)
def test_every_source_compiles_where_there_is_a_compiler(source: Path) -> None:
    """Callers do without a library that cannot be built, and would never say so."""
    assert native.library(source.stem) is not None


@pytest.fixture(params=["C", "Python"], scope="module")
def each_language(request: pytest.FixtureRequest) -> Iterator[None]:
    """The passes in C, and what callers do on a machine without a C compiler."""
    if request.param == "C" and lsh.library("places") is None:
        pytest.skip("no C compiler here")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "Python":
            patch.setattr(lsh, "library", lambda name: None)
            patch.setattr(pq, "_native", lambda name: None)
        yield


@pytest.mark.usefixtures("each_language")
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), m=st.integers(1, 3), bits=st.integers(1, 4), s=st.integers(1, 300),
       g=st.integers(1, 4))
def test_bucket_search_selects_tokens_with_the_scores_of_brute_force(seed: int, m: int, bits: int, s: int,
                                                                     g: int) -> None:
    """Claim: grouping by joint code changes nothing but the order of equal scores."""
    rng = np.random.default_rng(seed)
    c, n, k = 1 << bits, 2, int(rng.integers(1, s + 1))
    codes = rng.integers(0, c, (n, m, s)).astype(np.uint8)
    table = rng.standard_normal((n, g, m, c)).astype(np.float32)
    scores = np.zeros((n, g, s))
    for i in range(m):
        scores += np.take_along_axis(table[:, :, i].astype(float), codes[:, None, i].repeat(g, 1).astype(int), 2)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares = (shares / shares.sum(-1, keepdims=True)).sum(1)
    best = np.sort(shares, 1)[:, ::-1][:, :k]
    tensors = torch.from_numpy(table), torch.from_numpy(codes)
    for found in (pq.Inverted.of(tensors[1], c).search(tensors[0], k=k, scale=1.0).numpy(),
                  pq.search_scan(*tensors, k=k, scale=1.0).numpy()):
        assert all(len(set(row)) == k for row in found)
        got = np.sort(np.take_along_axis(shares, found, 1), 1)[:, ::-1]
        np.testing.assert_allclose(got, best, rtol=1e-4)


@pytest.mark.usefixtures("each_language")
def test_of_the_last_joint_code_the_earliest_tokens_are_selected() -> None:
    codes = torch.tensor([[[2, 1, 2, 0, 1, 2, 1, 2]]], dtype=torch.uint8)
    groups = pq.Inverted.of(codes, 4)
    table = torch.tensor([[[[0.0, 2.0, 1.0, 9.0]]]])
    for k, best in ((2, {1, 4}), (3, {1, 4, 6}), (5, {1, 4, 6, 0, 2}), (8, set(range(8)))):
        assert set(groups.search(table, k=k, scale=1.0)[0].tolist()) == best


@pytest.mark.usefixtures("each_language")
@pytest.mark.parametrize("k", [0, 9])
def test_no_more_tokens_are_selected_than_there_are(k: int) -> None:
    groups = pq.Inverted.of(torch.zeros(1, 1, 8, dtype=torch.uint8), 4)
    with pytest.raises(SpecError, match=f"{k} of 8 tokens"):
        groups.search(torch.zeros(1, 1, 1, 4), k=k, scale=1.0)


@pytest.mark.usefixtures("each_language")
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 1500), values=st.sampled_from([2, 5, 10**6]))
def test_the_largest_of_each_row_are_those_a_sort_puts_first(seed: int, size: int, values: int) -> None:
    """Numbers of both signs, many of them equal."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(0, values, (3, size)) - values // 2).astype(np.float32) / 7
    k = int(rng.integers(1, rng.choice([size, size // 20 + 1]) + 1))
    found = pq.largest(torch.from_numpy(x), k).numpy()
    assert all(len(set(row)) == k for row in found)
    np.testing.assert_array_equal(np.sort(np.take_along_axis(x, found, 1), 1), np.sort(x, 1)[:, size - k:])


def test_too_many_joint_codes_are_refused_with_a_hint() -> None:
    with pytest.raises(SpecError, match="score every token"):
        pq.Inverted.of(torch.zeros(1, 3, 5, dtype=torch.uint8), 256)


def test_sixteen_bits_of_joint_code_still_fit() -> None:
    codes = torch.tensor([[[0, 255, 1], [0, 255, 0]]], dtype=torch.uint8)
    groups = pq.Inverted.of(codes, 256)
    assert np.flatnonzero(np.diff(groups.first_NJ[0])).tolist() == [0, 256, 65535]


def test_lookup_and_scan_give_the_inner_product_with_the_quantised_key() -> None:
    rng = np.random.default_rng(3)
    q = torch.from_numpy(rng.standard_normal((2, 4, 12), dtype=np.float32))
    centroids = torch.from_numpy(rng.standard_normal((2, 3, 8, 4), dtype=np.float32))
    codes = torch.from_numpy(rng.integers(0, 8, (2, 3, 40)).astype(np.uint8))
    keys = torch.stack([torch.cat([centroids[n, i, codes[n, i].long()] for i in range(3)], 1) for n in range(2)])
    torch.testing.assert_close(pq.scan(pq.lookup_table(q, centroids), codes), q @ keys.transpose(1, 2))


def test_lloyd_iterations_never_raise_the_squared_error_and_assign_is_nearest() -> None:
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.standard_normal((500, 6), dtype=np.float32))
    errors = []
    for iterations in range(6):
        c = pq.kmeans(x, clusters=16, iterations=iterations, rng=np.random.default_rng(5))
        distance = torch.cdist(x.double(), c.double())
        assert (distance.gather(1, pq.assign(x, c)[:, None])[:, 0] <= distance.min(1).values + 1e-5).all()
        errors.append(float(distance.min(1).values.square().sum()))
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(errors))


def plain_codes(x: np.ndarray, spun: np.ndarray, hashes: int) -> np.ndarray:
    y = (torch.from_numpy(x) @ torch.from_numpy(spun)).numpy().reshape(len(x), hashes, -1)
    place = np.abs(y).argmax(-1)
    return place + y.shape[-1] * (np.take_along_axis(y, place[..., None], -1)[..., 0] < 0)


@pytest.mark.usefixtures("each_language")
@pytest.mark.parametrize("rotation", [4, 8, 16, 32, 64, 100, 128])
def test_codes_are_the_signed_place_of_the_largest_coordinate(rotation: int) -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((1100, 128), dtype=np.float32)
    spun = lsh.rotations(128, 3, rotation, rng)
    np.testing.assert_array_equal(lsh.codes(torch.from_numpy(x), spun, 3).numpy(), plain_codes(x, spun.numpy(), 3))


@pytest.mark.usefixtures("each_language")
@pytest.mark.parametrize("width", [8, 16, 32, 64, 12])
def test_ties_take_the_lowest_index_and_rows_of_zeros_get_code_zero(width: int) -> None:
    x = torch.zeros(3, width)
    x[1, [2, 5]] = -1.0
    x[2, [5, 3]] = torch.tensor([1.0, -1.0])
    x[0, 0] = -0.0
    assert lsh.codes(x, torch.eye(width), 1)[:, 0].tolist() == [0, 2 + width, 3 + width]


def test_codes_ignore_positive_scale_and_flip_sign_with_their_row() -> None:
    rng = np.random.default_rng(7)
    x = torch.from_numpy(rng.standard_normal((300, 64), dtype=np.float32))
    spun = lsh.rotations(64, 2, 16, rng)
    codes = lsh.codes(x, spun, 2)
    assert torch.equal(lsh.codes(4.0 * x, spun, 2), codes)
    assert torch.equal(lsh.codes(-x, spun, 2), (codes + 16) % 32)


def test_rotations_have_orthonormal_columns() -> None:
    spun = lsh.rotations(96, 2, 32, np.random.default_rng(8)).numpy()
    for block in (spun[:, :32], spun[:, 32:]):
        np.testing.assert_allclose(block.T @ block, np.eye(32), atol=1e-5)


@pytest.mark.parametrize(("base", "hashes"), [(4, 3), (64, 6), (512, 8)])
def test_combined_keys_are_equal_exactly_when_all_codes_are(base: int, hashes: int) -> None:
    rng = np.random.default_rng(9)
    codes = rng.integers(0, base, (4000, hashes))
    codes[2000:] = codes[rng.integers(0, 2000, 2000)]
    expert = rng.integers(0, 5, 4000)
    keys = lsh.combine(torch.from_numpy(codes), base=base, first_T=torch.from_numpy(expert)).numpy()
    rows = np.unique(np.column_stack([expert, codes]), axis=0)
    assert len(np.unique(keys)) == len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residuals_give_the_rows_back_and_sum_to_zero_in_each_bucket(dtype: object) -> None:
    rng = np.random.default_rng(10)
    x = torch.from_numpy(rng.standard_normal((200, 32), dtype=np.float32)).to(dtype)
    keys = torch.from_numpy(rng.integers(0, 20, 200))
    made = lsh.bucket(x, keys)
    back = lsh.restore(made.centroids_BH.to(dtype), made.inverse_T, made.residual_TH)
    torch.testing.assert_close(back, x, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-2)
    if dtype == torch.float32:
        sums = torch.zeros(20, 32).index_add_(0, made.inverse_T, made.residual_TH)
        assert sums.abs().max() < 1e-4


def test_no_rows_make_no_buckets() -> None:
    made = lsh.bucket(torch.zeros(0, 8), lsh.combine(lsh.codes(torch.zeros(0, 8), torch.eye(8), 1), base=16))
    assert made.centroids_BH.shape == (0, 8)
