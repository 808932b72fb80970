"""`millrace doctor`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.cli.main import COMMANDS
from millrace.cli.output import print_json
from millrace.cli.parser import Parser, add_trust

if TYPE_CHECKING:
    from millrace.doctor.findings import Finding

EXAMPLES = """\
  millrace doctor                                   is this machine fit to train on?
  millrace doctor runs/mine                         does it load, and what holds its training back?
  millrace doctor runs/mine/checkpoints/step_000000500000 --deadline-s 600
  millrace doctor agent.millrace --env my_game:make_env

The exit code is 0 where nothing is an error, else that of the first error."""

WIDTH = 120
COLUMNS = "{:<8} {:<17} "


def parser() -> Parser:
    """The options of `doctor`."""
    options = Parser("doctor", f"{COMMANDS['doctor'].capitalize()}.", EXAMPLES)
    options.add_argument(
        "target",
        metavar="RUN",
        nargs="?",
        help="a run, live or finished, a checkpoint, an exported policy; the machine if left out",
    )
    options.add_argument("--env", default="", metavar="ENV", help="another environment than the policy's")
    options.add_argument(
        "--deadline-s", type=float, default=120.0, metavar="FLOAT", help="for each stage of loading [120]"
    )
    add_trust(options)
    options.add_argument("--run-dir", default="runs", metavar="DIR", help="where runs are to be written [runs]")
    options.add_argument("--json", action="store_true", help="one JSON object")
    return options


def run(words: list[str]) -> int:
    """Examine."""
    arguments = parser().parse(words)
    if arguments.deadline_s <= 0:
        parser().error(f"--deadline-s {arguments.deadline_s:g} must be above 0")
    from millrace.doctor.findings import exit_code

    found = []
    for finding in _findings(arguments):
        found.append(finding)
        if not arguments.json:
            print(described(finding), flush=True)
    if arguments.json:
        print_json({"target": arguments.target, "findings": [finding.plain() for finding in found]})
    return exit_code(found)


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    if arguments.target is None:
        from millrace.doctor.machine import examine_machine

        return examine_machine(Path(arguments.run_dir))
    from millrace.doctor.policies import examine

    return examine(Path(arguments.target), arguments.env, arguments.deadline_s, arguments.trust)


def described(finding: Finding) -> str:
    """A finding in columns, and what to do about it on lines of its own."""
    head = COLUMNS.format(finding.level, finding.subject)
    took = "" if finding.took_s is None else f" ({finding.took_s:.2f} s)"
    # Only what is read is wrapped: what is to be done may have to be copied.
    lines = textwrap.wrap(finding.what + took, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
    return "\n".join([*lines, *([" " * len(head) + f"-> {finding.remedy}"] if finding.remedy else [])])
