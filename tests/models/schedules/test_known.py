"""Schedulers that are read, and those that are refused."""

from __future__ import annotations

import ast
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, LCMScheduler

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.integrations.norms import NoiseNorms
from dori_fast.models.schedules import families
from dori_fast.models.schedules.known import known_schedule, schedule_of
from dori_fast.models.schedules.vp import Schedule

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def exported() -> dict[str, Any]:
    """Every scheduler of the installed diffusers, by name."""
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    return {name: getattr(diffusers, name) for name in names}


def made(kind: Any) -> Any:
    """A scheduler with its defaults, or numbers where it has none; None without its packages."""
    parameters = inspect.signature(kind.__init__).parameters
    needed = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name != "self"
    ]
    try:
        return kind(**dict.fromkeys(needed, 1))
    except (ImportError, ValueError):
        return None


def test_every_scheduler_of_diffusers_is_supported_or_refused() -> None:
    found = exported()
    assert set(families.SUPPORTED) <= set(found) and len(found) > 40
    for name, kind in found.items():
        scheduler = made(kind)
        if name in families.SUPPORTED:
            known = known_schedule(name, {})
            own = Schedule(known).alphas_cumprod
            if scheduler is not None:
                assert torch.equal(own, scheduler.alphas_cumprod.double()), name
                assert known == schedule_of(scheduler), name
            continue
        with pytest.raises(UsageError, match=f"{name}.*; "):
            known_schedule(name, {"_class_name": name})
        if scheduler is not None:
            with pytest.raises(UsageError, match=f"{name}.*; "):
                schedule_of(scheduler)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("EDMEulerScheduler", "sigma_data"),
        ("EDMDPMSolverMultistepScheduler", "sigma_data"),
        ("CosineDPMSolverMultistepScheduler", "sigma_data"),
        ("FlowMatchEulerDiscreteScheduler", "flow matching"),
        ("CMStochasticIterativeScheduler", "consistency"),
        ("SCMScheduler", "consistency"),
        ("LCMScheduler", "distilled weights.*DDIMScheduler.from_config"),
        ("TCDScheduler", "distilled weights.*DDIMScheduler.from_config"),
        ("UnCLIPScheduler", "unCLIP"),
        ("CogVideoXDDIMScheduler", "shifted"),
        ("IPNDMScheduler", "continuous time"),
        ("A1111Scheduler", "not known"),
        ("../evil", "not known"),
        ("StableDiffusionPipeline", "not known"),
        (None, "names no class"),
        (["DDIMScheduler"], "names no class"),
        ("", "names no class"),
    ],
)
def test_a_refusal_says_what_the_class_is_for(name: object, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        known_schedule(name, BETAS)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"prediction_type": None}, "prediction_type None"),
        ({"prediction_type": ["epsilon"]}, "prediction_type"),
        ({"use_flow_sigmas": True}, "flow matching"),
        ({"use_dynamic_shifting": True}, "flow matching"),
        ({"shift": 3.0}, "shift, an option of flow matching"),
        ({"sigma_data": 0.5, "sigma_max": 80.0}, "sigma_data, an option of EDM"),
        ({"snr_shift_scale": 3.0}, "snr_shift_scale"),
        ({"timestep_type": "continuous"}, "EDM's sigma"),
        ({"variance_type": "learned_range"}, "variance"),
        ({"predict_epsilon": False}, "predict_epsilon"),
        ({"beta_schedule": "cosine"}, "cosine"),
        ({"beta_schedule": 1}, "beta_schedule must be"),
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"beta_start": "0.00085"}, "beta_start must be"),
        ({"beta_start": float("nan")}, "beta_start must be"),
        ({"beta_end": 12}, "beta_end must be"),
        ({"beta_end": None}, "beta_end must be"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps must be"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be"),
        ({"num_train_timesteps": True}, "num_train_timesteps must be"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps must be"),
        ({"trained_betas": [0.1, 0.2]}, "2 trained_betas, but num_train_timesteps is 1000"),
        ({"trained_betas": "betas.npy"}, "trained_betas must be"),
        ({"trained_betas": [1.5] * 1000}, "trained_betas must be"),
        ({"trained_betas": [0.0] * 1000}, "do not fall"),
        ({"timestep_spacing": "karras"}, "timestep_spacing must be"),
        ({"timestep_spacing": None}, "timestep_spacing must be"),
        ({"steps_offset": -1}, "steps_offset must be"),
        ({"steps_offset": 0.5}, "steps_offset must be"),
        ({"rescale_betas_zero_snr": "false"}, "rescale_betas_zero_snr must be"),
        ({"set_alpha_to_one": 1}, "set_alpha_to_one must be"),
        ({"clip_sample": "no"}, "clip_sample must be"),
        ({"auto_map": {"x": "y"}}, "'auto_map', which is not an option"),
        ({"noise": "pyramid"}, "'noise', which is not an option"),
        ({"rescale_betas_zero_snr": True}, "epsilon says nothing about the image"),
    ],
)
def test_an_option_that_is_not_known_or_not_valid_is_refused(
    change: dict[str, Any], what: str
) -> None:
    with pytest.raises(UsageError, match=what) as error:
        known_schedule("DDIMScheduler", BETAS | change)
    assert str(error.value).startswith("load: DDIMScheduler: ") and "; " in str(error.value)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_zero_terminal_snr_of_an_epsilon_prediction_is_refused_for_every_sampler(name: str) -> None:
    scheduler = getattr(diffusers, name)(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == families.NUDGED
    with pytest.raises(UsageError, match="epsilon says nothing"):
        schedule_of(scheduler)
    # what the sampler puts in place of the 0 is not part of the schedule
    known = known_schedule(name, {"rescale_betas_zero_snr": True, "prediction_type": "sample"})
    assert Schedule(known).alphas_cumprod[-1] == 0.0
    # betas that end at 1 are the same
    betas = torch.linspace(0.001, 1.0, 1000).tolist()
    with pytest.raises(UsageError, match="epsilon says nothing"):
        known_schedule("DDIMScheduler", {"trained_betas": betas})


def test_options_that_do_not_change_the_noise_change_nothing_but_notes() -> None:
    plain = known_schedule("DPMSolverMultistepScheduler", BETAS)
    options = {
        "_diffusers_version": "0.6.0",
        "_use_default_values": ["beta_start", "timestep_spacing"],
        "use_karras_sigmas": True,
        "solver_order": 3,
        "algorithm_type": "sde-dpmsolver++",
        "lambda_min_clipped": -float("inf"),
        "skip_prk_steps": True,
        "tensor_format": "pt",
        "predict_epsilon": True,
        "thresholding": True,
    }
    known = known_schedule("DPMSolverMultistepScheduler", BETAS | options)
    assert known.ddim == plain.ddim
    assert set(known.notes) - set(plain.notes) == {
        "use_karras_sigmas is not used",
        "thresholding is not used",
    }


def test_notes_name_readings_that_are_not_literal() -> None:
    def notes(name: str, pipeline: str = "", **config: Any) -> str:
        return "\n".join(known_schedule(name, BETAS | config, pipeline=pipeline).notes)

    quiet = {"clip_sample": False, "steps_offset": 1}
    assert notes("DDIMScheduler", **quiet) == ""
    assert notes("PNDMScheduler", steps_offset=1) == ""
    assert "Turbo" in notes("EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    swapped = dict(
        DDIMScheduler.from_config(LCMScheduler(original_inference_steps=50).config).config
    )
    assert "distilled weights (LCM, TCD)" in notes("DDIMScheduler", **swapped)
    assert "no timestep_spacing" in notes("DPMSolverSinglestepScheduler")
    assert "ignores it" in notes("PNDMScheduler", rescale_betas_zero_snr=True)
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    assert "alpha is 0" in notes("DDIMScheduler", timestep_spacing="trailing", **zero)
    assert "steps_offset is 1" in notes("DDIMScheduler", "StableDiffusionPipeline")
    assert "steps_offset" not in notes("DDIMScheduler", "StableDiffusionXLPipeline")


@pytest.mark.parametrize("name", families.SETS_OFFSET_TO_ONE)
def test_the_listed_pipelines_set_the_offset(name: str) -> None:
    source = inspect.getsource(getattr(diffusers, name).__init__)
    assert 'new_config["steps_offset"] = 1' in source
    assert known_schedule("DDIMScheduler", {}, pipeline=name).ddim["steps_offset"] == 1


def test_a_stand_in_has_the_options_of_the_class_that_needs_torchsde() -> None:
    spec = find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "schedulers/scheduling_dpmsolver_sde.py"
    kinds = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    kind = next(node for node in kinds if node.name == "DPMSolverSDEScheduler")
    init = next(n for n in kind.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    names = [argument.arg for argument in init.args.args[1:]]
    defaults = dict(zip(names, map(ast.literal_eval, init.args.defaults), strict=True))
    assert defaults.pop("noise_sampler_seed") is None
    stand_in = getattr(diffusers, families.STANDS_IN["DPMSolverSDEScheduler"])
    parameters = inspect.signature(stand_in.__init__).parameters
    assert defaults == {name: p.default for name, p in parameters.items() if name != "self"}


class Scheduler(DDIMScheduler):
    """A subclass of the user's, which could do anything."""


def replaced() -> Any:
    scheduler = EulerDiscreteScheduler(**BETAS)
    scheduler.scale_model_input = lambda sample, timestep: sample
    return scheduler


def rescaled() -> Any:
    scheduler = DDPMScheduler(**BETAS)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**1.1
    return scheduler


def described_otherwise() -> Any:
    scheduler = DDIMScheduler(**BETAS)
    scheduler.register_to_config(beta_end=0.013)
    return scheduler


def ended_otherwise() -> Any:
    scheduler = DDIMScheduler(**BETAS, set_alpha_to_one=False)
    scheduler.final_alpha_cumprod = torch.tensor(1.0)
    return scheduler


@pytest.mark.parametrize(
    ("scheduler", "what"),
    [
        (lambda: Scheduler(**BETAS), "test_known.Scheduler, which is not a class of diffusers"),
        (object, "builtins.object, which is not a class of diffusers"),
        (lambda: None, "NoneType, which is not a class of diffusers"),
        (replaced, "scale_model_input was replaced"),
        (rescaled, "alphas_cumprod is not that of its config"),
        (described_otherwise, "alphas_cumprod is not that of its config"),
        (ended_otherwise, "final_alpha_cumprod is not that of its config"),
    ],
)
def test_a_scheduler_that_is_not_what_its_config_says_is_refused(scheduler: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        schedule_of(scheduler())


def test_numbers_of_numpy_are_numbers() -> None:
    betas = np.linspace(0.001, 0.02, 1000, dtype=np.float32)
    scheduler = DDIMScheduler(trained_betas=betas, num_train_timesteps=np.int64(1000))
    found = Schedule(schedule_of(scheduler)).alphas_cumprod
    assert torch.equal(found, scheduler.alphas_cumprod.double())


def test_a_pipeline_and_its_directory_are_refused_alike(tiny_directory: Path) -> None:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True)
    for name in ("EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "TCDScheduler"):
        pipe.scheduler = getattr(diffusers, name)()
        with pytest.raises(UsageError, match=name):
            df.load(pipe)
        norms = NoiseNorms()
        norms.add(torch.ones(2, 4, 8, 8), 999)
        with pytest.raises(UsageError, match=f"noise_norms: {name}"):
            norms.finish(pipe.scheduler)
