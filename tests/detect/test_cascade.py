"""The cascade: kept prompts have the full test's scores to the bit, others are dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.runs.calibrate import calibrate


@pytest.fixture(scope="module")
def model():
    return df.load("demo", device="cpu")


@pytest.fixture(scope="module")
def prompts():
    memorized = [p.prompt for p in df.demo.images("memorized")]
    return [*memorized, *(p.prompt for p in df.demo.images("held_out")[::2]), memorized[0]]


def test_stops_exactly_where_the_running_mean_falls_below_the_bound(model, prompts):
    full = df.detect.Wen(seeds=4)
    exact, bound = full.scores(model, prompts), 1.0
    before = model.engine.evaluations
    found = df.detect.Cascade(full, bound).scores(model, prompts)
    spent = model.engine.evaluations - before
    running = exact.per_seed.double().cumsum(1) / torch.arange(1, 5)
    for row in range(len(prompts)):
        used = next((k for k in (1, 2, 3) if running[row, k - 1] < bound), 4)
        assert found.used[row] == used, prompts[row]
        assert torch.equal(found.per_seed[row, :used], exact.per_seed[row, :used])
        assert found.per_seed[row, used:].isnan().all()
        assert found.score[row] == running[row, used - 1].float()
    assert (found.used == 1).sum() > 0 and 0 < (found.used == 4).sum() < len(prompts)
    # a repeated prompt is evaluated once; four more for the unconditional predictions at most
    assert int(found.used[:-1].sum()) <= spent <= int(found.used[:-1].sum()) + 4


def test_does_not_depend_on_order_or_neighbours(model, prompts):
    cascade = df.detect.Cascade(df.detect.Wen(seeds=4), 1.0)
    together = cascade.scores(model, prompts)
    reverse = cascade.scores(model, prompts[::-1])
    assert torch.equal(together.score, reverse.score.flip(0))
    assert torch.equal(together.score[5], cascade.scores(model, prompts[5:6]).score[0])
    assert len(cascade.scores(model, []).score) == 0


def test_survivors_of_several_blocks_fill_batches(model, prompts):
    full = df.detect.Wen(seeds=4)
    exact, cascade = full.scores(model, prompts), df.detect.Cascade(full, 1.0)
    cascade.scores(model, prompts[:1])  # the noise of all seeds is shared from here on
    blocks = [prompts[i : i + 20] for i in range(0, len(prompts), 20)]
    size, before = model.batch_size, (model.engine.evaluations, model.engine.rows_computed)
    found = list(cascade.stream(model, blocks))
    evaluations = model.engine.evaluations - before[0]
    rows = model.engine.rows_computed - before[1]
    assert [len(scores.score) for scores in found] == [len(block) for block in blocks]
    per_seed = torch.cat([scores.per_seed for scores in found])
    used = torch.cat([scores.used for scores in found])
    at_once = cascade.scores(model, prompts)
    assert torch.equal(torch.cat([scores.score for scores in found]), at_once.score)
    assert torch.equal(used, at_once.used) and len(used.unique()) > 1
    evaluated = torch.arange(4) < used[:, None]
    assert torch.equal(per_seed[evaluated], exact.per_seed[evaluated])
    # at the end a prompt needs at most three more seeds, one batch after the other
    assert evaluations <= rows < evaluations + 4 * size
    assert list(cascade.stream(model, [])) == []


def test_each_prompt_keeps_its_mask(model, prompts):
    full = df.detect.Wen(seeds=2)
    name = model.layers[-1]
    width = model.engine.value_widths[name]
    lists = [{name: list(range(i, width, 2))} for i in range(3)]
    view = model.masked(df.prune.NeuronMask.blocking(lists, {name: width}))
    found = df.detect.Cascade(full, 0.0).scores(view, prompts[:3])
    assert torch.equal(found.per_seed, full.scores(view, prompts[:3]).per_seed)


def test_other_detectors_and_modes_are_refused(model):
    for full in (df.detect.Sail(), df.detect.Wen(seeds=1), df.detect.Wen(compat="wen")):
        with pytest.raises(UsageError, match="shared seeds"):
            df.detect.Cascade(full, 1.0)


def test_scan_keeps_flags_and_full_scores(model: Any, prompts: list[str], tmp_path: Path):
    memorized = [p.prompt for p in df.demo.images("memorized") if p.duplication > 1]
    clean = [p.prompt for p in df.demo.images("ordinary")]
    record = calibrate(model, clean, out=tmp_path / "c.json", suspicious=memorized)
    assert len(record.suspicious) == len(memorized)
    options: Any = {"calibration": record, "fpr": 0.05}
    exact = df.scan(model, prompts, out=tmp_path / "exact", **options)
    fast = df.scan(model, prompts, out=tmp_path / "fast", cascade=0.9, **options)
    assert fast.counts == exact.counts and fast.evaluations < 0.75 * exact.evaluations
    for full, row in zip(exact.rows(), fast.rows(), strict=True):
        if len(row["score_per_seed"]) == 4:
            assert row == full
        else:
            assert row["p_value"] is None and row["flagged"] is False
            assert row["score_per_seed"] == full["score_per_seed"][: len(row["score_per_seed"])]
    pairs = list(zip(exact.rows(), fast.rows(), strict=True))
    assert not any(row["flagged"] and not full["flagged"] for full, row in pairs)
    lost = {full["prompt"] for full, row in pairs if full["flagged"] and not row["flagged"]}
    # 21 positives, bound at the second smallest: one of the calibration's own is below it
    assert len(lost & set(memorized)) == 1
    with pytest.raises(UsageError, match="at least 99 memorized prompts"):
        df.scan(model, prompts, out=tmp_path / "more", cascade=0.99, **options)
    with pytest.raises(UsageError, match="needs a calibration"):
        df.scan(model, prompts, out=tmp_path / "none", cascade=0.9)
