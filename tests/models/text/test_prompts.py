"""What takes prompts, names or seeds takes a list, never one text as a list of its letters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import dori_fast as df
from dori_fast import leaderboard
from dori_fast.attack import Dori, Tokens
from dori_fast.detect import Asthana, Cascade, NeMo, Ren, Sail, Wen
from dori_fast.errors import UsageError
from dori_fast.evaluate import SmallImages, held_out_loss, quality, tpr_at_fpr
from dori_fast.finetune import Adversarial, surrogates
from dori_fast.mitigate import Wen as Mitigation
from dori_fast.mitigate import token_significance
from dori_fast.models.probes import value_magnitudes
from dori_fast.prune import NeMo as NeMoSearch
from dori_fast.prune import NeuronStatistics, Wanda
from dori_fast.runs.dedup.dedup import dedup
from dori_fast.runs.methods.attack import attack
from dori_fast.runs.methods.finetune import fine_tune
from dori_fast.runs.methods.prune import prune
from dori_fast.runs.store.directory import LockedDirectory

IMAGES = np.zeros((2, 16, 16, 3), np.uint8)
# as many letters as images
TEXT = "ab"


@pytest.fixture(scope="module")
def model(tiny_directory):
    # one of its own: the shared one must not keep noise that other tests count
    return df.load(tiny_directory, device="cpu", batch_size=8)


def takers(model):
    """Every public call that takes a list of prompts."""
    detectors = [Wen(1), Wen(1, compat="wen"), Ren(1), Ren(1, compat="ren"), Sail(1), NeMo(2)]
    yield from (detector.score for detector in [*detectors, Asthana(1)])
    yield Cascade(Wen(2), 0.0).scores
    yield lambda model, prompts: model.encode(prompts)
    yield lambda model, prompts: model.token_ids(prompts)
    yield lambda model, prompts: df.prune.NeMo().localize(model, prompts)
    yield from (Wanda(0.1).localize, Wanda(0.1).run, NeuronStatistics.collect)
    yield lambda model, prompts: Wanda(base=prompts)
    yield lambda model, prompts: Dori(1).run(model, prompts, IMAGES)
    yield lambda model, prompts: Dori(1).run(model, prompts, IMAGES, start="gaussian")
    yield lambda model, prompts: Tokens(1).run(model, prompts, IMAGES)
    yield from (Mitigation(iterations=1).run, token_significance)
    yield lambda model, prompts: held_out_loss(model, prompts, IMAGES)
    yield lambda model, prompts: quality(model, model, prompts, IMAGES)
    yield lambda model, prompts: surrogates(model, prompts, IMAGES, measure=SmallImages())
    retained = [("a", IMAGES[0])]
    yield lambda model, prompts: Adversarial(1).run(
        model, prompts, IMAGES, surrogates=torch.zeros(2, 1, 16, 16, 3), retained=retained
    )


WRONG = {
    "got one str; put it into a list": TEXT,
    "got one bytes; decode it": TEXT.encode(),
    "got one dict; use a list of the entries": {"a": 1, "b": 2},
    "got one set; use a list, since a set has no order": {"a", "b"},
    "got one DataFrame; use one of its columns": pd.DataFrame({"a": ["x"], "b": ["y"]}),
    "got one Table; use one of its columns": pa.table({"a": ["x"], "b": ["y"]}),
    "got one int; use a list": 7,
    "1 must be a str, got NoneType": ["a", None],
    "1 must be a str, got float": ["a", float("nan")],
    "0 must be a str, got bytes": [b"a", b"b"],
    "0 must be a str, got list": [["a"], ["b"]],
    "1 holds half of a surrogate pair": ["a", "b\ud800"],
}


@pytest.mark.parametrize("reason", WRONG)
def test_every_call_that_takes_prompts_refuses_what_is_no_list_of_them(reason, model):
    for take in takers(model):
        with pytest.raises(UsageError, match=reason) as raised:
            take(model, WRONG[reason])
        assert "\n" not in str(raised.value)


def test_ordered_iterables_of_str_are_taken(model):
    prompts = ["a key", "a door"]
    own = Wen(1).score(model, prompts)
    series = pd.Series(prompts, index=[7, 3])
    for same in (tuple(prompts), iter(prompts), np.array(prompts), np.array(prompts, object)):
        assert torch.equal(Wen(1).score(model, same), own)
    assert torch.equal(Wen(1).score(model, series), own)
    peers = Wen(1, compat="wen")
    assert torch.equal(peers.score(model, iter(prompts)), peers.score(model, prompts))
    method = Mitigation(iterations=1)
    again = (method.run(model, each).embeddings for each in (prompts, iter(prompts)))
    assert torch.equal(*again)
    masks = (Wanda(0.1).localize(model, each).sha256() for each in (prompts, iter(prompts)))
    assert len({*masks}) == 1
    assert model.encode(iter([])).unique.shape == (0, 77, 32)


def test_names_are_checked_when_a_method_is_made(model):
    cases = {
        "layers must be 'encoder', 'all' or a list": lambda: NeMoSearch(layers="foo"),
        "layers must name at least one": lambda: NeMoSearch(layers=[]),
        "layer 0 must be a str": lambda: NeMoSearch(layers=[3]),
        "mode must be 'paper' or 'reference'": lambda: NeMoSearch(mode="foo"),
        "threshold must be a number": lambda: NeMoSearch(threshold=float("nan")),
        "bound must be a number": lambda: Cascade(Wen(2), float("nan")),
        "objective must be one of": lambda: Dori(objective="foo"),
        "layer must be a number from 0, got 'foo'": lambda: Ren(layer="foo"),
        "layer must be a number from 0, got -1": lambda: Ren(layer=-1),
        "compat must be None or 'wen'": lambda: Wen(compat="foo"),
        "rule must be 'strict' or 'nearest'": lambda: tpr_at_fpr([1.0], [0.0], rule="foo"),
        "starts must be of": lambda: df.finetune.Pool(starts="prompt"),
        "start must be one of": lambda: Dori(1).run(model, ["a"], IMAGES[:1], start="foo"),
        "ids must be a list of str, got one str": lambda: Dori(1).run(
            model, ["a", "b"], IMAGES, ids="cd"
        ),
        "layers must be a list of str": lambda: value_magnitudes(model, model.encode(["a"]), "foo"),
        "layers must be a list of": lambda: NeuronStatistics.collect(model, ["a", "b"], "foo"),
        "search takes one str": lambda: NeMoSearch().search(model, ["a"]),
    }
    for reason, make in cases.items():
        with pytest.raises(UsageError, match=reason):
            make()


@pytest.mark.parametrize("seeds", ["12", b"12", {1: 2}, {1, 2}, 2.0, [1.5], ["1"], True, None])
def test_seeds_are_a_whole_number_or_a_list_of_them(seeds, model):
    makers = (
        Wen,
        Ren,
        Sail,
        NeMo,
        Asthana,
        lambda s: Wanda(seeds=s),
        lambda s: Mitigation(seeds=s),
    )
    for make in makers:
        with pytest.raises(UsageError, match="seeds must be"):
            make(seeds)
    with pytest.raises(UsageError, match="seeds must be"):
        token_significance(model, ["a"], seeds)
    assert Wen(np.int64(2)).seeds == (0, 1) == Wen(np.arange(2)).seeds == Wen(torch.arange(2)).seeds


def test_runs_refuse_unknown_names_before_any_work(model, tmp_path):
    (tmp_path / "p.csv").write_text("prompt\na\nb\n")
    prompts, out = tmp_path / "p.csv", tmp_path / "run"
    wanda = Wanda(0.1, joint=False)
    cases = {
        "detector 'foo'": lambda: df.scan(model, prompts, out=out, detector="foo"),
        "engine='foo'": lambda: df.scan(model, prompts, out=out, engine="foo"),
        "resume='foo'": lambda: df.scan(model, prompts, out=out, resume="foo"),
        "where: must be a list of str": lambda: df.scan(model, prompts, out=out, where="a > 1"),
        "keep: must be a list of str": lambda: dedup(model, prompts, out=out, keep="prompt"),
        "method must be a df.prune.NeMo or Wanda": lambda: prune(
            model, prompts, out=out, method="wanda"
        ),
        "run: resume='foo'": lambda: prune(model, prompts, out=out, method=wanda, resume="foo"),
        "resume must be one of 'auto', 'never', 'must', got 'foo'": lambda: LockedDirectory(
            out, None, "foo"
        ),
        "method must be a df.attack.Dori": lambda: attack(
            model, prompts, tmp_path, out=out, method="dori"
        ),
        "start must be one of": lambda: attack(
            model, prompts, tmp_path, out=out, method=Dori(1), start="foo"
        ),
        "method must be a df.finetune.Adversarial": lambda: fine_tune(
            model, prompts, tmp_path, out=out, method="foo", masks=None, retained=prompts
        ),
        "add must be a list of files": lambda: leaderboard.run(out, add="board.json"),
        "mitigations must be a dict": lambda: leaderboard.run(out, ["none"]),
    }
    for reason, run in cases.items():
        with pytest.raises(UsageError, match=reason):
            run()
        assert not out.exists()


def test_seeds_of_noise_and_images_are_no_text(model):
    condition = model.encode(["a"])
    for seeds in ("12", b"12", {1: 2}, 1.5, [0.5], None):
        for draw in (model.noise, lambda seeds: model.generate(condition, seeds, steps=1)):
            with pytest.raises(UsageError, match="seeds must be a whole number or a list of them"):
                draw(seeds)
    for seeds in (2, (0, 1), np.arange(2), torch.arange(2)):
        assert torch.equal(model.noise(seeds), model.noise([0, 1]))
        assert model.generate(condition, seeds, steps=1).shape == (1, 2, 16, 16, 3)
