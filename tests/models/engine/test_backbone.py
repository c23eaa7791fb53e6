"""The engine on a backbone that is no UNet: batches, padding and refusals need no architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models import NeuronMask, SharedLatents
from dori_fast.models.engine.batch import all_pairs
from dori_fast.models.engine.engine import Engine
from dori_fast.models.engine.execution import Execution
from dori_fast.models.text.conditions import TextCondition


class Toy:
    """A network that adds the mean of the text and the timestep to the latents."""

    network: Any = None
    borrowed = False
    device, dtype = torch.device("cpu"), torch.float64
    parameters, channels_last, not_shared = 51_000_000, False, "a toy"
    image_size, latent_shape, text_width = (16, 16), (1, 2, 2), 3
    head_sizes: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.batches: list[int] = []

    def require_text(self, width: int, pooled: bool) -> None:
        """Accept any text."""

    def program(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("a network that runs whole has no program")

    def whole(self, latents: Tensor, timestep: Any, text: Tensor, pooled: Tensor | None) -> Tensor:
        self.batches.append(len(latents))
        return latents + text.mean((1, 2))[:, None, None, None] + timestep

    def zeros(self, samples: int) -> tuple[Tensor, Tensor, None]:
        return torch.zeros(samples, *self.latent_shape), torch.zeros(samples, 1, 3), None

    def copy(self) -> Toy:
        return Toy()


def engine(batch_size: int | str = 4) -> tuple[Engine, Toy]:
    toy = Toy()
    return Engine(toy, batch_size, True, Execution()), toy


def test_a_network_without_stages_runs_whole_in_padded_batches() -> None:
    runs, toy = engine()
    condition = TextCondition.of(torch.rand(3, 5, 3, dtype=torch.float64))
    latents = torch.rand(2, *toy.latent_shape, dtype=torch.float64)
    found = runs.outputs(all_pairs(condition, runs.share(latents, 7), None))
    assert toy.batches == [4, 4] and runs.evaluations == 6
    expected = condition.embeddings.mean((1, 2))[:, None, None, None, None] + latents + 7
    torch.testing.assert_close(found, expected.flatten(0, 1))


def test_its_batch_size_follows_its_number_of_parameters() -> None:
    assert engine("auto")[0].batch_size == 4


def test_requests_that_need_stages_are_refused_with_the_reason() -> None:
    runs, toy = engine()
    condition = TextCondition.of(torch.rand(1, 5, 3, dtype=torch.float64))
    samples = all_pairs(condition, SharedLatents(torch.rand(1, 1, 2, 2), 7, None), None)
    requests = [
        lambda: runs.layers,
        lambda: runs.advance(samples, 0),
        lambda: runs.jvp(samples, torch.ones(1, 1, 2, 2)),
        lambda: runs.check_mask(NeuronMask({})),
    ]
    for request in requests:
        with pytest.raises(UsageError, match=r"layers of this model are not known \(a toy\)"):
            request()
