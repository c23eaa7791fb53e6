"""Networks that predict v or the sample from pure noise (alpha_bar = 0), and images drawn by DDIM.

There epsilon is the noise itself whatever the network predicts. Scores in other units are exact,
scores of epsilon are refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

import dori_fast as df
from dori_fast.attack.draws import Draws
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate.denoising import held_out_loss
from dori_fast.finetune.batches import Group, backward
from dori_fast.models.schedules.vp import to_epsilon
from dori_fast.prune import NeMo, NeuronStatistics, Wanda
from dori_fast.prune.wanda import _observe
from dori_fast.runs.workers.worker import known_answer
from tests.models.schedules import by_hand

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
PROMPTS = by_hand.PROMPTS
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO = {**BETAS, "rescale_betas_zero_snr": True, "clip_sample": False, "steps_offset": 1}
UNITS = ("x0", "prediction")
REFUSED = "at timestep 999 alpha_bar is 0"
CLOSE = {"rtol": 2e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def pipe(tiny_directory: Path) -> Any:
    """A pipeline whose scheduler each test sets anew."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ddim(kind: str, spacing: str = "trailing", **more: Any) -> Any:
    return DDIMScheduler(**{**ZERO, **more}, prediction_type=kind, timestep_spacing=spacing)


def loaded(pipe: Any, scheduler: Any) -> Any:
    pipe.scheduler = scheduler
    return df.load(pipe, batch_size=8)


@pytest.fixture(params=["v_prediction", "sample"])
def model(pipe: Any, request: pytest.FixtureRequest) -> Any:
    return loaded(pipe, ddim(request.param))


