"""`millrace resume`."""

from __future__ import annotations

from millrace.cli.commands.train import add_output, report
from millrace.cli.main import COMMANDS
from millrace.cli.parser import Parser
from millrace.cli.settings import add_settings, overrule
from millrace.config import look_up

EXAMPLES = """\
  millrace resume                                   the newest run under runs/
  millrace resume runs/mine --total-env-steps 2000000
  millrace resume runs/mine/checkpoints/step_000000500000

Settings given here overrule those of the run and are recorded with it."""


def parser() -> Parser:
    """The options of `resume`."""
    options = Parser("resume", f"{COMMANDS['resume'].capitalize()}.", EXAMPLES)
    options.add_argument(
        "run", metavar="RUN", nargs="?", help="a run or a checkpoint of one; the newest run if left out"
    )
    add_output(options)
    add_settings(options)
    return options


def run(words: list[str]) -> int:
    """Go on training."""
    arguments = parser().parse(words)
    from millrace.rundir import RunDirectory, find_checkpoint
    from millrace.training import resume, rllib_run

    # Settings of tables add to the run's own, and are checked before anything starts.
    trained_by_rllib = rllib_run(arguments.run)
    directory = (
        trained_by_rllib[1] if trained_by_rllib else RunDirectory(find_checkpoint(arguments.run).path.parent.parent)
    )
    saved = directory.read_config()
    changed = overrule(saved, arguments.settings)
    settings = {name: look_up(changed, name) for name in arguments.settings}
    # How the run was shown when it began says nothing about now.
    settings.setdefault("metrics.console", "json" if arguments.json else "auto")
    return report(resume(arguments.run, settings=settings, quiet=arguments.quiet), arguments)
