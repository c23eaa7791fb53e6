"""The stage program against diffusers' own forward, for random small UNets of each family."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from dori_fast.models.backbones.unet.objections import refusal
from dori_fast.models.backbones.unet.program import Program

SMALL = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
FAMILIES = {
    "sd1": {},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 4, 4)},
    "deep-transformers": {"transformer_layers_per_block": (1, 2, 3)},
    "one-layer": {"layers_per_block": 1},
    "text-last": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "odd-size": {"sample_size": 13},
}


def small_unet(dtype=torch.float64, **overrides):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**(SMALL | overrides))
    for parameter in unet.parameters():
        # norms and biases start at 1 and 0, where mistakes would not show
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim == 1 else None
    return unet.to(dtype).eval().requires_grad_(False)


def shared_forward(unet, latents, text, timestep):
    """[P, S, C, H, W], everything shared: the prefix per latent, keys and values per prompt."""
    program = Program(unet)
    prompts, seeds = text.shape[0], latents.shape[0]
    state = program.prefix(latents, timestep).take(torch.arange(seeds).repeat(prompts))
    rows = torch.arange(prompts).repeat_interleave(seeds)
    part = program.text_part(text, None).take(rows)
    return program.suffix(state, part, timestep).unflatten(0, (prompts, seeds))


def plain_forward(unet, latents, text, timestep):
    return torch.stack(
        [
            torch.cat([unet(x[None], torch.tensor(timestep), c[None]).sample for x in latents])
            for c in text
        ]
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_sharing_is_exact(family, dtype, tolerance):
    unet = small_unet(dtype, **FAMILIES[family])
    assert refusal(unet) is None
    side = unet.config.sample_size
    latents = torch.randn(3, 4, side, side, dtype=dtype)
    text = torch.randn(2, 7, 24, dtype=dtype)
    expected = plain_forward(unet, latents, text, 961)
    actual = shared_forward(unet, latents, text, 961)
    assert (actual - expected).norm() <= tolerance * expected.norm()
    # nothing of the first timestep is kept for the second
    other = shared_forward(unet, latents, text, 21)
    assert (other - plain_forward(unet, latents, text, 21)).norm() <= tolerance * other.norm()


def test_lora_layers_are_called_as_they_are():
    peft = pytest.importorskip("peft")
    unet = small_unet()
    unet.add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"])
    )
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    unet = unet.double().eval().requires_grad_(False)
    latents, text = torch.randn(2, 4, 16, 16).double(), torch.randn(2, 7, 24).double()
    expected = plain_forward(unet, latents, text, 500)
    actual = shared_forward(unet, latents, text, 500)
    assert (actual - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"only_cross_attention": True}, "only_cross_attention is True"),
        ({"resnet_time_scale_shift": "scale_shift"}, "time_embedding_norm is 'scale_shift'"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid block"),
        ({"dual_cross_attention": True}, "DualTransformer2DModel"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"mid_block_scale_factor": 2.0}, "output_scale_factor is 2.0"),
    ],
)
def test_what_it_does_not_know_is_refused(overrides, reason):
    assert reason in refusal(small_unet(**overrides))


def test_what_hangs_on_the_model_is_refused():
    unet = small_unet()
    handle = unet.down_blocks[0].attentions[0].register_forward_hook(lambda *_: None)
    assert "has forward hooks" in refusal(unet)
    handle.remove()
    assert refusal(unet) is None
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    assert refusal(unet) == "FreeU is on"


def test_flops_of_stable_diffusion_1_4():
    """4 seeds a prompt: the peers' 8 evaluations and 2 text encodings are 6.45 TFLOP."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
        ).eval()
    assert refusal(unet) is None
    program, prompts, seeds = Program(unet), 2, 4

    def count(run):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 1e12

    latents = torch.empty(seeds, 4, 64, 64, device="meta")
    state = program.prefix(latents, 981)
    text = torch.empty(prompts, 77, 768, device="meta")
    rows = torch.arange(prompts, device="meta").repeat_interleave(seeds)

    def shared():
        part = program.text_part(text, None).take(rows)
        program.suffix(state.take(rows), part, 981)

    def plain():
        unet(latents, torch.tensor(981, device="meta"), text[:1].expand(seeds, -1, -1))

    text_encoder = 13.30e-3
    ours = count(shared) / prompts + text_encoder
    peers = 2 * count(plain) + 2 * text_encoder
    assert 6.44 < peers < 6.46
    assert ours <= 3.02, f"{ours:.3f} TFLOP per prompt"
