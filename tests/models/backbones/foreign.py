"""Ways to hang code on a UNet, and the test that its scores are those of the network as it is."""

from __future__ import annotations

import functools

import torch
from diffusers.models.attention_processor import AttnProcessor2_0

import dori_fast as df

PROMPTS = ["a key", "the portrait of an astronaut", ""]
WEN = df.detect.Wen(seeds=2)
CROSS = "mid_block.attentions.0.transformer_blocks.0.attn2"


def score(pipe, **options):
    return WEN.score(df.load(pipe, batch_size=4, **options), PROMPTS)


def require_true(pipe, reason):
    """The default path gives the network's own scores, and says why it runs whole, if it does."""
    model = df.load(pipe, batch_size=4)
    found, true = WEN.score(model, PROMPTS), score(pipe, share=False)
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)
    assert (model.engine.not_shared is None) if reason is None else model.engine.not_shared
    assert reason is None or reason in model.engine.not_shared
    return true


def bent(output):
    """Another output, which no norm makes equal again."""
    if isinstance(output, tuple):
        return (bent(output[0]), *output[1:])
    return output + output.sin()


def first(unet, kind):
    return next(m for m in unet.modules() if type(m).__name__ == kind)


def on_the_instance(module):
    before = module.forward
    module.forward = lambda *args, **options: bent(before(*args, **options))


def on_the_instance_wrapped(module):
    before = module.forward

    @functools.wraps(before)
    def forward(*args, **options):
        return bent(before(*args, **options))

    module.forward = forward


def by_a_partial(module):
    def forward(before, *args, **options):
        return bent(before(*args, **options))

    module.forward = functools.partial(forward, module.forward)


def by_a_subclass(module):
    kind = type(module)

    class Other(kind):
        def forward(self, *args, **options):
            return bent(super().forward(*args, **options))

    # as token merging does
    Other.__name__, Other.__qualname__, Other.__module__ = (
        kind.__name__,
        kind.__qualname__,
        kind.__module__,
    )
    module.__class__ = Other


def by_a_hook(module):
    module.register_forward_hook(lambda module, args, output: bent(output))


WAYS = [on_the_instance, on_the_instance_wrapped, by_a_partial, by_a_subclass, by_a_hook]


class Mine(AttnProcessor2_0):
    def __call__(self, attn, hidden_states, *args, **options):
        return bent(super().__call__(attn, hidden_states, *args, **options))


def lora(unet, scale=1.0, name="a", targets=("to_q", "to_k", "to_v", "to_out.0", "conv1")):
    from peft import LoraConfig

    torch.manual_seed(1)
    unet.add_adapter(LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False), name)
    unet.set_adapters([name], [scale])
