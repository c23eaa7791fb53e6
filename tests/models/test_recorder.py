from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from dori_fast.errors import UsageError
from dori_fast.models import StatsRecorder, linear_layers
from dori_fast.ops import ActivationStats, activation_stats


class Network(nn.Module):
    """Two linear layers, one of them called twice, and something that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(6, 4)
        self.block = nn.ModuleDict({"to_v": nn.Linear(4, 4, bias=False), "norm": nn.LayerNorm(4)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.block["norm"](self.entry(x))
        return self.block["to_v"](input=self.block["to_v"](h))


@pytest.fixture
def network() -> Network:
    return Network().eval()


@pytest.fixture
def batches() -> list[Tensor]:
    return [torch.randn(size, 5, 6) for size in (3, 1, 4)]


def assert_same(found: ActivationStats, expected: ActivationStats) -> None:
    assert found.count == expected.count
    for name in ("mean", "m2", "abs_mean", "abs_max", "sum_sq"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_outputs_of_all_batches_count_once(network: Network, batches: list[Tensor]) -> None:
    with StatsRecorder(network) as recorder:
        for batch in batches:
            network(batch)
    network(batches[0])
    assert set(recorder.stats) == {"entry", "block.to_v"}
    entered = torch.cat(batches)
    assert_same(recorder.stats["entry"], activation_stats(network.entry(entered)))
    h = network.block["norm"](network.entry(entered))
    first = network.block["to_v"](h)
    twice = torch.cat([first, network.block["to_v"](first)])
    assert_same(recorder.stats["block.to_v"], activation_stats(twice))


def test_inputs_are_recorded_by_position_and_by_keyword(
    network: Network, batches: list[Tensor]
) -> None:
    with StatsRecorder(network, ["block.to_v"], side="input") as recorder:
        network(batches[0])
    h = network.block["norm"](network.entry(batches[0]))
    both = torch.cat([h, network.block["to_v"](h)])
    assert_same(recorder.stats["block.to_v"], activation_stats(both))


def test_a_recorder_goes_on_where_it_was_left(network: Network, batches: list[Tensor]) -> None:
    recorder = StatsRecorder(network, ["entry"])
    for batch in batches:
        with recorder:
            network(batch)
    assert_same(recorder.stats["entry"], activation_stats(network.entry(torch.cat(batches))))


def test_one_magnitude_per_prompt_as_nemo_counts_it(network: Network) -> None:
    prompts = torch.randn(9, 7, 6)
    with StatsRecorder(network, ["entry"], transform=lambda x: x.abs().mean(-2)) as recorder:
        for batch in prompts.split(4):
            network.entry(batch)
    magnitudes = network.entry(prompts).abs().mean(1).double()
    found = recorder.stats["entry"]
    assert found.count == 9
    torch.testing.assert_close(found.mean, magnitudes.mean(0))
    torch.testing.assert_close(found.std(), magnitudes.std(0), rtol=1e-6, atol=1e-6)


def test_an_adapter_counts_with_its_layer(network: Network, batches: list[Tensor]) -> None:
    before = network.entry(batches[0])
    config = LoraConfig(r=2, target_modules=["entry"], init_lora_weights=False)
    adapted = inject_adapter_in_model(config, network)
    assert type(adapted.entry) is not nn.Linear
    assert set(linear_layers(adapted)) == {"entry", "block.to_v"}
    with (
        StatsRecorder(adapted, ["entry"]) as outputs,
        StatsRecorder(adapted, ["entry"], side="input") as inputs,
    ):
        adapted(batches[0])
    assert_same(outputs.stats["entry"], activation_stats(adapted.entry(batches[0])))
    assert_same(inputs.stats["entry"], activation_stats(batches[0]))
    assert (outputs.stats["entry"].mean - activation_stats(before).mean).abs().max() > 1e-3


def test_a_single_layer_is_a_network(batches: list[Tensor]) -> None:
    layer = nn.Linear(6, 2)
    with StatsRecorder(layer) as recorder:
        layer(batches[0])
    assert_same(recorder.stats[""], activation_stats(layer(batches[0])))


def test_recording_changes_neither_outputs_nor_gradients(
    network: Network, batches: list[Tensor]
) -> None:
    x = batches[0].requires_grad_()
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    with StatsRecorder(network) as recorder:
        (found,) = torch.autograd.grad(network(x).sum(), x)
    assert torch.equal(found, expected)
    assert not recorder.stats["entry"].mean.requires_grad


def test_an_exception_removes_the_hooks(network: Network) -> None:
    recorder = StatsRecorder(network)
    with pytest.raises(RuntimeError), recorder:
        network(torch.ones(2, 7))
    network(torch.ones(2, 6))
    assert recorder.stats == {}


def test_what_cannot_be_recorded_is_named(network: Network) -> None:
    with pytest.raises(UsageError, match=r"'block.norm' is not a linear layer of Network; .* 2$"):
        StatsRecorder(network, ["entry", "block.norm"])
    with pytest.raises(UsageError, match="side must be input or output, got 'both'"):
        StatsRecorder(network, side="both")
    recorder = StatsRecorder(network)
    with recorder, pytest.raises(UsageError, match="already entered"), recorder:
        pass