def pictures(pipe: Any, model: Any, steps: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Images of the pipeline and of the model, in levels of 0..255."""
    noise = model.noise([0, 1])
    theirs = pipe(
        [PROMPTS[0]] * 2, latents=noise.clone(), num_inference_steps=steps, guidance_scale=4.0,
        output_type="np",
    ).images  # fmt: skip
    ours = model.generate(model.encode(PROMPTS[:1]), [0, 1], steps=steps, guidance=4.0)[0]
    return 255 * theirs, ours.numpy()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_images_are_those_of_the_pipeline(pipe: Any, kind: str, zero: bool, spacing: str) -> None:
    if zero and kind == "epsilon":
        with pytest.raises(UsageError, match="epsilon says nothing"):
            loaded(pipe, ddim(kind, spacing))
        return
    model = loaded(pipe, ddim(kind, spacing, rescale_betas_zero_snr=zero, set_alpha_to_one=False))
    theirs, ours = pictures(pipe, model)
    assert theirs.std() > 5 and np.abs(ours - theirs).max() <= 1


def test_images_at_linspace_timesteps_are_those_of_euler(pipe: Any) -> None:
    # DDIM in diffusers steps to timesteps other than the next of linspace; Euler does not, and is
    # the same update. Its 2**-24 in place of the 0 is below a level of 255.
    for kind in ("v_prediction", "sample"):
        options = {**BETAS, "rescale_betas_zero_snr": True, "steps_offset": 1}
        model = loaded(pipe, EulerDiscreteScheduler(**options, prediction_type=kind))
        assert model.timesteps(4) == [999, 666, 333, 0] and model.schedule.alpha_bar(999) == 0
        theirs, ours = pictures(pipe, model)
        assert theirs.std() > 5 and np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize("units", UNITS)
def test_wens_scores_in_other_units_are_those_by_hand(pipe: Any, model: Any, units: str) -> None:
    for steps, total in ((1, 50), (3, 50), (3, 3)):
        detector = df.detect.Wen(by_hand.SEEDS, steps, total_steps=total, units=units)
        expected = by_hand.wen(pipe, units, steps, total)
        found = detector.score(model, PROMPTS)
        torch.testing.assert_close(found, expected, **CLOSE)
        assert found[0] != found[1]
    for steps in (1, 3):
        with pytest.raises(UsageError, match=REFUSED + ".*units='prediction'.*leading"):
            df.detect.Wen(2, steps).score(model, PROMPTS)


def test_v_and_x0_are_opposite_at_pure_noise(pipe: Any) -> None:
    model = loaded(pipe, ddim("v_prediction"))
    noise = model.noise([0])
    v = model.output(model.encode(PROMPTS), noise, 999)
    assert torch.equal(model.schedule.in_units(v, noise, 999, "x0"), -v)
    assert torch.equal(to_epsilon(v, noise, 0.0, "v_prediction"), noise.expand_as(v))


@pytest.mark.parametrize("name", ["Wen", "Asthana", "Sail", "NeMo"])
def test_every_detector_of_predictions_refuses_epsilon_and_has_other_units(
    model: Any, name: str
) -> None:
    kind = getattr(df.detect, name)
    with pytest.raises(UsageError, match=REFUSED):
        kind(seeds=2).score(model, PROMPTS)
    for units in UNITS:
        score = kind(seeds=2, units=units).score(model, PROMPTS)
        # images of random networks are so little alike that NeMo's similarities are 0
        assert score.isfinite().all() and (score[0] != score[1] or name == "NeMo")
        assert kind(seeds=2, units=units).config() == kind(seeds=2).config() | {"units": units}
    assert "units" not in kind(seeds=2).config()
    with pytest.raises(UsageError, match="units must be one of epsilon, x0, prediction"):
        kind(seeds=2, units="v")
    with pytest.raises(UsageError, match="leave one of the two out"):
        kind(seeds=2, units="x0", compat=name.lower())


def test_units_of_the_networks_own_output_are_its_scores(pipe: Any) -> None:
    epsilon = loaded(pipe, DDIMScheduler(**BETAS))
    sample = loaded(pipe, DDIMScheduler(**BETAS, prediction_type="sample"))
    for kind in (df.detect.Wen, df.detect.Asthana, df.detect.NeMo, df.detect.Sail):
        plain = kind(seeds=2).score(epsilon, PROMPTS)
        own = kind(seeds=2, units="prediction").score(epsilon, PROMPTS)
        if kind is df.detect.Sail:
            own /= 1 - epsilon.schedule.alpha_bar(epsilon.timesteps(50)[0])
        torch.testing.assert_close(own, plain)
        x0, own = (kind(seeds=2, units=u).score(sample, PROMPTS) for u in UNITS)
        torch.testing.assert_close(x0, own)


def test_a_run_that_leaves_pure_noise_out_has_scores_of_epsilon(pipe: Any) -> None:
    model = loaded(pipe, ddim("v_prediction", "leading"))
    found = df.detect.Wen(by_hand.SEEDS, by_hand.STEPS).score(model, PROMPTS)
    torch.testing.assert_close(found, by_hand.wen(pipe), **CLOSE)


def test_attention_does_not_depend_on_epsilon(model: Any) -> None:
    score = df.detect.Ren(seeds=2, layer=0).score(model, PROMPTS)
    assert score.isfinite().all() and score[0] != score[1]


def test_neurons_are_found_in_other_units_or_refused(model: Any) -> None:
    # large values make the text count, so that the seeds' images become alike
    model = model.copy()
    for name in model.layers:
        model.unet.get_submodule(name).to_v.weight.data *= 1000
    model.engine.weights_changed()
    statistics = NeuronStatistics.collect(model, [f"picture {i}" for i in range(20)])
    with pytest.raises(UsageError, match=REFUSED):
        NeMo(statistics).search(model, PROMPTS[0])
    for units in UNITS:
        nemo = NeMo(statistics, threshold=-1.0, units=units)
        found = nemo.search(model, PROMPTS[0])
        assert found.alike > 0 and found.memorized and found.refined_similarity is not None
        detected = df.detect.NeMo(10, units=units).score(model, PROMPTS[:1])
        assert found.alike == pytest.approx(float(detected), abs=1e-5)
        assert nemo.config()["units"] == units
    assert "units" not in NeMo(statistics).config()


def test_weights_are_found_along_the_run_from_x0(model: Any) -> None:
    both = Wanda(0.1, steps=2, total_steps=4, select_ratio=0.5).run(model, PROMPTS).mask
    assert all(mask.any() for mask in both.pruned.values())
    noise, (first, second) = model.noise([0]), model.timesteps(4)[:2]
    x_0 = model.output(model.unconditional, noise, first)
    x_0 = -x_0 if model.schedule.prediction_type == "v_prediction" else x_0
    a = model.schedule.alpha_bar(second)
    steps = Wanda(0.1, steps=2, total_steps=4)._base(model)[0]
    expected = _observe(
        model, model.unconditional, a**0.5 * x_0[0] + (1 - a) ** 0.5 * noise, second
    )
    for name, energy in expected.energies.items():
        torch.testing.assert_close(steps[1][name], 2 * energy, rtol=1e-4, atol=1e-5)


def test_mitigation_is_exact_or_refused(model: Any) -> None:
    with pytest.raises(UsageError, match=REFUSED):
        df.mitigate.Wen(seeds=2).run(model, PROMPTS)
    with pytest.raises(UsageError, match=REFUSED):
        df.mitigate.token_significance(model, PROMPTS, seeds=2)
    for units in UNITS:
        found = df.mitigate.Wen(0.0, iterations=2, seeds=2, units=units).run(model, PROMPTS)
        scores = df.detect.Wen(2, units=units).scores(model, PROMPTS).per_seed
        torch.testing.assert_close(found.losses[0].cpu(), scores.square().sum(1).sqrt(), **CLOSE)
        assert found.losses.isfinite().all() and (found.losses[0] != found.losses[1]).all()
        tokens = df.mitigate.token_significance(model, PROMPTS, 2, 2, total_steps=4, units=units)
        assert tokens.isfinite().all() and tokens.abs().sum() > 0
    assert "units" not in df.mitigate.Wen().config()


class OnlyPureNoise(Draws):
    """Draws at alpha_bar = 0 alone, which usual draws hit once in a thousand."""

    def take(self, rows: Any) -> Any:
        timesteps, noise = super().take(rows)
        return timesteps.fill_(999), noise


@pytest.mark.parametrize("objective", ["epsilon", "min-snr", "prediction"])
def test_losses_at_pure_noise_are_their_limits(
    model: Any, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dori_fast.attack.progression.Draws", OnlyPureNoise)
    image = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    attack = df.attack.Dori(steps=2, draws=2, objective=objective)
    losses = attack.run(model, PROMPTS[:1], image).losses
    assert losses.isfinite().all()
    # the error of epsilon is that of x_0 times SNR, which is 0 here
    assert (losses == 0).all() if objective != "prediction" else (losses > 0).all()
    assert np.isfinite(held_out_loss(model, PROMPTS[:1], image, draws=2)).all()


def test_training_at_pure_noise_has_the_target_of_x0(model: Any) -> None:
    own = model.copy()
    x_0, seen = torch.randn(2, 2, 4, 8, 8)
    text = model.encode(PROMPTS).embeddings
    own.unet.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    groups = {"redirected": Group(x_0, text, 1.0, seen=seen, first=999)}
    loss = backward(own, groups, generator, at_once=2, autocast=None)["redirected"].detach()
    generator.manual_seed(0)
    torch.randint(999, 1000, (2,), generator=generator)
    noise = torch.randn(x_0.shape, generator=generator)
    output = own.unet(noise, 999, text).sample.detach()
    wanted = -x_0 if model.schedule.prediction_type == "v_prediction" else x_0
    torch.testing.assert_close(loss, (output - wanted).square().mean())


def test_a_workers_known_answer_needs_no_epsilon(model: Any) -> None:
    assert known_answer(model) == known_answer(model)


def test_the_pipelines_own_norms_are_refused_there(pipe: Any) -> None:
    for scheduler in (
        ddim("v_prediction"),
        EulerDiscreteScheduler(
            **BETAS, rescale_betas_zero_snr=True, prediction_type="v_prediction",
            timestep_spacing="trailing",
        ),
    ):  # fmt: skip
        pipe.scheduler = scheduler
        with df.accelerate(pipe, scan_steps=1), pytest.raises(UsageError, match=REFUSED):
            pipe(PROMPTS)
    pipe.scheduler = ddim("v_prediction", "leading")
    with df.accelerate(pipe, scan_steps=1):
        pipe(PROMPTS)
        assert (pipe.noise_norms > 0).all()


def test_a_scan_refuses_or_records_its_units(
    tiny_directory: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    from dori_fast.cli import main

    directory = shutil.copytree(tiny_directory, tmp_path / "model")
    ddim("v_prediction").save_pretrained(directory / "scheduler")
    (tmp_path / "p.txt").write_text("\n".join([*PROMPTS, "a green door"]))

    def cli(*words: str) -> tuple[int, str]:
        fixed = [words[0], str(tmp_path / "p.txt"), "--model", str(directory), *words[1:]]
        monkeypatch.setattr("sys.argv", ["dori-fast", *fixed])
        with pytest.raises(SystemExit) as info:
            main()
        return int(info.value.code or 0), capsys.readouterr().err

    code, err = cli("scan", "--out", str(tmp_path / "refused"))
    assert code == 2 and "--units prediction" in err
    code, err = cli("scan", "--out", str(tmp_path / "run"), "--units", "prediction")
    assert code == 0, err
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["identity"]["detector"]["units"] == "prediction"
    shard = next((tmp_path / "run/shards").glob("*.parquet"))
    assert len(set(pq.read_table(shard)["score"].to_pylist())) == 3
    code, err = cli("calibrate", "--out", str(tmp_path / "c.json"), "--units", "x0")
    assert code == 0, err
    model = df.load(directory)
    with pytest.raises(IntegrityError, match="detector"):
        df.scan(
            model, PROMPTS, out=tmp_path / "other", units="prediction",
            calibration=tmp_path / "c.json", fpr=0.5,
        )  # fmt: skip
