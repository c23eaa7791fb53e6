"""The command line of `benchmarks/device.sh`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.device.run import run
from benchmarks.device.stage import Stage
from benchmarks.device.stages import CALL_SECONDS, stages

_DRY_MINUTES = 60.0


def chosen(
    plan: Sequence[Stage], names: Sequence[str], skip: Sequence[str], call: int | None
) -> list[Stage]:
    """The stages to run, in the order of the plan; preparations always, unless skipped.

    Args:
        plan: all stages.
        names: names of stages; all if there are none.
        skip: names to leave out.
        call: number of a call, to run its stages only; default: all.

    Raises:
        SystemExit: an unknown name or call, or a stage of another call.
    """
    calls = {stage.name: stage.call for stage in plan}
    for name in (*names, *skip):
        if name not in calls:
            raise SystemExit(f"no stage {name!r}; use --list to see all")
    if call is not None and call not in set(calls.values()) - {0}:
        raise SystemExit(f"no call {call}; use --list to see all")
    for name in names:
        if call is not None and calls[name] not in (0, call):
            raise SystemExit(f"stage {name!r} is in call {calls[name]}; leave out --call {call}")
    return [
        stage
        for stage in plan
        if stage.name not in skip
        and (stage.call == 0 or not names or stage.name in names)
        and (call is None or stage.call in (0, call))
    ]


def described(plan: Sequence[Stage]) -> str:
    """The stages as a table: call, name, limit in seconds, question, and why it cannot run."""
    lines = [
        f"{stage.call or '-':>4}  {stage.name:20} {stage.limit:5.0f} s  {stage.question}"
        + (f" ({stage.missing})" if stage.missing else "")
        for stage in plan
    ]
    return "\n".join(["call  stage                limit  question", *lines])


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen stages; return 1 if one failed or was not reached."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/device.sh", description="Build, measure and test on an NVIDIA machine."
    )
    parser.add_argument("--list", action="store_true", help="print the stages and run none")
    for option, what in (("--stage", "stages to run"), ("--skip", "stages to leave out")):
        parser.add_argument(
            option, nargs="+", action="extend", default=[], metavar="NAME", help=what
        )
    parser.add_argument("--call", type=int, metavar="N", help="run the stages of call N")
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"limit of the whole run; default: {CALL_SECONDS / 60:g}, dry run {_DRY_MINUTES:g}",
    )
    parser.add_argument("--dry-run", action="store_true", help="rehearse all stages on a CPU")
    options = parser.parse_args(arguments)
    out = Path(os.environ.get("OUT", "device_out")).resolve()
    with tempfile.TemporaryDirectory() as site:
        plan = chosen(
            stages(Path(site), out, options.dry_run), options.stage, options.skip, options.call
        )
        if options.list:
            print(described(plan))
            return 0
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out):
                pass
        except OSError as error:
            reason = error.strerror
            raise SystemExit(f"{out}: cannot be written ({reason}); set OUT to another") from error
        paths = [site, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if options.dry_run:
            # a GPU that is there must not take part
            environment["CUDA_VISIBLE_DEVICES"] = ""
        minutes = options.minutes or (_DRY_MINUTES if options.dry_run else CALL_SECONDS / 60)
        outcomes = run(plan, out, environment, 60 * minutes)
    bad = [o.stage for o in outcomes if o.bad]
    late = [o.stage for o in outcomes if o.state == "not reached"]
    print(f"{len(outcomes)} stages in {sum(o.seconds for o in outcomes):.0f} s, results in {out}")
    if late:
        print(f"to go on: benchmarks/device.sh --stage {' '.join(late)}")
    print(f"FAILED: {', '.join(bad)}" if bad else "all well")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
