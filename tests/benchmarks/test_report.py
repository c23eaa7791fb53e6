"""The tables and the plot say what the CSV files say, and the pages what the tables say."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.ops import report, results
from benchmarks.ops.plot import draw

CSV = """\
op,mode,provider,metric,unit,x,p20,p50,p80,bytes,flops,roofline_pct,shape,dtype,threads,machine,versions,commit
mask,one,eager,cpu_time,us,100,9,10.0,11,1,1,25.0,10x10,float32,1,Box,torch==9,abc
mask,one,cpp,cpu_time,us,100,3,4.0,5,1,1,62.4,10x10,float32,1,Box,torch==9,abc
mask,one,eager,cpu_time,us,900,80,90.0,95,1,1,,30x30,float32,1,Box,torch==9,abc
mask,one,cpp,cpu_time,us,900,44,45.0,46,1,1,88.8,30x30,float32,1,Box,torch==9,abc
mask,one,eager,cpu_time,us,900,80,80.0,95,1,1,,30x30,bfloat16,1,Box,torch==9,abc
mask,one,cpp,cpu_time,us,900,1,2.0,4,1,1,,30x30,bfloat16,1,Box,torch==9,abc
mask,one,triton,time,us,900,1,5.0,4,1,1,70,30x30,float32,0,GPU,torch==9,abc
mask,one,cuda,time,us,900,1,2.5,4,1,1,80,30x30,float32,0,GPU,torch==9,abc
mask,one,eager,time,us,900,1,50.0,4,1,1,8,30x30,float32,0,GPU,torch==9,abc
scan,wen,eager,cpu_time,ms/prompt,8,1,3000.0,1,0,7,,demo:8x4,float32,1,Box,torch==9,def+
scan,wen,dori_fast,cpu_time,ms/prompt,8,1,1200.0,1,0,7,,demo:8x4,float32,1,Box,torch==9,def+
"""


@pytest.fixture
def measured(tmp_path: Path) -> list[results.Measured]:
    (tmp_path / "box.csv").write_text(CSV)
    # as written before there was a column for the roofline
    old = [line.split(",") for line in CSV.splitlines()[:3]]
    old_text = "\n".join(",".join([*row[:11], *row[12:]]) for row in old)
    (tmp_path / "old.csv").write_text(old_text.replace("Box", "Old box"))
    return results.load(tmp_path)


def test_speedups_and_shares_are_those_of_the_kernel_that_auto_takes(
    measured: list[results.Measured],
) -> None:
    found = {(m.problem.machine, m.problem.shape, m.problem.dtype): m for m in measured}
    assert {key: (m.ours, m.speedup) for key, m in found.items()} == {
        ("Box", "10x10", "float32"): ("cpp", 2.5),
        ("Box", "30x30", "bfloat16"): ("cpp", 40.0),
        ("Box", "30x30", "float32"): ("cpp", 2.0),
        ("Box", "demo:8x4", "float32"): ("dori_fast", 2.5),
        ("GPU", "30x30", "float32"): ("triton", 10.0),
        ("Old box", "10x10", "float32"): ("cpp", 2.5),
    }
    assert found["Box", "10x10", "float32"].shares == {"eager": "25.0", "cpp": "62.4"}
    assert found["Old box", "10x10", "float32"].shares == {"eager": "", "cpp": ""}


def test_the_short_table_has_the_largest_float32_problem(measured: list[results.Measured]) -> None:
    lines = report.short_table(measured).splitlines()
    assert [line for line in lines if line.startswith("| `")] == [
        "| `mask` one | 30x30 | float32 | 90 us | 45 us | 2.00x | 89 % |",
        "| `scan` wen | demo:8x4 | float32 | 3000 ms/prompt | 1200 ms/prompt | 2.50x |  |",
        "| `mask` one | 30x30 | float32 | 50 us | 5 us | 10.0x | 70 % |",
        "| `mask` one | 10x10 | float32 | 10 us | 4 us | 2.50x |  |",
    ]
    assert [line.split(" against")[0] for line in lines if line.startswith("Medians")] == [
        "Medians on Box, 1 thread,",
        "Medians on GPU,",
        "Medians on Old box, 1 thread,",
    ]


def test_the_full_page_has_every_problem(measured: list[results.Measured]) -> None:
    text = report.full_page(measured)
    assert text.count("| `mask` one |") == 5 and text.count("| `scan` wen |") == 1
    assert "| op | shape | dtype | eager | triton | cuda | unit | speed-up | roofline |" in text
    assert "| `mask` one | 30x30 | float32 | 50 | 5 | 2.5 | us | 10.0x | 70 % |" in text
    assert "- torch==9, commit def+" in text


def test_figures_that_are_no_times_have_a_table_of_their_own(tmp_path: Path) -> None:
    rows = """\
wanda,with,ours,overhead,%,8,6,6.25,7,0,0,,sd14:8,float16,0,GPU,torch==9,abc,,,
scan,wen,ours,failed,,8,nan,nan,nan,0,0,,sd14:8,float16,0,GPU,torch==9,abc,,,Error: a | b
mask,one,cuda,graph_time,us,900,1,2.0,4,1,1,80,30x30,float32,0,GPU,torch==9,abc,,,
mask,one,cuda,enqueue_time,us,900,1,20.0,4,1,1,,30x30,float32,0,GPU,torch==9,abc,,,
"""
    header = CSV.splitlines()[0] + ",repro_cmd,timestamp,note\n"
    (tmp_path / "gpu.csv").write_text(header + rows)
    (timed,) = results.load(tmp_path)
    assert timed.medians == {"cuda": 2.0}
    text = report.full_page([timed], results.figures(tmp_path))
    assert "## GPU: other figures" in text
    assert "| `wanda` with | sd14:8 | float16 | ours | overhead | 6.25 % |" in text
    assert "| `scan` wen | sd14:8 | float16 | ours | failed | Error: a \\| b |" in text
    assert "| `mask` one | 30x30 | float32 | cuda | enqueue_time | 20 us |" in text


def test_only_what_is_between_the_markers_is_replaced() -> None:
    page = f"a\n{report.BEGIN}\nold\n{report.END}\nb\n"
    once = report.replaced(page, "new")
    assert once == f"a\n{report.BEGIN}\nnew\n{report.END}\nb\n"
    assert report.replaced(once, "new") == once
    for wrong in ("", report.BEGIN, f"{report.END}\n{report.BEGIN}", page + page):
        with pytest.raises(ValueError, match="the page needs"):
            report.replaced(wrong, "new")


def test_the_image_carries_what_it_was_drawn_from(
    measured: list[results.Measured], tmp_path: Path
) -> None:
    path = tmp_path / "plot.png"
    draw(measured, path, report.fingerprint(measured))
    with Image.open(path) as image:
        assert image.info["Description"] == report.fingerprint(measured)
        assert len(set(image.convert("L").tobytes())) > 10, "a blank image"
    changed = report.fingerprint(measured[1:])
    assert changed != report.fingerprint(measured)


def test_readme_and_docs_are_what_the_results_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check"]) == 0, "run python -m benchmarks.ops.report"
    with Image.open(report.ROOT / "docs" / "benchmarks.png") as image:
        drawn_from = image.info["Description"]
    assert drawn_from == report.fingerprint(results.load()), "run python -m benchmarks.ops.report"
