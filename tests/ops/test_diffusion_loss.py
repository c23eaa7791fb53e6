from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dori_fast.ops import add_noise, diffusion_loss
from dori_fast.reference.diffusion_loss import diffusion_loss_reference
from tests.ops.contract import (
    DEVICE,
    DTYPES,
    SPECS,
    backends_of,
    check_threads,
    draw_and_check,
)

BACKENDS = backends_of("diffusion_loss")
KERNELS = [backend for backend in BACKENDS if backend != "reference"]
OPS = ("add_noise", "diffusion_loss", "diffusion_loss_bwd")


def draws(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(shape).to(DEVICE, dtype), torch.randn(shape).to(DEVICE, dtype)


def problems(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Clean latents, noise [P, B, *], and cumulative alphas."""
    x0, eps = torch.randn(shape[0], *shape[2:]), torch.randn(shape)
    return x0.to(DEVICE, dtype), eps.to(DEVICE, dtype), torch.rand(shape[:2], device=DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_equals_a_loop_in_plain_python(backend: str) -> None:
    x0, eps, alpha_bar = problems(2, 3, 2, 2, dtype=torch.float64)
    x_t = add_noise(x0, eps, alpha_bar, backend=backend)
    for p in range(2):
        for b in range(3):
            a = alpha_bar[p, b].item()
            for i in range(2):
                for j in range(2):
                    signal, noise = a**0.5 * x0[p, i, j].item(), (1 - a) ** 0.5
                    expected = signal + noise * eps[p, b, i, j].item()
                    assert x_t[p, b, i, j].item() == pytest.approx(expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_equals_the_scheduler_of_diffusers(backend: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear")
    x0, eps, _ = problems(3, 4, 4, 8, 8)
    timesteps = torch.randint(0, 1000, (3, 4))
    repeated = x0.cpu()[:, None].expand(3, 4, 4, 8, 8).flatten(0, 1)
    expected = scheduler.add_noise(repeated, eps.cpu().flatten(0, 1), timesteps.flatten())
    alpha_bar = scheduler.alphas_cumprod[timesteps].to(DEVICE)
    x_t = add_noise(x0, eps, alpha_bar, backend=backend)
    torch.testing.assert_close(x_t.cpu().flatten(0, 1), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_noise_and_nothing_but_noise(backend: str, dtype: torch.dtype) -> None:
    x0, eps, alpha_bar = problems(2, 2, 4, 9, dtype=dtype)
    alpha_bar[:, 0], alpha_bar[:, 1] = 1, 0
    x_t = add_noise(x0, eps, alpha_bar, backend=backend)
    assert torch.equal(x_t[:, 0], x0) and torch.equal(x_t[:, 1], eps[:, 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_has_gradients(backend: str) -> None:
    x0, eps, alpha_bar = problems(2, 3, 2, 2, dtype=torch.float64)
    inputs = (x0.requires_grad_(), eps.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda a, b: add_noise(a, b, alpha_bar, backend=backend), inputs
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_is_the_mean_squared_error_of_each_problem(backend: str, dtype: torch.dtype) -> None:
    eps_pred, eps = draws(3, 4, 4, 5, 7, dtype=dtype)
    loss = diffusion_loss(eps_pred, eps, backend=backend)
    for p in range(3):
        expected = F.mse_loss(eps_pred[p].double(), eps[p].double()).item()
        assert loss[p].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_has_gradients(backend: str) -> None:
    inputs = tuple(x.requires_grad_() for x in draws(2, 3, 2, 5, dtype=torch.float64))
    call = lambda a, b: diffusion_loss(a, b, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_equal_those_of_the_reference(backend: str, dtype: torch.dtype) -> None:
    eps_pred, eps = (x.requires_grad_() for x in draws(3, 2, 4, 50, dtype=dtype))
    weights = torch.randn(3, device=DEVICE)
    grads, expected = (
        torch.autograd.grad((loss * weights).sum(), (eps_pred, eps))
        for loss in (
            diffusion_loss(eps_pred, eps, backend=backend),
            diffusion_loss_reference(eps_pred, eps),
        )
    )
    for grad, other in zip(grads, expected, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_problem_does_not_depend_on_the_others(backend: str, dtype: torch.dtype) -> None:
    eps_pred, eps = draws(5, 3, 4, 1100, dtype=dtype)
    loss = diffusion_loss(eps_pred, eps, backend=backend)
    order = torch.tensor([3, 0, 4, 1, 2], device=DEVICE)
    assert torch.equal(diffusion_loss(eps_pred[order], eps[order], backend=backend), loss[order])
    assert torch.equal(diffusion_loss(eps_pred[2:3], eps[2:3], backend=backend), loss[2:3])
    alone = eps_pred[2:3].clone().requires_grad_()
    together = eps_pred.clone().requires_grad_()
    diffusion_loss(alone, eps[2:3], backend=backend).sum().backward()
    diffusion_loss(together, eps, backend=backend).sum().backward()
    assert torch.equal(alone.grad, together.grad[2:3])


@pytest.mark.parametrize("threads", (1, 2, 5))
def test_threads_do_not_change_a_bit(threads: int) -> None:
    eps_pred, eps = draws(7, 5, 4, 1100)
    x0, _, alpha_bar = problems(7, 5, 4, 1100)
    check_threads(lambda: (diffusion_loss(eps_pred, eps), add_noise(x0, eps, alpha_bar)), threads)


@pytest.mark.parametrize("backend", KERNELS)
def test_error_does_not_grow_with_the_length(backend: str) -> None:
    eps_pred, eps = draws(1, 1, 300_000)
    exact = diffusion_loss_reference(eps_pred.double(), eps.double())
    loss = diffusion_loss(eps_pred, eps, backend=backend)
    assert ((loss - exact) / exact).abs().item() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mean_of_nothing_is_nan(backend: str) -> None:
    for shape in ((2, 0, 4), (2, 3, 0)):
        eps_pred, eps = (x.requires_grad_() for x in draws(*shape))
        loss = diffusion_loss(eps_pred, eps, backend=backend)
        assert loss.shape == (2,) and loss.isnan().all()
        loss.sum().backward()
        assert eps_pred.grad.shape == shape
    assert diffusion_loss(*draws(0, 3, 4), backend=backend).shape == (0,)


def agrees_with_the_oracle(backend: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(OPS))
    shape = [data.draw(st.integers(0, 4)) for _ in range(2)]
    shape += data.draw(st.lists(st.integers(1, 20), max_size=3))
    draw_and_check(SPECS[name], backend, shape, data)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
@pytest.mark.parametrize("backend", KERNELS)
def test_any_shape(backend: str, data: st.DataObject) -> None:
    agrees_with_the_oracle(backend, data)


@pytest.mark.nightly
@settings(deadline=None, max_examples=400)
@given(data=st.data())
@pytest.mark.parametrize("backend", KERNELS)
def test_any_of_many_shapes(backend: str, data: st.DataObject) -> None:
    agrees_with_the_oracle(backend, data)


def test_wrong_arguments_are_named() -> None:
    x0, eps, alpha_bar = problems(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"x0 must be \[2, 4, 5\] for eps \[2, 3, 4, 5\], got"):
        add_noise(x0[:1], eps, alpha_bar)
    with pytest.raises(ValueError, match=r"alpha_bar must be \[2, 3\] for eps .*, got \[3, 2\]"):
        add_noise(x0, eps, alpha_bar.T)
    with pytest.raises(ValueError, match="x0 must be of eps's dtype torch.float32"):
        add_noise(x0.half(), eps, alpha_bar)
    with pytest.raises(ValueError, match=r"^add_noise: eps must be \[P, B, \*\], got \[2\]$"):
        add_noise(x0, eps[:, 0, 0, 0], alpha_bar)
    with pytest.raises(ValueError, match="alpha_bar must be without gradient"):
        add_noise(x0, eps, alpha_bar.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"^diffusion_loss: eps must be .*, as eps_pred is, got"):
        diffusion_loss(eps, eps[:, :2])
    with pytest.raises(TypeError, match="diffusion_loss: eps must be a tensor, got float"):
        diffusion_loss(eps, 1.0)
