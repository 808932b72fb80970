"""`millrace demo`: what `make train` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millrace.cli.commands.train import add_output, output_settings, print_next, result_rows
from millrace.cli.main import COMMANDS, INTERRUPTED
from millrace.cli.output import number, print_json, print_table
from millrace.cli.parser import Parser
from millrace.cli.settings import add_settings, overrule
from millrace.config import Config

if TYPE_CHECKING:
    from millrace.cli.yardsticks import Comparison

EXAMPLES = """\
  millrace demo
  millrace demo --stop.wall_s 30                    a shorter one"""

RECIPE = "realm-mini"


def parser() -> Parser:
    """The options of `demo`."""
    options = Parser("demo", f"{COMMANDS['demo'].capitalize()}.", EXAMPLES)
    add_output(options)
    add_settings(options)
    return options


def run(words: list[str]) -> int:
    """Train, compare, record a game."""
    arguments = parser().parse(words)
    config = overrule(Config.named(RECIPE), {**arguments.settings, **output_settings(arguments)})
    from millrace.cli.yardsticks import SEED, compare
    from millrace.deploy.play import play
    from millrace.training import train

    result = train(config, quiet=arguments.quiet)
    if not arguments.quiet and not arguments.json:
        print("\ncomparing with the yardsticks ...", flush=True)
    policy = result.policy
    comparisons = compare(policy, config.eval.deterministic)
    game = result.run_dir / "media" / "game.gif"
    play(policy, game, seed=SEED, fps=15, deterministic=config.eval.deterministic)
    if arguments.json:
        print_json({"result": vars(result), "scores": [vars(c) | {"ratio": c.ratio} for c in comparisons]})
    elif not arguments.quiet:
        print_table([*result_rows(result), ("a game", str(game))])
        print("\nmean score of the same 100 games:\n")
        print_table([_row(comparison) for comparison in comparisons], HEADER)
        print_next(result)
    return INTERRUPTED if result.interrupted else 0


HEADER = ("", "random", "walker", "trained", "oracle", "trained / oracle")


def _row(scores: Comparison) -> list[str]:
    figures = (scores.random, scores.walker, scores.policy, scores.oracle)
    return [scores.games, *map(number, figures), f"{scores.ratio:.2f}"]
