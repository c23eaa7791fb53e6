"""dori-fast scan: what it prints where, and what it exits with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

EVIL = ["[/b][red]x", "\x1b[2J\x1b]0;title\x07", "\u202eesrever", "tab\tbed", "</script>", "a😀b"]


def error_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert lines[0] == err.splitlines()[-1]
    return lines[0]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"{text}\n" for text in [*EVIL, "a cat", "a dog"]))
    return path


def test_table(cli: Any, tiny: str, prompts: Path, tmp_path: Path) -> None:
    done = cli("scan", prompts, "--out", tmp_path / "run", "--model", tiny, "--top", "8")
    assert done.code == 0, done.err
    header, *rows = done.out.splitlines()
    assert header.split() == ["rank", "score", "row", "prompt"]
    assert [row.split()[0] for row in rows] == [str(i) for i in range(1, 9)]
    scores = [float(row.split()[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert all(c.isprintable() or c == "\n" for c in done.out)
    for shown in ("[/b][red]x", r"\x1b[2J\x1b]0;title\x07", r"\u202eesrever", "</script>", "a😀b"):
        assert shown in done.out
    summary = done.err.splitlines()[-1]
    assert summary.startswith("8 rows: 8 ok, 0 quarantined; 8 scored now at ")
    assert "prompts/s" in summary and str(tmp_path / "run") in summary


def test_what_is_read_otherwise_is_printed_and_recorded(
    cli: Any, tiny: str, prompts: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    config = model / "scheduler" / "scheduler_config.json"
    trailing = {**json.loads(config.read_text()), "timestep_spacing": "trailing"}
    config.write_text(json.dumps(trailing))
    done = cli("scan", prompts, "--out", tmp_path / "run", "--model", model)
    assert done.code == 0, done.err
    (note,) = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert "timestep_spacing is trailing, as in distilled checkpoints" in note
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["reading"] == [note.removeprefix("note: ")]
    assert cli("report", tmp_path / "run").code == 0
    assert "as in distilled checkpoints" in (tmp_path / "run" / "report.html").read_text()
    assert "note: " not in cli("scan", prompts, "--out", tmp_path / "x", "--model", tiny).err


def test_json_and_resume(cli: Any, tiny: str, prompts: Path, tmp_path: Path) -> None:
    arguments = ("scan", prompts, "--out", tmp_path / "run", "--model", tiny, "--json")
    first = json.loads(cli(*arguments, "--top", "3").out)
    again = json.loads(cli(*arguments, "--top", "3", "--resume", "must").out)
    assert (first["rows"], first["ok"], first["quarantined"], first["scored"]) == (8, 8, 0, 8)
    assert again["scored"] == 0
    assert again["top"] == first["top"] and len(again["top"]) == 3
    assert again["run_hash"] == first["run_hash"]
    assert first["top"][0]["prompt"] in [*EVIL, "a cat", "a dog"]


def test_old_names_of_job_options_still_work_with_a_warning(
    cli: Any, tiny: str, prompts: Path, tmp_path: Path
) -> None:
    scan = ("scan", prompts, "--model", tiny, "--shard-size", "3", "--top", "0", "--out")
    new = cli(*scan, tmp_path / "new", "--num-jobs", "2", "--job-id", "1")
    old = cli(*scan, tmp_path / "old", "--num-shards", "2", "--shard-id", "1")
    assert (new.code, old.code) == (0, 0), old.err
    assert "warning" not in new.err
    assert "warning: --num-shards is now --num-jobs; the old name goes" in old.err
    assert "warning: --shard-id is now --job-id; the old name goes" in old.err
    for out in ("new", "old"):
        shards = list((tmp_path / out / "shards").iterdir())
        assert [shard.name for shard in shards] == ["part-00001.parquet"]
    text = cli("scan", "--help").out
    assert "--num-jobs" in text and "--num-shards" not in text and "--shard-id" not in text


def test_options_reach_the_scan(cli: Any, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text("words\tprompt\n" + "".join(f"w{i}\tp{i}\n" for i in range(9)))
    values: dict[str, object] = {"column": "words", "seeds": 2, "steps": 2, "batch-size": 3}
    values |= {"limit": 7, "dtype": "fp64", "device": "cpu", "shard-size": 4, "detector": "wen"}
    values |= {"resume": "never", "max-errors": 3, "model": tiny, "out": tmp_path / "run"}
    done = cli("scan", path, *(f"--{name}={value}" for name, value in values.items()))
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["identity"]["detector"]["seeds"] == [0, 1]
    assert record["identity"]["detector"]["steps"] == 2
    assert record["identity"]["model"]["dtype"] == "float64"
    assert record["identity"]["column"] == "words"
    assert (record["batch_size"], record["counts"]["rows"]) == (3, 7)
    assert len(list((tmp_path / "run" / "shards").iterdir())) == 2


def test_over_the_error_budget(cli: Any, tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": null}\n')
    arguments = ("scan", path, "--out", tmp_path / "run", "--model", tiny)
    done = cli(*arguments)
    assert done.code == 3
    assert "1 ok, 1 quarantined" in done.err
    assert done.out.splitlines()[1].endswith("a")
    assert cli(*arguments, "--max-errors", "0.5").code == 0


def test_another_configuration(cli: Any, tiny: str, prompts: Path, tmp_path: Path) -> None:
    arguments = ("scan", prompts, "--out", tmp_path / "run", "--model", tiny)
    assert cli(*arguments).code == 0
    done = cli(*arguments, "--seeds", "2")
    assert (done.code, done.out) == (4, "")
    assert "detector.seeds: [0, 1, 2, 3] then, [0, 1] now" in error_line(done.err)
    prompts.write_text("something else\n")
    assert "input_sha256" in error_line(cli(*arguments).err)


def test_a_damaged_model(cli: Any, prompts: Path, tmp_path: Path) -> None:
    from tests.tiny_model import save_tiny_sd

    model = save_tiny_sd(tmp_path / "model")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = cli("scan", prompts, "--out", tmp_path / "run", "--model", model)
    assert done.code == 4
    assert "unet" in error_line(done.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "missing.csv: No such file or directory; check the path"),
        (["p.xlsx"], "a spreadsheet; save it as CSV UTF-8"),
        (["p.rtf"], "unknown kind of file; use one of .txt"),
        (["words.csv"], "no prompt column among 'id', 'words'"),
        (["p.txt", "--model", "no such model"], "no such model"),
        (["p.txt", "--detector", "nope"], "nope"),
        (["p.txt", "--seeds", "0"], "seeds=0"),
        (["p.txt", "--seeds", "many"], "--seeds"),
        (["p.txt", "--batch-size", "many"], "neither 'auto' nor a whole number"),
        (["p.txt", "--resume", "perhaps"], "--resume"),
        (["p.txt", "--resume", "must"], "no run to resume"),
        (["p.txt", "--device", "toaster"], "toaster"),
        (["p.txt", "--dtype", "int7"], "int7"),
        (["p.txt", "--no-such-option"], "--no-such-option"),
        ([], "Missing argument"),
    ],
)
def test_usage_errors(
    cli: Any, tiny: str, tmp_path: Path, monkeypatch: Any, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a\n")
    Path("p.xlsx").write_text("a\n")
    Path("p.rtf").write_text("a\n")
    Path("words.csv").write_text("id,words\n1,a\n")
    model = [] if "--model" in arguments else ["--model", tiny]
    done = cli("scan", *arguments, "--out", "run", *model)
    assert (done.code, done.out) == (2, "")
    assert message in error_line(done.err)
    assert not list(Path("run").rglob("part-*"))


def test_an_internal_error_shows_its_traceback_on_request(
    cli: Any, tiny: str, prompts: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from dori_fast.detect import Wen

    monkeypatch.setattr(Wen, "scores", lambda *_, **__: 1 / 0)
    arguments = ("scan", prompts, "--out", tmp_path / "run", "--model", tiny)
    done = cli(*arguments)
    assert done.code == 1
    assert "ZeroDivisionError" in error_line(done.err) and "Traceback" not in done.err
    assert "--debug" in error_line(done.err)
    assert "Traceback" in cli(*arguments, "--debug").err


def test_how_the_network_runs_is_chosen_recorded_or_refused(
    cli: Any, tiny: str, prompts: Path, tmp_path: Path
) -> None:
    arguments = ("scan", prompts, "--out", tmp_path / "run", "--model", tiny, "--device", "cpu")
    done = cli(*arguments, "--channels-last", "off", "--compile", "off")
    assert done.code == 0, done.err
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["execution"]
    assert recorded == {
        "attention": "sdpa",
        "compile": False,
        "channels_last": False,
        "cuda_graphs": False,
        "allow_tf32": False,
    }
    done = cli(*arguments, "--allow-tf32")
    assert done.code == 2 and "a cpu device has no TF32" in error_line(done.err)
    done = cli(*arguments, "--cuda-graphs", "on")
    assert done.code == 2
    assert "a cpu device has no CUDA graphs" in error_line(done.err)
    done = cli(*arguments, "--compile", "perhaps")
    assert done.code == 2 and "none of auto, on and off" in done.err


def test_weights_laid_over_are_another_model(
    cli: Any, tiny: str, prompts: Path, tmp_path: Path
) -> None:
    weights = load_file(Path(tiny) / "unet" / "diffusion_pytorch_model.safetensors")
    erased = {name: -tensor for name, tensor in weights.items() if ".attn2.to_v" in name}
    save_file(erased, tmp_path / "erased.safetensors")
    save_file({f"unet.{n}": t for n, t in erased.items()}, tmp_path / "foreign.safetensors")
    command = ("scan", prompts, "--out", tmp_path / "run", "--model", tiny, "--unet-weights")
    foreign = cli(*command, tmp_path / "foreign.safetensors")
    assert foreign.code == 4 and "cut the prefix" in error_line(foreign.err)
    done = cli(*command, tmp_path / "erased.safetensors", "--json")
    assert done.code == 0, done.err
    other = cli(*command[:-1])
    assert other.code == 4 and "unet_weights" in error_line(other.err)
