"""`millrace sweep`."""

from __future__ import annotations

from pathlib import Path

from millrace.cli.commands.train import add_output, output_settings
from millrace.cli.experiments import add_parallel, print_sweep
from millrace.cli.main import COMMANDS
from millrace.cli.output import print_json
from millrace.cli.parser import Parser
from millrace.cli.settings import add_settings, overrule

EXAMPLES = """\
  millrace sweep examples/sweep-cartpole.toml
  millrace sweep mine.toml --parallel 4 --run-dir runs/mine-sweep     the same again continues it

The file is a settings file with a table [sweep]; settings given here overrule those that all trials share."""


def parser() -> Parser:
    """The options of `sweep`."""
    options = Parser("sweep", f"{COMMANDS['sweep'].capitalize()}.", EXAMPLES)
    options.add_argument("file", metavar="FILE", help="a settings file (TOML) with a table [sweep]")
    add_parallel(options)
    add_output(options)
    add_settings(options)
    return options


def run(words: list[str]) -> int:
    """Train under all settings of the file."""
    arguments = parser().parse(words)
    from millrace.experiments.plan import read_plan
    from millrace.experiments.sweep import run_sweep

    base, plan = read_plan(arguments.file)
    base = overrule(base, {**arguments.settings, **output_settings(arguments)})
    parallel = 1 if arguments.parallel is None else arguments.parallel
    result = run_sweep(base, plan, Path(arguments.file).stem, parallel, arguments.quiet)
    if arguments.json:
        print_json({"result": {"run_dir": str(result.run_dir), **result.plain()}})
    elif not arguments.quiet:
        print_sweep(result)
    return result.exit_code
