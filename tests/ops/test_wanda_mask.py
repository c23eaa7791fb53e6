from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dori_fast.ops import pack_mask, prune_, restore_, unpack_mask, wanda_mask
from dori_fast.reference.wanda_mask import wanda_mask_reference
from dori_fast.testing import with_layout
from tests.ops.contract import DEVICE, DTYPES, backends_of, check_threads

BACKENDS = backends_of("wanda_mask")
KERNELS = [backend for backend in BACKENDS if backend != "reference"]


def layer(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Weights, and norms on target and base prompts."""
    weight = torch.randn(rows, columns).to(DEVICE, dtype)
    return weight, torch.rand(columns, device=DEVICE), torch.rand(columns, device=DEVICE)


def peers_mask(weight: Tensor, target: Tensor, base: Tensor, ratio: float) -> Tensor:
    """Chavhan et al.'s selection: a full sort of the scores of every row."""
    scores, base_scores = weight.abs() * target, weight.abs() * base
    chosen = torch.sort(scores, dim=1, descending=True)[1][:, : int(ratio * scores.shape[1])]
    return torch.zeros_like(weight).scatter_(1, chosen, 1).bool() & (scores > base_scores)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_a_loop_in_plain_python(backend: str) -> None:
    weight, target, base = layer(4, 12)
    weight[:, 3:6] = weight[:, 2:3]
    target[3:6] = target[2]
    mask = wanda_mask(weight, target, 0.5, base_act_norm=base, backend=backend).tolist()
    for o in range(4):
        scores = [abs(weight[o, i].item()) * target[i].item() for i in range(12)]
        order = sorted(range(12), key=lambda i: (-scores[i], i))
        for i in range(12):
            assert mask[o][i] == (i in order[:6] and target[i].item() > base[i].item())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", (0.01, 0.1, 0.37))
def test_equals_the_released_code_where_scores_differ(backend: str, ratio: float) -> None:
    weight, target, base = layer(7, 640)
    mask = wanda_mask(weight, target, ratio, base_act_norm=base, backend=backend)
    assert torch.equal(mask, peers_mask(weight, target, base, ratio))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("sparsity", "columns", "count"),
    [(0.29, 100, 28), (0.01, 99, 0), (0.01, 5120, 51), (1.0, 7, 7), (0.0, 7, 0), (0.999, 7, 6)],
)
def test_share_of_a_row_is_rounded_down(
    backend: str, sparsity: float, columns: int, count: int
) -> None:
    weight, target, _ = layer(2, columns)
    mask = wanda_mask(weight, target, sparsity, backend=backend)
    assert mask.sum(1).tolist() == [count, count]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_equal_scores_the_lowest_columns_count(backend: str, dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.0, -1, 1, -1, 1, 3, 1, 0, -0.0, 0]], dtype=dtype, device=DEVICE)
    norm = torch.ones(10, device=DEVICE)
    for share, columns in ((0.1, [5]), (0.4, [0, 1, 2, 5]), (0.8, [0, 1, 2, 3, 4, 5, 6, 7])):
        mask = wanda_mask(weight, norm, share, backend=backend)
        assert mask[0].nonzero().flatten().tolist() == columns


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_ranks_first_but_exceeds_no_base(backend: str, dtype: torch.dtype) -> None:
    nan, inf = float("nan"), float("inf")
    weight = torch.tensor([[1.0, -inf, nan, 2, -nan, inf, 0, 3]], dtype=dtype, device=DEVICE)
    norm, base = torch.ones(8, device=DEVICE), torch.full((8,), 0.5, device=DEVICE)
    for count, columns in ((1, [2]), (2, [2, 4]), (3, [1, 2, 4]), (5, [1, 2, 4, 5, 7])):
        mask = wanda_mask(weight, norm, count / 8, backend=backend)
        assert mask[0].nonzero().flatten().tolist() == columns
    mask = wanda_mask(weight, norm, 5 / 8, base_act_norm=base, backend=backend)
    assert mask[0].nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_base_must_be_exceeded(backend: str) -> None:
    weight, target, _ = layer(3, 70)
    everything = wanda_mask(weight, target, 1.0, base_act_norm=target * 0.99, backend=backend)
    assert everything.all()
    assert not wanda_mask(weight, target, 1.0, base_act_norm=target, backend=backend).any()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_the_others(backend: str, dtype: torch.dtype) -> None:
    weight, target, base = layer(9, 131, dtype)
    mask = wanda_mask(weight, target, 0.2, base_act_norm=base, backend=backend)
    order = torch.randperm(9, device=DEVICE)
    again = wanda_mask(weight[order], target, 0.2, base_act_norm=base, backend=backend)
    assert torch.equal(again, mask[order])
    assert torch.equal(wanda_mask(weight[4:5], target, 0.2, backend=backend)[0] & mask[4], mask[4])


