"""No step of an attack copies to its device in a way that waits for it, or reads from it.

The meta device stands in for a GPU: its tensors hold no data, so that reading one is an error, and
copies to it are seen as the operator that makes them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dori_fast as df
from dori_fast.attack import Dori
from dori_fast.attack.dori import _Embeddings
from tests.attack.test_attack_on_a_gpu import KINDS, PROMPTS, view

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Notes who copies from the CPU to the meta device, and whether that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.safe = 0
        self.waiting: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        if op.name() in ("aten::_to_copy", "aten::copy_"):
            source = args[op.name() == "aten::copy_"]
            if source.device.type == "cpu" and result.device == META:
                self._note(bool(kwargs.get("non_blocking")))
        return result

    def _note(self, non_blocking: bool) -> None:
        frame = sys._getframe()
        while "/dori_fast/" not in frame.f_code.co_filename:
            assert frame.f_back is not None
            frame = frame.f_back
        name = frame.f_code.co_name
        if non_blocking or name == "to_device":
            self.safe += 1
        else:
            self.waiting.add(f"{Path(frame.f_code.co_filename).name}: {name}")


def on_meta(directory: Path) -> tuple[Any, Any]:
    """A model whose network is on the meta device, and embeddings of the prompts."""
    model = df.load(directory, device="cpu", batch_size=8)
    condition = model.encode(PROMPTS)
    model.unet.to(META)
    model.device = META
    return model, condition


def stepped(model: Any, condition: Any, kind: str) -> Copies:
    """The copies of two steps: four draws for each of three images, in batches of 8."""
    pooled = None if condition.pooled is None else condition.pooled.to(META)
    start, latents = condition.embeddings.to(META), torch.zeros(3, *model.latent_shape, device=META)
    method, seen = Dori(steps=2, draws=4), view(model, kind)
    state = _Embeddings(method, seen, latents, start, pooled, [0, 1, 2], None)
    with Copies() as copies:
        for step in range(2):
            state.update(step)
    return copies


@pytest.mark.parametrize("xl", [False, True], ids=["sd", "sdxl"])
def test_every_copy_of_a_step_waits_for_nothing(
    tiny_directory: Path, tiny_sdxl_directory: Path, xl: bool
) -> None:
    model, condition = on_meta(tiny_sdxl_directory if xl else tiny_directory)
    for kind in KINDS[:1] if xl else KINDS:
        copies = stepped(model, condition, kind)
        assert copies.waiting == set(), kind
        # draws, indices, noise levels and timesteps of two batches in two steps
        assert copies.safe >= 2 + 2 * 2 * 5


def test_a_plain_copy_is_seen(tiny_directory: Path, monkeypatch: Any) -> None:
    from dori_fast.models.engine import engine

    def plainly(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        return tensor.to(device)

    model, condition = on_meta(tiny_directory)
    monkeypatch.setattr(engine, "to_device", plainly)
    assert stepped(model, condition, "plain").waiting == {
        "engine.py: _prefix",
        "engine.py: _text_part",
    }
