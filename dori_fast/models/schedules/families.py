"""Schedulers of diffusers by the noise that they describe, and the meaning of their options.

Every name is listed: a class that another release adds is refused until it is read and listed.
"""

from __future__ import annotations

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""Outputs of a network under a variance-preserving schedule."""

SPACINGS = ("leading", "linspace", "trailing")
"""Placements of a run's timesteps (Lin et al., 2024, arXiv 2305.08891, table 2)."""

SUPPORTED = (
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
"""Samplers of diffusers whose noise is given by DDPM's betas."""

STANDS_IN = {"DPMSolverSDEScheduler": "KDPM2AncestralDiscreteScheduler"}
"""Class with the same betas and defaults as one that diffusers imports with torchsde only."""

# diffusers replaces a last cumulative alpha of 0 by 2**-24 here, so that the first sigma is finite
NUDGED = 2.0**-24

_EDM = (
    "EDM's noise (sigma_data), where the network sees a scaled input and predicts a mixture of"
    " noise and sample"
)
_FLOW = "flow matching, where the network predicts the velocity between noise and image"
_DISTILLED = (
    "a sampler of distilled weights, whose unconditional prediction means nothing after"
    " distillation"
)
_TOKENS = "discrete tokens"
_EXPLODING = "variance-exploding noise"
_SHIFTED = "DDPM's betas with a shifted signal-to-noise ratio"

REFUSED = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "consistency models, which predict the image in one step",
    "CogVideoXDDIMScheduler": _SHIFTED,
    "CogVideoXDPMScheduler": _SHIFTED,
    "ConsistencyDecoderScheduler": "consistency models, which predict the image in one step",
    "CosineDPMSolverMultistepScheduler": _EDM,
    "DDPMWuerstchenScheduler": "a cosine schedule over continuous time",
    "DiscreteDDIMScheduler": _TOKENS,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "EDMEulerScheduler": _EDM,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": _FLOW,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": f"{_FLOW}, in distilled weights",
    "HeliosDMDScheduler": f"{_FLOW}, in distilled weights",
    "HeliosScheduler": _FLOW,
    "IPNDMScheduler": "a cosine schedule over continuous time",
    "KarrasVeScheduler": _EXPLODING,
    "LCMScheduler": _DISTILLED,
    "LTXEulerAncestralRFScheduler": _FLOW,
    "MiniMaxH3Scheduler": _FLOW,
    "PiflowScheduler": _FLOW,
    "RFD4ProteinaScheduler": "protein structures",
    "RePaintScheduler": "inpainting of a given image",
    "SCMScheduler": "consistency models in trigonometric flow",
    "ScoreSdeVeScheduler": _EXPLODING,
    "ScoreSdeVpScheduler": "score matching over continuous time",
    "TCDScheduler": _DISTILLED,
    "UnCLIPScheduler": "unCLIP's prior and decoder, whose condition is an image embedding",
    "VQDiffusionScheduler": _TOKENS,
}
"""Schedulers of diffusers that do not describe DDPM's noise, and what they describe instead."""

DISTILLED = ("LCMScheduler", "TCDScheduler")

SETS_OFFSET_TO_ONE = (
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPAGImg2ImgPipeline",
    "StableDiffusionPAGInpaintPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionPipeline",
)
"""Pipelines whose constructor sets the scheduler's ``steps_offset`` to 1."""

FOREIGN = {
    "sigma_data": _EDM,
    "sigma_schedule": _EDM,
    "shift": _FLOW,
    "base_shift": _FLOW,
    "max_shift": _FLOW,
    "base_image_seq_len": _FLOW,
    "max_image_seq_len": _FLOW,
    "snr_shift_scale": _SHIFTED,
}
"""Options that schedulers of other noise leave in a config that ``from_config`` made of theirs."""

FROM_DISTILLED = ("original_inference_steps", "timestep_scaling")
"""Options that schedulers of distilled weights leave behind in the same way."""

SAMPLER_SIGMAS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
)
"""Options that place a sampler's steps elsewhere; the noise stays that of the betas."""

CLIPPING = ("clip_sample", "thresholding")
"""Options that clip the predicted sample in every step."""

NEUTRAL = (
    *SAMPLER_SIGMAS,
    *CLIPPING,
    *FROM_DISTILLED,
    "algorithm_type",
    "clip_sample_range",
    "corrector_order",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "noise_sampler_seed",
    "predict_x0",
    "predictor_order",
    "sample_max_value",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "tau_func",
    "time_shift_type",
    # written by releases of diffusers before 0.9
    "tensor_format",
    "timestep_values",
)
"""Options of samplers that change neither the noise nor the meaning of the network's output."""
