"""The functions that share a pass with `noise_difference`: the guided step, and the cosine."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dori_fast.models.schedules.vp import ddim_step
from dori_fast.ops import noise_cosine, noise_difference, noise_difference_step
from dori_fast.reference import all_specs
from dori_fast.testing import check_backend, map_tensors, with_layout
from tests.ops.contract import DEVICE, DTYPES, backends_of

BACKENDS = backends_of("noise_difference_step")
KERNELS = [backend for backend in BACKENDS if backend != "reference"]
SPECS = [spec for spec in all_specs() if spec.name in ("noise_difference_step", "noise_cosine")]
STEP = {"guidance": 7.5, "alpha_bar": 0.0058, "alpha_bar_prev": 0.0068}


def predictions(
    *shape: int, dtype: torch.dtype = torch.float32, shared: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """With text, without text, and the latents that both are of."""
    cond, latents = torch.randn(shape), torch.randn(shape)
    uncond = torch.randn(shape[1:] if shared else shape)
    return cond.to(DEVICE, dtype), uncond.to(DEVICE, dtype), latents.to(DEVICE, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_norm_is_that_of_noise_difference(backend: str, dtype: torch.dtype) -> None:
    cond, uncond, latents = predictions(3, 2, 4, 2100, dtype=dtype)
    norm, _ = noise_difference_step(cond, uncond, latents, **STEP, backend=backend)
    assert torch.equal(norm, noise_difference(cond, uncond, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", (True, False))
def test_the_step_is_that_of_the_formulas(backend: str, shared: bool) -> None:
    cond, uncond, latents = predictions(3, 2, 4, 9, dtype=torch.float64, shared=shared)
    _, latents_prev = noise_difference_step(cond, uncond, latents, **STEP, backend=backend)
    guided = uncond + 7.5 * (cond - uncond)
    torch.testing.assert_close(latents_prev, ddim_step(guided, latents, 0.0058, 0.0068))


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_follow_the_scheduler_of_diffusers(backend: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps.tolist()
    alphas = [*scheduler.alphas_cumprod[timesteps].tolist(), float(scheduler.final_alpha_cumprod)]
    _, _, latents = predictions(2, 2, 4, 8, 8)
    expected = latents.cpu().flatten(0, 1)
    for t, alpha_bar, alpha_bar_prev in zip(timesteps, alphas, alphas[1:], strict=False):
        cond, uncond, _ = predictions(2, 2, 4, 8, 8)
        guided = (uncond + 3.0 * (cond - uncond)).cpu().flatten(0, 1)
        expected = scheduler.step(guided, t, expected).prev_sample
        numbers = {"guidance": 3.0, "alpha_bar": alpha_bar, "alpha_bar_prev": alpha_bar_prev}
        _, latents = noise_difference_step(cond, uncond, latents, **numbers, backend=backend)
    torch.testing.assert_close(latents.cpu().flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_to_the_same_timestep_stays_where_it_is(backend: str) -> None:
    cond, uncond, latents = predictions(2, 2, 4, 9)
    same = {"guidance": 7.5, "alpha_bar": 0.3, "alpha_bar_prev": 0.3}
    _, latents_prev = noise_difference_step(cond, uncond, latents, **same, backend=backend)
    torch.testing.assert_close(latents_prev, latents)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_batch(backend: str, dtype: torch.dtype) -> None:
    cond, uncond, latents = predictions(5, 3, 4, 1100, dtype=dtype)

    def both(rows: object) -> tuple[Tensor, Tensor, Tensor]:
        step = noise_difference_step(cond[rows], uncond, latents[rows], **STEP, backend=backend)
        return (*step, noise_cosine(cond[rows], uncond, backend=backend))

    everything = both(slice(None))
    for rows in (torch.tensor([3, 0, 4, 1, 2], device=DEVICE), slice(2, 3)):
        for part, whole in zip(both(rows), everything, strict=True):
            assert torch.equal(part, whole[rows])


@pytest.mark.parametrize("backend", KERNELS)
def test_what_prompts_share_may_be_expanded(backend: str) -> None:
    cond, uncond, latents = predictions(3, 2, 4, 70)
    shared, repeated = latents[:1].expand_as(cond), latents[:1].repeat(3, 1, 1, 1)
    one = noise_difference_step(cond, uncond, shared, **STEP, backend=backend)
    wide = uncond.expand_as(cond).contiguous()
    other = noise_difference_step(cond, wide, repeated, **STEP, backend=backend)
    assert all(map(torch.equal, one, other))
    cosine = noise_cosine(cond, uncond, backend=backend)
    assert torch.equal(cosine, noise_cosine(cond, wide, backend=backend))


@pytest.mark.parametrize("threads", (1, 2, 5))
def test_threads_do_not_change_a_bit(threads: int) -> None:
    cond, uncond, latents = predictions(7, 3, 4, 1100)
    before = torch.get_num_threads()
    expected = (*noise_difference_step(cond, uncond, latents, **STEP), noise_cosine(cond, uncond))
    try:
        torch.set_num_threads(threads)
        step = noise_difference_step(cond, uncond, latents, **STEP)
        assert all(map(torch.equal, (*step, noise_cosine(cond, uncond)), expected))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosine_equals_that_of_torch(backend: str, dtype: torch.dtype) -> None:
    cond, uncond, _ = predictions(3, 2, 4, 6, 7, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    difference = cond.to(wide) - uncond.to(wide)
    expected = F.cosine_similarity(uncond.to(wide).expand_as(difference), difference, dim=2)
    cosine = noise_cosine(cond, uncond, backend=backend)
    torch.testing.assert_close(cosine, expected.mean((-2, -1)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_cosines_that_are_known(backend: str) -> None:
    _, uncond, _ = predictions(1, 2, 4, 300)
    for factor, expected in ((3.0, 1.0), (0.25, -1.0), (1.0, 0.0)):
        cosine = noise_cosine(factor * uncond[None], uncond, backend=backend)
        torch.testing.assert_close(cosine, torch.full((1, 2), expected, device=DEVICE))


def agrees_with_the_oracle(backend: str, data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(SPECS))
    shape = (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    shape += tuple(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=3)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    inputs = spec.make_inputs(shape, data.draw(st.sampled_from(DTYPES)), DEVICE, generator)
    layout = data.draw(st.sampled_from(["contiguous", "offset", "sliced", "transposed"]))
    check_backend(spec, backend, map_tensors(lambda x: with_layout(x, layout), inputs))


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
    cond, uncond, latents = predictions(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"latents must be \[2, 3, 4, 5\], as eps_cond is, got"):
        noise_difference_step(cond, uncond, latents[0], **STEP)
    with pytest.raises(ValueError, match="latents must be of eps_cond's dtype torch.float32"):
        noise_difference_step(cond, uncond, latents.half(), **STEP)
    with pytest.raises(ValueError, match=r"alpha_bar must be in \(0, 1\], got 0"):
        noise_difference_step(cond, uncond, latents, **{**STEP, "alpha_bar": 0.0})
    with pytest.raises(ValueError, match=r"alpha_bar_prev must be in \[0, 1\], got 1.5"):
        noise_difference_step(cond, uncond, latents, **{**STEP, "alpha_bar_prev": 1.5})
    with pytest.raises(ValueError, match=r"^noise_cosine: eps_cond must be \[P, S, C, \*\], got"):
        noise_cosine(cond[:, :, 0, 0], uncond[:, 0, 0])
    with pytest.raises(ValueError, match=r"^noise_cosine: eps_uncond must be \[3, 4, 5\] or"):
        noise_cosine(cond, uncond[:2])


def test_a_gradient_is_refused_and_not_lost() -> None:
    cond, uncond, latents = predictions(2, 3, 4, 5)
    cond.requires_grad_()
    with pytest.raises(ValueError, match="eps_cond must be without gradient"):
        noise_difference_step(cond, uncond, latents, **STEP)
    with pytest.raises(ValueError, match="eps_cond must be without gradient"):
        noise_cosine(cond, uncond)
    with torch.no_grad():
        noise_difference_step(cond, uncond, latents, **STEP)
        noise_cosine(cond, uncond)
