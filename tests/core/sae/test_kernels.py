"""The lean kernels: exact selection, gradients as float64 autograd gives them, the same bits every time."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.sae.codes import Codes
from saev_core.sae.kernels import DENSE_ROWS, ROWS, SPARSE_BELOW, encode_above, encode_top_k, top_k
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.sae.scratch import Scratch
from saev_core.sae.step import Progress
from saev_core.sae.topk import TopK, TopKConfig


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 700), share=st.floats(0.001, 1), n=st.integers(1, 5), seed=st.integers(0, 9), coarse=st.booleans())
def test_top_k_finds_the_k_largest_of_every_row(m: int, share: float, n: int, seed: int, coarse: bool) -> None:
    k = max(1, int(share * m))
    h = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
    if coarse:
        h = h.mul(2).round()  # many ties
    value, index = top_k(h, k)
    assert torch.equal(value.sort(1, descending=True).values, h.topk(k, 1).values)
    assert torch.equal(h.gather(1, index), value)
    assert all(len(set(row)) == k for row in index.tolist())


@pytest.mark.parametrize("m", [6144, 6143, 4099, 1537])
def test_top_k_is_exact_at_real_widths(m: int) -> None:
    h = torch.randn(64, m, generator=torch.Generator().manual_seed(m))
    h[:, -1] = 9.0  # the columns that no group holds count too
    value, index = top_k(h, 32)
    assert torch.equal(value.sort(1, descending=True).values, h.topk(32, 1).values)
    assert bool((index == m - 1).any(1).all())


def test_all_winners_in_one_group_are_found() -> None:
    h = torch.zeros(3, 1024)
    groups = 1024 // round((1024 / 4) ** 0.5)
    h[:, 5::groups] = torch.arange(1.0, 1 + len(h[0, 5::groups]))
    value, _ = top_k(h, 4)
    assert torch.equal(value.sort(1, descending=True).values, h.topk(4, 1).values)


@pytest.mark.parametrize("n", [1, ROWS - 1, ROWS, 2 * ROWS + 7])
def test_chunking_changes_nothing(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, 8), (8, 50), (50,)))
    pre = x @ W + b
    dense = torch.zeros_like(pre).scatter(1, (top := pre.relu().topk(5)).indices, top.values)
    torch.testing.assert_close(encode_top_k(x, W, b, 5, Scratch()).dense(), dense)
    codes = encode_above(x, W, b, Scratch())
    assert codes is not None
    torch.testing.assert_close(codes.dense(), pre.relu())
    assert len(codes) == n


def test_dense_batches_are_turned_away_from_the_sparse_path() -> None:
    x, W = torch.randn(40, 8), torch.randn(8, 50)
    assert encode_above(x, W, torch.full((50,), 9.0), Scratch(), below=SPARSE_BELOW) is None
    assert encode_above(x, W, torch.full((50,), -99.0), Scratch(), below=SPARSE_BELOW) is not None


@pytest.mark.parametrize("n", [1, 63, 64, 65, 64 + ROWS, 64 + ROWS + 1])
def test_looking_at_the_first_rows_loses_none(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, 8), (8, 50)))
    b = torch.full((50,), -7.0).double()
    codes = encode_above(x, W, b, Scratch(), below=SPARSE_BELOW)
    assert codes is not None
    torch.testing.assert_close(codes.dense(), (x @ W + b).relu())


def test_no_vectors_have_no_codes() -> None:
    codes = encode_above(torch.zeros(0, 8), torch.randn(8, 50), torch.zeros(50), Scratch())
    assert codes is not None
    assert codes.dense().shape == (0, 50)


def test_a_dense_step_forgets_what_gradients_held() -> None:
    sae, x = ReLU(ReLUConfig(d_in=12, d_sae=90), torch.Generator().manual_seed(0)), torch.randn(70, 12)
    sae.backward(x, Progress(0, 1))
    first = [p.grad.clone() for p in sae.parameters() if p.grad is not None]
    for p in sae.parameters():
        assert p.grad is not None
        p.grad.fill_(float("nan"))
    sae.backward(x, Progress(0, 1))
    assert all(torch.equal(p.grad, before) for p, before in zip(sae.parameters(), first, strict=True) if p.grad is not None)


@pytest.mark.parametrize("shift", [0.0, -1.2, -2.5, -99.0])
@pytest.mark.parametrize("n", [30, ROWS + 300, DENSE_ROWS + 300])
def test_relu_gradients_agree_on_both_sides_of_the_switch(shift: float, n: int) -> None:
    sae = ReLU(ReLUConfig(d_in=12, d_sae=90, sparsity_coeff=0.4), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        sae.b_enc.add_(shift)
        sae.b_dec.normal_()
    x, progress = torch.randn(n, 12, dtype=torch.float64), Progress(700, 1000)
    sae.backward(x, progress)
    ours = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    sae.backward_autograd(x, progress)
    for name, p in sae.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-9, atol=1e-11)


def test_float32_gradients_stay_near_float64() -> None:
    cfg = TopKConfig(d_in=64, d_sae=1000, k=16)
    single, x = TopK(cfg, torch.Generator().manual_seed(0)), torch.randn(1500, 64, generator=torch.Generator().manual_seed(1))
    double = copy.deepcopy(single).double()
    single.backward(x, Progress(0, 1))
    double.backward(x.double(), Progress(0, 1))
    for (name, p), (_, q) in zip(single.named_parameters(), double.named_parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert float((p.grad - q.grad).abs().max() / q.grad.abs().max()) < 5e-5, name


def test_a_step_repeats_to_the_last_bit() -> None:
    x = torch.randn(1500, 64, generator=torch.Generator().manual_seed(1))
    runs = []
    for _ in range(3):
        sae = TopK(TopKConfig(d_in=64, d_sae=1000, k=16), torch.Generator().manual_seed(0))
        sae.backward(x.clone(), Progress(0, 1, torch.arange(1000) < 80))
        runs.append([p.grad for p in sae.parameters()])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True) if a is not None and b is not None)


def test_a_workspace_gives_the_same_memory_again() -> None:
    work, like = Scratch(), torch.zeros(1)
    first = work.get("a", (4, 5), like)
    assert work.get("a", (2, 3), like).data_ptr() == first.data_ptr()
    assert work.get("b", (2, 3), like).data_ptr() != first.data_ptr()
    assert work.get("a", (2, 3), like.double()).dtype == torch.float64


def test_threads_may_ask_one_sae_at_once() -> None:
    sae = TopK(TopKConfig(d_in=64, d_sae=3000, k=16), torch.Generator().manual_seed(0))
    inputs = [torch.randn(900, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    alone = [sae.codes(x).dense() for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = [codes.dense() for codes in pool.map(sae.codes, inputs)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_empty_codes_decode_to_the_bias() -> None:
    codes = Codes.from_dense(torch.zeros(3, 10))
    torch.testing.assert_close(codes.decode(torch.ones(10, 4), torch.arange(4.0)), torch.arange(4.0).expand(3, 4))