@pytest.mark.parametrize("threads", (1, 2, 5))
def test_threads_do_not_change_a_bit(threads: int) -> None:
    weight, target, base = layer(300, 257)
    check_threads(lambda: (wanda_mask(weight, target, 0.1, base_act_norm=base),), threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm_dtype", DTYPES, ids=str)
def test_any_floating_norm(backend: str, norm_dtype: torch.dtype) -> None:
    weight, target, base = layer(3, 90)
    target, base = target.to(norm_dtype), base.to(norm_dtype)
    mask = wanda_mask(weight, target, 0.2, base_act_norm=base, backend=backend)
    assert torch.equal(mask, peers_mask(weight, target.float(), base.float(), 0.2))


def agrees_with_the_reference(backend: str, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 300))
    dtype = data.draw(st.sampled_from(DTYPES))
    layout = data.draw(st.sampled_from(["contiguous", "offset", "sliced", "transposed"]))
    share = data.draw(st.floats(0, 1))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    steps = data.draw(st.sampled_from([1, 4, 1000]))
    weight = (torch.randn(rows, columns) * steps).round().div(steps).to(DEVICE, dtype)
    target, base = (torch.rand(columns, device=DEVICE).mul(8).round() for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mask = wanda_mask(
        with_layout(weight, layout), target, share, base_act_norm=base, backend=backend
    )
    count = int(share * columns)
    assert torch.equal(mask, wanda_mask_reference(weight, target.to(wide), base.to(wide), count))


@settings(deadline=None, max_examples=20)
@given(data=st.data())
@pytest.mark.parametrize("backend", KERNELS)
def test_any_shape(backend: str, data: st.DataObject) -> None:
    agrees_with_the_reference(backend, data)


@pytest.mark.nightly
@settings(deadline=None, max_examples=200)
@given(data=st.data())
@pytest.mark.parametrize("backend", KERNELS)
def test_any_of_many_shapes(backend: str, data: st.DataObject) -> None:
    agrees_with_the_reference(backend, data)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 5), columns=st.integers(0, 40), seed=st.integers(0, 99))
def test_packed_masks_are_exact_and_unite(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.rand(rows, columns, generator=generator) < 0.4 for _ in range(2))
    packed = pack_mask(one.to(DEVICE))
    assert packed.dtype == torch.uint8 and packed.shape == (rows, (columns + 7) // 8)
    assert torch.equal(unpack_mask(packed, columns).cpu(), one)
    both = packed | pack_mask(other.to(DEVICE))
    assert torch.equal(unpack_mask(both, columns).cpu(), one | other)


def test_bits_of_a_packed_mask() -> None:
    mask = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 1, 0, 1]], dtype=torch.bool)
    assert pack_mask(mask).tolist() == [[0b10000001, 0b10]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pruning_is_undone_bit_for_bit(dtype: torch.dtype) -> None:
    weight = layer(6, 50, dtype)[0].requires_grad_()
    with torch.no_grad():
        weight[0, 0], weight[1, 1], weight[2, 2] = float("nan"), float("inf"), -0.0
    mask = torch.rand(6, 50, device=DEVICE) < 0.3
    mask[range(3), range(3)] = True
    before = weight.detach().clone()
    removed = prune_(weight, mask)
    assert weight[mask].eq(0).all() and torch.equal(weight[~mask], before[~mask])
    restore_(weight, mask, removed)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(weight.detach().view(integer), before.view(integer))


def test_wrong_arguments_are_named() -> None:
    weight, norm, _ = layer(3, 5)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^wanda_mask: weight must be \[O, I\], got \[5\]$"):
        wanda_mask(weight[0], norm, 0.1)
    with pytest.raises(ValueError, match=r"act_norm must be \[5\] for weight \[3, 5\], got \[3\]"):
        wanda_mask(weight, norm[:3], 0.1)
    with pytest.raises(ValueError, match="base_act_norm must be float32, .*, got int64"):
        wanda_mask(weight, norm, 0.1, base_act_norm=torch.ones(5, dtype=torch.int64))
    for sparsity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"wanda_mask: sparsity must be in \[0, 1\], got"):
            wanda_mask(weight, norm, sparsity)
    with pytest.raises(TypeError, match="wanda_mask: act_norm must be a tensor, got list"):
        wanda_mask(weight, [1.0] * 5, 0.1)
    with pytest.raises(ValueError, match=r"^pack_mask: mask must be bool \[O, I\]"):
        pack_mask(weight)
    with pytest.raises(ValueError, match=r"packed must be uint8 \[O, 2\] for 9 columns, got"):
        unpack_mask(pack_mask(mask), 9)
    with pytest.raises(ValueError, match=r"^prune_: mask must be bool \[3, 5\], as weight is, got"):
        prune_(weight, mask[:2])
    with pytest.raises(ValueError, match=r"removed must be torch.float32 \[0\], one value per"):
        restore_(weight, mask, torch.zeros(1))


def test_the_operator_itself_refuses_what_would_read_beyond_memory() -> None:
    op = torch.ops.dori.wanda_mask
    with pytest.raises(RuntimeError, match=r"act_norm must be \[I\] of weight \[O, I\]"):
        op(torch.zeros(2, 3), torch.zeros(2), None, 1)
    with pytest.raises(RuntimeError, match=r"count must be in \[0, 3\], got 4"):
        op(torch.zeros(2, 3), torch.zeros(3), None, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_over_a_million_weights_are_whole_or_refused(backend: str) -> None:
    columns = 2**20 + 1
    weight, norms = torch.zeros(1, columns, device=DEVICE), torch.ones(columns, device=DEVICE)
    weight[0, -1] = 1
    if backend == "triton":
        with pytest.raises(ValueError, match=r"at most 1048576 weights.*'reference'"):
            wanda_mask(weight, norms, 1.5 / columns, backend=backend)
        return
    mask = wanda_mask(weight, norms, 1.5 / columns, backend=backend)
    assert mask.nonzero().tolist() == [[0, columns - 1]]
