"""A snapshot notices changes of code, structure and weights, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dori_fast.models.engine.snapshot import Snapshot


class Layer(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.scales = {"a": 1.0}
        self.table = torch.zeros(3)

    def gate(self) -> float:
        return 1.0


def network() -> nn.Sequential:
    return nn.Sequential(Layer(), nn.Sequential(nn.LayerNorm(2), nn.Dropout()))


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "a method": lambda n: setattr(n[0], "forward", lambda x: x),
    "a class": lambda n: setattr(n[0], "__class__", nn.Linear),
    "a child": lambda n: n[1].append(nn.Identity()),
    "another child": lambda n: n.__setitem__(0, Layer()),
    "a hook": lambda n: n[1][0].register_forward_hook(lambda *_: None),
    "a mode": lambda n: n[1][1].eval(),
    "an attribute": lambda n: setattr(n[1][0], "eps", 0.5),
    "a dictionary": lambda n: n[0].scales.update(a=0.5),
    "a tensor that is no buffer": lambda n: setattr(n[0], "table", torch.ones(3)),
}
WRITES: dict[str, Callable[[nn.Sequential], object]] = {
    "in place": lambda n: nn.init.ones_(n[0].weight),
    "another": lambda n: setattr(n[0], "weight", nn.Parameter(torch.ones(2, 2))),
    "a state": lambda n: n.load_state_dict(n.state_dict()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_noticed(what: str) -> None:
    found = network()
    snapshot = Snapshot(found)
    found(torch.rand(1, 2))
    assert not snapshot.changed() and not snapshot.written()
    CHANGES[what](found)
    assert snapshot.changed()
    assert not Snapshot(found).changed()


@pytest.mark.parametrize("what", WRITES)
def test_a_write_to_weights_is_noticed_once(what: str) -> None:
    found = network()
    snapshot = Snapshot(found)
    WRITES[what](found)
    assert not snapshot.changed()
    assert snapshot.written() and not snapshot.written()


def test_a_patched_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(network())
    with monkeypatch.context() as patch:
        patch.setattr(Layer, "gate", lambda self: 2.0)
        assert snapshot.changed()
    assert not snapshot.changed()
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: x)
    assert snapshot.changed()


def test_what_is_undone_is_no_change() -> None:
    found = network()
    snapshot = Snapshot(found)
    found[0].register_forward_hook(lambda *_: None).remove()
    found.eval().train()
    assert not snapshot.changed()


def test_what_is_no_module_never_changes() -> None:
    snapshot = Snapshot(None)
    assert not snapshot.changed() and not snapshot.written()
