from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dori_fast.ops import EmbeddingState, embedding_step
from tests.ops.contract import (
    DEVICE,
    DTYPES,
    SPECS,
    backends_of,
    check_threads,
    draw_and_check,
)
from tests.ops.pairwise import cover

BACKENDS = backends_of("embedding_step")
KERNELS = [backend for backend in BACKENDS if backend != "reference"]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def embeddings(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


@pytest.mark.parametrize(
    ("backend", "dtype", "weight_decay"), cover(BACKENDS, list(TOLERANCE), (0.0, 0.01)), ids=str
)
def test_equals_an_optimizer_of_torch_for_each_problem(
    backend: str, dtype: torch.dtype, weight_decay: float
) -> None:
    """Problems are inactive at different steps, so their step counts drift apart."""
    optimizer = torch.optim.AdamW if weight_decay else torch.optim.Adam
    params = embeddings(4, 5, 33, dtype=dtype)
    single = [torch.nn.Parameter(p.clone()) for p in params]
    optimizers = [optimizer([p], lr=0.1, weight_decay=weight_decay) for p in single]
    state = EmbeddingState.zeros_like(params)
    for step in range(12):
        grad = embeddings(4, 5, 33, dtype=dtype) * 0.01
        active = torch.arange(4) * (step % 3) % 2 == 0
        for p in active.nonzero().flatten().tolist():
            single[p].grad = grad[p]
            optimizers[p].step()
        rates = {"lr": 0.1, "weight_decay": weight_decay}
        embedding_step(params, grad, state, active=active.to(DEVICE), backend=backend, **rates)
    assert len(set(state.step.tolist())) > 1
    expected = torch.stack([p.detach() for p in single])
    torch.testing.assert_close(params, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("backend", "dtype", "per_problem"), cover(BACKENDS, DTYPES, (False, True)), ids=str
)
def test_frozen_tokens_do_not_change(backend: str, dtype: torch.dtype, per_problem: bool) -> None:
    params = embeddings(3, 6, 40, dtype=dtype)
    before, free = params.clone(), params.clone()
    frozen = torch.zeros(3, 6, dtype=torch.bool, device=DEVICE)
    frozen[:, 0] = True
    if per_problem:
        frozen[1, 2:4] = True
    state, free_state = EmbeddingState.zeros_like(params), EmbeddingState.zeros_like(params)
    for _ in range(3):
        grad = embeddings(3, 6, 40, dtype=dtype)
        mask = frozen if per_problem else frozen[0]
        rates = {"lr": 0.1, "weight_decay": 0.1, "backend": backend}
        embedding_step(params, grad, state, frozen_tokens=mask, **rates)
        embedding_step(free, grad, free_state, **rates)
    assert torch.equal(params[frozen], before[frozen])
    assert state.exp_avg[frozen].eq(0).all() and state.exp_avg_sq[frozen].eq(0).all()
    assert torch.equal(params[~frozen], free[~frozen])
    assert params[~frozen].ne(before[~frozen]).any(-1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_problem_that_stands_still_is_not_touched(backend: str) -> None:
    params = embeddings(3, 2, 20)
    state = EmbeddingState.zeros_like(params)
    embedding_step(params, embeddings(3, 2, 20), state, lr=0.1, backend=backend)
    before = [x.clone() for x in (params, state.exp_avg, state.exp_avg_sq, state.step)]
    grad = embeddings(3, 2, 20)
    grad[1] = float("nan")
    active = torch.tensor([True, False, True], device=DEVICE)
    embedding_step(params, grad, state, lr=0.1, active=active, backend=backend)
    after = [params, state.exp_avg, state.exp_avg_sq, state.step]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[1], old[1])
        assert new[::2].ne(old[::2]).all() and not new[::2].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_flags_and_counts_may_be_columns_of_a_matrix(backend: str) -> None:
    """One GPU kernel once read both as if they were contiguous: other problems moved."""
    params, grad = embeddings(4, 2, 16), embeddings(4, 2, 16)
    before = params.clone()
    flags = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.bool, device=DEVICE)
    counts = torch.tensor([[0, 10**6]] * 4, device=DEVICE)
    state = dataclasses.replace(EmbeddingState.zeros_like(params), step=counts[:, 0])
    embedding_step(params, grad, state, lr=0.1, active=flags[:, 0], backend=backend)
    moved = (params - before).abs().amax((1, 2))
    torch.testing.assert_close(moved, 0.1 * flags[:, 0].float())
    assert counts.tolist() == [[1, 10**6], [0, 10**6], [1, 10**6], [0, 10**6]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_may_exceed_32_bits(backend: str) -> None:
    """Elements 2^30 apart: the third begins beyond 2^31. The memory between is never touched."""
    storage = torch.UntypedStorage(2 * (2**31 + 1), device=DEVICE)
    params = torch.empty(0, dtype=torch.float16, device=DEVICE)
    params.set_(storage, 0, (1, 1, 3), (0, 0, 2**30)).fill_(1.0)
    state = EmbeddingState.zeros_like(params)
    embedding_step(params, torch.ones_like(params), state, lr=0.5, backend=backend)
    assert params.tolist() == [[[0.5] * 3]]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_problem_does_not_depend_on_the_others(backend: str, dtype: torch.dtype) -> None:
    params, grad = embeddings(5, 3, 130, dtype=dtype), embeddings(5, 3, 130, dtype=dtype)
    alone, order = params[2:3].clone(), torch.tensor([3, 0, 4, 1, 2], device=DEVICE)
    shuffled = params[order]
    for x, g in ((params, grad), (alone, grad[2:3]), (shuffled, grad[order])):
        state = EmbeddingState.zeros_like(x)
        for _ in range(3):
            embedding_step(x, g, state, lr=0.1, backend=backend)
    assert torch.equal(alone, params[2:3])
    assert torch.equal(shuffled, params[order])


@pytest.mark.parametrize("threads", (1, 2, 5))
def test_threads_do_not_change_a_bit(threads: int) -> None:
    start, grad = embeddings(7, 77, 200), embeddings(7, 77, 200)

    def stepped() -> tuple[Tensor, ...]:
        params = start.clone()
        state = EmbeddingState.zeros_like(params)
        embedding_step(params, grad, state, lr=0.1)
        return params, state.exp_avg, state.exp_avg_sq

    check_threads(stepped, threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_narrow_params_have_wide_moments(backend: str, dtype: torch.dtype) -> None:
    params = embeddings(2, 3, 30, dtype=dtype)
    wide = params.float()
    states = EmbeddingState.zeros_like(params), EmbeddingState.zeros_like(wide)
    assert states[0].exp_avg.dtype == torch.float32
    grad = embeddings(2, 3, 30, dtype=dtype)
    embedding_step(params, grad, states[0], lr=0.1, backend=backend)
    embedding_step(wide, grad.float(), states[1], lr=0.1, backend=backend)
    # Triton's interpreter does not round to the nearest bfloat16.
    torch.testing.assert_close(params, wide.to(dtype))
    assert torch.equal(states[0].exp_avg_sq, states[1].exp_avg_sq)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_learns_of_the_change(backend: str) -> None:
    params = embeddings(2, 3, 4).requires_grad_()
    kept = (params * params).sum()
    embedding_step(
        params, torch.ones_like(params), EmbeddingState.zeros_like(params), lr=0.1, backend=backend
    )
    assert params.requires_grad and params.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


@pytest.mark.parametrize("backend", KERNELS)
def test_minimizes_what_it_is_given_the_gradient_of(backend: str) -> None:
    goal = embeddings(3, 2, 8)
    params = torch.zeros_like(goal)
    state = EmbeddingState.zeros_like(params)
    for _ in range(150):
        embedding_step(params, params - goal, state, lr=0.1, backend=backend)
    torch.testing.assert_close(params, goal, atol=1e-2, rtol=0)


def agrees_with_the_oracle(backend: str, data: st.DataObject) -> None:
    size = [data.draw(st.integers(0, high)) for high in (4, 5, 70, 1, 2)]
    draw_and_check(SPECS["embedding_step"], backend, size, data)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
@pytest.mark.parametrize("backend", KERNELS)
def test_any_shape(backend: str, data: st.DataObject) -> None:
    agrees_with_the_oracle(backend, data)


@pytest.mark.nightly
@settings(deadline=None, max_examples=200)
@given(data=st.data())
@pytest.mark.parametrize("backend", KERNELS)
def test_any_of_many_shapes(backend: str, data: st.DataObject) -> None:
    agrees_with_the_oracle(backend, data)


def test_wrong_arguments_are_named() -> None:
    params = embeddings(2, 3, 4)
    state = EmbeddingState.zeros_like(params)
    step = lambda *a, **k: embedding_step(*a, **{"lr": 0.1, **k})  # noqa: E731
    with pytest.raises(ValueError, match=r"^embedding_step: params must be \[P, T, D\], got"):
        step(params[0], params, state)
    with pytest.raises(ValueError, match=r"grad must be torch.float32 \[2, 3, 4\] for params, got"):
        step(params, params[:1], state)
    with pytest.raises(ValueError, match=r"state.exp_avg must be .*\[2, 3, 4\] for params, got"):
        step(params, params, EmbeddingState.zeros_like(params[:, :2]))
    with pytest.raises(ValueError, match="params must be free of repeated memory to be written"):
        step(params[:1].expand(2, 3, 4), params, state)
    for name in ("exp_avg", "exp_avg_sq", "step"):
        shared = getattr(state, name)
        repeated = dataclasses.replace(state, **{name: shared[:1].expand(shared.shape)})
        with pytest.raises(ValueError, match=f"state.{name} must be free of repeated memory"):
            step(params, params, repeated)
    with pytest.raises(ValueError, match=r"active must be bool \[2\], got torch.int64 \[2\]"):
        step(params, params, state, active=torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"frozen_tokens must be bool \[3\] or \[2, 3\], got"):
        step(params, params, state, frozen_tokens=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="lr must be 0 or more, got -1"):
        step(params, params, state, lr=-1)
    with pytest.raises(ValueError, match=r"betas must be two numbers in \[0, 1\), got"):
        step(params, params, state, betas=(0.9, 1.0))
    with pytest.raises(TypeError, match="grad must be a tensor, got NoneType"):
        step(params, None, state)


def test_the_operator_itself_refuses_what_would_write_beyond_memory() -> None:
    op = torch.ops.dori.embedding_step
    params, step = torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64)
    rest = (None, None, 0.1, 0.9, 0.999, 1e-8, 0.0)
    with pytest.raises(RuntimeError, match="exp_avg must have the shape of params"):
        op(params, params.clone(), torch.zeros(2, 3, 3), params.clone(), step, *rest)
    with pytest.raises(RuntimeError, match=r"step must be \[P\] of params"):
        op(params, params.clone(), params.clone(), params.clone(), step[:1], *rest)
