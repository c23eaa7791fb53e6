"""Adversarial tokens before the prompt: a weaker adversary, who can only type.

Zhang et al., "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To
Generate Unsafe Images ... For Now" (UnlearnDiffAtk, ECCV 2024, arXiv 2310.11868), for the loss that
:class:`dori_fast.attack.Dori` lowers over embeddings. Each of K tokens before the prompt is a point
u of the simplex over the vocabulary, starting at its center. A step draws a token from each u,
computes the loss of the prompt after those tokens, and passes the gradient of the drawn one-hot
vector to u (straight through, each entry clipped to -1..1):

    u <- project(Adam(u, clip(E dL/de) + weight_decay u)),

where E [V, D] are the encoder's token embeddings and e those of the drawn tokens. The result is
the most likely tokens. Released code (OPTML-Group/Diffusion-MU-Attack at 0eea64d): Adam at learning
rate 0.01, weight decay 0.1, K = 5 for nudity and 3 for styles and objects, up to 40 steps at each
of 50 timesteps in turn with one noise draw. Here timesteps and noises are those of the embedding
attack, so that both attacks have the same draws and budget. Special tokens cannot be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast._checks import accumulate_dtype, to_device
from dori_fast.attack.base import Attack, problems_of
from dori_fast.attack.draws import stream
from dori_fast.attack.progression import Progression
from dori_fast.attack.result import TokensResult
from dori_fast.attack.stopping import Stop
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser
from dori_fast.models.engine.gradients import fitted
from dori_fast.models.precision import fixed_precision
from dori_fast.models.prefixed import PrefixedPrompts
from dori_fast.models.text.prompts import list_of_str
from dori_fast.ops import EmbeddingState, embedding_step
from dori_fast.ops.simplex import capped_simplex_project as project


class Tokens(Attack):
    """The attack, on any number of images at once, for SD 1.x and 2.x.

    Args:
        tokens: number K of tokens before each prompt.
        weight_decay: Adam's weight decay, added to the gradient.

    The other arguments are those of :class:`dori_fast.attack.Attack`. Checkpoints are tokens.
    """

    name = "tokens"

    def __init__(
        self,
        steps: int = 50,
        lr: float = 0.01,
        draws: int = 8,
        *,
        tokens: int = 5,
        weight_decay: float = 0.1,
        objective: str = "epsilon",
        snr_cap: float = 5.0,
        seed: int = 0,
        checkpoints: Sequence[int] = (),
        stop: Stop | None = None,
        check_every: int = 10,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            steps,
            lr,
            draws,
            objective=objective,
            snr_cap=snr_cap,
            seed=seed,
            checkpoints=checkpoints,
            stop=stop,
            check_every=check_every,
            recompute=recompute,
        )
        if tokens < 1 or not weight_decay >= 0:
            raise UsageError("attack: tokens must be at least 1, weight_decay 0 or more")
        self.tokens, self.weight_decay = tokens, float(weight_decay)

    def config(self) -> dict[str, Any]:
        """Everything that the result depends on besides the model and the problems, as JSON."""
        return {**super().config(), "tokens": self.tokens, "weight_decay": self.weight_decay}

    def run(
        self,
        model: Denoiser,
        prompts: Sequence[str],
        images: Tensor | NDArray[np.uint8],
        *,
        ids: Sequence[int | str] | None = None,
    ) -> TokensResult:
        """Find K tokens to put before each of P prompts.

        The result of a problem depends on (model, image, prompt, seed, id) and on the batch shape
        of an evaluation (``model.batch_size``) alone: not on the other problems, nor on P; to the
        bit on a CPU only, as in :meth:`dori_fast.attack.Dori.run`.

        Args:
            model: the denoiser, plain or a masked view with one mask for all problems or one each.
            prompts: P prompts, the images' own or any others; ``""`` for none.
            images: uint8 [P, H, W, 3], of the model's own size.
            ids: the problems' names in the random streams; default 0..P-1.

        Raises:
            UsageError: numbers or sizes do not fit, or an SDXL model.
        """
        prompts = list_of_str("attack", prompts)
        latents, names = problems_of(model, images, ids)
        if len(prompts) != len(names):
            raise UsageError(f"attack: {len(names)} images but {len(prompts)} prompts")
        prefixed = PrefixedPrompts(model, prompts, self.tokens)
        state = _Choices(self, model, latents, names, prefixed)
        state.run()
        best = state.current()
        return TokensResult(
            tokens=best,
            ids=prefixed.ids(best),
            losses=state.losses,
            steps=state.adam.step,
            evaluations=state.evaluations,
            checkpoints={step: prefixed.ids(tokens) for step, tokens in state.kept.items()},
            config=self.config(),
            failures=state.failures(state.adam.step, state.choices),
        )


class _Choices(Progression):
    """The points of the simplex [P, K, V] being optimized."""

    def __init__(
        self,
        attack: Tokens,
        model: Denoiser,
        latents: Tensor,
        ids: Sequence[int | str],
        prefixed: PrefixedPrompts,
    ) -> None:
        super().__init__(attack, model, latents, ids)
        self.prefixed, self.weight_decay = prefixed, attack.weight_decay
        self.shape, wide = (len(ids), attack.tokens), accumulate_dtype(model.dtype)
        self.streams = [stream("tokens", attack.seed, problem) for problem in ids]
        center = prefixed.allowed.to(wide) / prefixed.allowed.sum()
        self.choices = center.expand(*self.shape, -1).clone()
        self.adam = EmbeddingState.zeros_like(self.choices)
        like = model.unconditional.unique
        self.leaf = like.new_zeros(self.shape[0], *like.shape[1:], dtype=wide).requires_grad_()

    def update(self, step: int) -> None:
        """One step; waits once for the drawn tokens, which the CPU puts into the prompts."""
        rows, k = self.rows, self.shape[1]
        uniform = torch.stack(
            [
                torch.rand(k, generator=self.streams[row], dtype=torch.float64)
                for row in self.running.tolist()
            ]
        )
        tokens = draw(self.choices[rows], to_device(uniform, self.choices.device))
        with torch.no_grad():
            self.leaf[rows] = self.prefixed.encode(self.running, tokens)[0].to(self.leaf.dtype)
        finite = self.backward(step, self.leaf, None)
        grad = torch.zeros_like(self.choices)
        grad[rows] = fitted(self.model.engine, lambda: self._through_the_encoder(tokens, rows))
        finite &= grad.isfinite().flatten(1).all(1)
        moves = self.active & finite
        grad = grad.clamp(-1, 1) + self.weight_decay * self.choices
        embedding_step(self.choices, grad, self.adam, lr=self.attack.lr, active=moves)
        nearest = project(self.choices.masked_fill(~self.prefixed.allowed, -torch.inf))
        self.choices = torch.where(moves[:, None, None], nearest, self.choices)

    @fixed_precision()
    def _through_the_encoder(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Gradients [A, K, V] of the one-hot choices, from those of the embeddings.

        The prompts are encoded again, a batch at a time: no graph waits for the UNet.
        """
        assert self.leaf.grad is not None  # noqa: S101
        outer = self.leaf.grad[rows]
        # scale by a power of two into the range of float16, and undo it afterwards (exact)
        exponent = torch.frexp(outer.flatten(1).abs().amax(1)).exponent
        factor = torch.ldexp(torch.ones_like(outer[:, 0, 0]), -exponent)[:, None, None]
        each = []
        size = self.model.batch_size
        for start in range(0, len(rows), size):
            some = slice(start, start + size)
            encoded, slots = self.prefixed.encode(self.running[some], tokens[some])
            slope = (outer * factor)[some].to(encoded.dtype)
            (inner,) = torch.autograd.grad(encoded, slots, slope)
            # one product per problem: the rounding of a product may depend on its size
            each += [problem @ self.prefixed.table.T for problem in inner]
        return torch.stack(each).to(factor.dtype) / factor

    def current(self) -> Tensor:
        """The most likely tokens int64 [P, K] on the CPU."""
        return self.choices.argmax(-1).cpu()

    @torch.no_grad()
    def embeddings(self) -> Tensor:
        return self.prefixed.encode(self.running, self.current()[self.running])[0]


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices int64 [*] drawn with probabilities ``weights`` [*, V], by numbers [*] in 0..1."""
    below = weights.double().cumsum(-1)
    at = (uniform.to(below) * below[..., -1]).unsqueeze(-1)
    found = torch.searchsorted(below, at, right=True).squeeze(-1)
    return found.clamp(max=weights.shape[-1] - 1)
