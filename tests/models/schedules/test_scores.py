"""Scores under every scheduler against a loop over diffusers' own objects."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline

import dori_fast as df
from dori_fast.models.schedules.families import PREDICTIONS, SUPPORTED
from dori_fast.models.schedules.known import known_schedule, schedule_of
from dori_fast.models.schedules.vp import Schedule
from tests.models.schedules import by_hand

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
# diffusers imports the class with torchsde only
IN_MEMORY = [name for name in SUPPORTED if name != "DPMSolverSDEScheduler"]
CLOSE = {"rtol": 2e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def directory(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose scheduler each test writes anew."""
    return Path(shutil.copytree(tiny_directory, tmp_path_factory.mktemp("schedules") / "model"))


@pytest.fixture(scope="module")
def pipe(tiny_directory: Path) -> Any:
    """A pipeline whose scheduler each test sets anew."""
    return opened(tiny_directory)


def opened(directory: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(directory, local_files_only=True)


def save(scheduler: Any, directory: Path) -> None:
    """Write the scheduler as a pipeline's ``save_pretrained`` does."""
    scheduler.save_pretrained(directory / "scheduler")
    name_in_index(directory, type(scheduler).__name__)


def name_in_index(directory: Path, name: str, library: str = "diffusers") -> None:
    path = directory / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scheduler": [library, name]}))


def write(directory: Path, **config: Any) -> None:
    """Write a config by hand."""
    (directory / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    name_in_index(directory, config["_class_name"])


def load(source: Any) -> Any:
    return df.load(source, device="cpu", dtype="float32", batch_size=4)


def detector(units: str = "epsilon") -> Any:
    return df.detect.Wen(by_hand.SEEDS, by_hand.STEPS, guidance=by_hand.GUIDANCE, units=units)


@pytest.mark.parametrize("name", IN_MEMORY)
def test_in_memory_and_from_files_scores_are_those_by_hand(
    name: str, pipe: Any, directory: Path
) -> None:
    for kind in PREDICTIONS:
        pipe.scheduler = getattr(diffusers, name)(prediction_type=kind, **BETAS)
        # as the pipeline's constructor does, which a pipeline from files goes through
        if hasattr(pipe.scheduler.config, "steps_offset"):
            pipe.scheduler.register_to_config(steps_offset=1)
        save(pipe.scheduler, directory)
        expected = by_hand.wen(pipe)
        for source in (pipe, directory):
            model = load(source)
            assert model.timesteps(50) == by_hand.timesteps_of(pipe.scheduler, 50)
            assert model.schedule.prediction_type == kind
            torch.testing.assert_close(detector().score(model, by_hand.PROMPTS), expected, **CLOSE)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_every_spacing_is_kept(name: str, spacing: str, pipe: Any, directory: Path) -> None:
    pipe.scheduler = getattr(diffusers, name)(
        prediction_type="v_prediction", timestep_spacing=spacing, steps_offset=1, **BETAS
    )
    save(pipe.scheduler, directory)
    expected = by_hand.wen(pipe)
    for source in (pipe, directory):
        model = load(source)
        assert model.timesteps(50) == by_hand.timesteps_of(pipe.scheduler, 50)
        torch.testing.assert_close(detector().score(model, by_hand.PROMPTS), expected, **CLOSE)


@pytest.mark.parametrize("name", IN_MEMORY)
def test_a_default_may_be_filled_in_written_or_left_out(
    name: str, pipe: Any, directory: Path
) -> None:
    """The pipeline in memory, its directory, and that directory without the default keys."""
    kind = getattr(diffusers, name)
    pipe.scheduler = kind()
    save(pipe.scheduler, directory)
    found = [load(pipe), load(directory)]
    path = directory / "scheduler/scheduler_config.json"
    config, defaults = json.loads(path.read_text()), inspect.signature(kind.__init__).parameters
    few = {k: v for k, v in config.items() if k not in defaults or v != defaults[k].default}
    assert set(few) <= {"_class_name", "_diffusers_version"}
    path.write_text(json.dumps(few))
    found.append(load(directory))
    scores = [df.detect.Wen(1).score(model, by_hand.PROMPTS) for model in found]
    for model, score in zip(found, scores, strict=True):
        assert model.timesteps(50) == found[0].timesteps(50)
        assert torch.equal(model.alphas_cumprod, kind().alphas_cumprod.double())
        assert torch.equal(score, scores[0])


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_what_the_pipelines_constructor_sets_is_set_for_files_too(
    name: str, directory: Path
) -> None:
    write(directory, _class_name=name, steps_offset=0)
    pipe = opened(directory)
    assert pipe.scheduler.config.steps_offset == 1
    for source in (pipe, directory):
        assert load(source).timesteps(50) == by_hand.timesteps_of(pipe.scheduler, 50)


def test_a_scheduler_that_was_swapped_keeps_the_options_of_the_one_before(pipe: Any) -> None:
    pipe.scheduler = diffusers.DDIMScheduler(steps_offset=1, set_alpha_to_one=False, **BETAS)
    for name in IN_MEMORY:
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        memory = schedule_of(pipe.scheduler)
        written = json.loads(pipe.scheduler.to_json_string())
        assert memory == known_schedule(name, written), name
        assert memory.ddim["set_alpha_to_one"] is False and memory.ddim["steps_offset"] == 1, name


def test_a_sampler_that_needs_torchsde_is_read_without_it(pipe: Any, directory: Path) -> None:
    write(directory, _class_name="DPMSolverSDEScheduler", noise_sampler_seed=3)
    pipe.scheduler = diffusers.KDPM2AncestralDiscreteScheduler()
    found = detector().score(load(directory), by_hand.PROMPTS)
    torch.testing.assert_close(found, by_hand.wen(pipe), **CLOSE)


@pytest.mark.parametrize(
    ("name", "beta_schedule"), [("DDPMScheduler", "sigmoid"), ("HeunDiscreteScheduler", "exp")]
)
def test_betas_that_ddim_lacks_are_taken_from_the_class(
    name: str, beta_schedule: str, pipe: Any, directory: Path, tmp_path: Path
) -> None:
    pipe.scheduler = getattr(diffusers, name)(beta_schedule=beta_schedule, steps_offset=1)
    save(pipe.scheduler, directory)
    model = load(directory)
    model.save_pretrained(tmp_path / "again")
    for each in (load(pipe), model, load(tmp_path / "again")):
        assert torch.equal(each.alphas_cumprod, pipe.scheduler.alphas_cumprod.double())


def test_another_number_of_timesteps_is_read_as_it_is(pipe: Any, directory: Path) -> None:
    pipe.scheduler = diffusers.DDIMScheduler(num_train_timesteps=400, steps_offset=1, **BETAS)
    save(pipe.scheduler, directory)
    for source in (pipe, directory):
        found = detector().score(load(source), by_hand.PROMPTS)
        torch.testing.assert_close(found, by_hand.wen(pipe), **CLOSE)
    with pytest.raises(df.errors.UsageError, match="500 steps is impossible, .* 400 timesteps"):
        load(directory).timesteps(500)


@pytest.mark.parametrize(
    ("spacing", "steps"), [("trailing", 61), ("leading", 1000), ("leading", 0)]
)
def test_timesteps_outside_the_schedule_are_refused(spacing: str, steps: int) -> None:
    config = {"timestep_spacing": spacing, "steps_offset": 1}
    schedule = Schedule(known_schedule("DDIMScheduler", config))
    with pytest.raises(df.errors.UsageError, match=f"run of {steps} steps"):
        schedule.timesteps(steps)
    assert len(schedule.timesteps(50)) == 50


def test_the_pipelines_index_must_not_name_another_scheduler(pipe: Any, directory: Path) -> None:
    pipe.scheduler = diffusers.DDIMScheduler(steps_offset=1, **BETAS)
    save(pipe.scheduler, directory)
    expected = df.detect.Wen(1).score(load(directory), by_hand.PROMPTS)
    # every option is written, so both classes read the same
    name_in_index(directory, "DDPMScheduler")
    assert torch.equal(df.detect.Wen(1).score(load(directory), by_hand.PROMPTS), expected)
    write(directory, _class_name="DDIMScheduler", **BETAS)
    name_in_index(directory, "EulerDiscreteScheduler")
    for name, library, message in (
        ("EulerDiscreteScheduler", "diffusers", "write the same class into both"),
        ("DDIMScheduler", "my_module", "my_module.DDIMScheduler is not known"),
        ("LCMScheduler", "diffusers", "distilled"),
        ("EDMEulerScheduler", "diffusers", "sigma_data"),
    ):
        name_in_index(directory, name, library)
        with pytest.raises(df.errors.UsageError, match=message):
            load(directory)


def test_an_xl_pipeline_keeps_the_offset_of_its_scheduler(
    tiny_sdxl_directory: Path, tmp_path: Path
) -> None:
    # its constructor changes no scheduler
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        tiny_sdxl_directory, local_files_only=True
    )
    pipe.scheduler = diffusers.PNDMScheduler(prediction_type="v_prediction", **BETAS)
    pipe.save_pretrained(tmp_path / "model")
    scores = []
    for source in (pipe, tmp_path / "model"):
        model = load(source)
        assert model.timesteps(50)[:2] == [980, 960]
        scores.append(df.detect.Wen(1).score(model, by_hand.PROMPTS))
    assert torch.equal(*scores) and scores[0][0] != scores[0][1]


def test_a_pipelines_identity_leaves_out_the_names_of_filled_in_options(pipe: Any) -> None:
    pipe.scheduler = diffusers.DDIMScheduler(**BETAS)
    before = load(pipe).config()["files"]["scheduler/config"]
    names = pipe.scheduler.config["_use_default_values"]
    pipe.scheduler.register_to_config(_use_default_values=names[::-1])
    assert load(pipe).config()["files"]["scheduler/config"] == before
