"""`millrace train` and what `resume` shares with it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from millrace.cli.experiments import add_parallel, parse_seeds, print_seeds
from millrace.cli.main import COMMANDS, INTERRUPTED
from millrace.cli.output import number, print_json, print_table, seconds
from millrace.cli.parser import Parser, add_trust
from millrace.cli.settings import add_settings, overrule
from millrace.config import Config, recipe_names
from millrace.errors import ConfigError

if TYPE_CHECKING:
    from millrace.training import Result

EXAMPLES = """\
  millrace train CartPole-v1 --total-env-steps 200000
  millrace train my_game:make_env --workers 4 --ppo.learning_rate 3e-4
  millrace train millrace/RealmMini-v0 --env.kwargs map=random --env.kwargs num_maps=64
  millrace train settings.toml --run-dir runs/mine --auto-resume
  millrace train CartPole-v1 --seeds 5 --parallel 2    five runs, a table and their curves
  millrace train CartPole-v1 --engine rllib         the same by RLlib, to compare
  millrace config CartPole-v1 > settings.toml       a file to start from

Settings marked 0 = auto or -1 = auto are filled in from the environment and the machine."""


def parser() -> Parser:
    """The options of `train`."""
    options = Parser("train", f"{COMMANDS['train'].capitalize()}.", EXAMPLES)
    options.add_argument(
        "env",
        metavar="ENV",
        help=f"a Gymnasium id, MODULE:FUNCTION that makes an environment, a TOML file, or a recipe "
        f"({', '.join(recipe_names()) or 'none installed'})",
    )
    options.add_argument(
        "--init-from", metavar="RUN|CHECKPOINT", help="start from these weights and normalisers, all else fresh"
    )
    add_trust(options)
    options.add_argument("--auto-resume", action="store_true", help="continue --run-dir where it holds a checkpoint")
    options.add_argument(
        "--seeds", metavar="N|N,N,...", help="train once per seed: so many, counted from --seed, or these"
    )
    add_parallel(options)
    add_output(options)
    add_settings(options)
    return options


def add_output(options: argparse.ArgumentParser) -> None:
    """The options that say what is printed."""
    options.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options.add_argument(
        "--json", action="store_true", help="print figures as JSON lines, the result last; words go to standard error"
    )


def run(words: list[str]) -> int:
    """Train."""
    arguments = parser().parse(words)
    config = overrule(Config.named(arguments.env), {**arguments.settings, **output_settings(arguments)})
    if arguments.seeds is not None:
        return _run_seeds(config, arguments)
    if arguments.parallel is not None:
        raise ConfigError(f"--parallel {arguments.parallel} goes with --seeds; a single run has --workers")
    if config.collect.backend == "ray" and config.engine == "millrace":
        from millrace.collect.ray_session import begin_early

        begin_early(config)
    from millrace.training import train  # after the settings are found good: it takes a second

    result = train(
        config,
        init_from=arguments.init_from,
        trust=arguments.trust,
        auto_resume=arguments.auto_resume,
        quiet=arguments.quiet,
    )
    return report(result, arguments)


def _run_seeds(config: Config, arguments: argparse.Namespace) -> int:
    seeds = parse_seeds(arguments.seeds)
    from millrace.experiments.seeds import train_seeds

    parallel = 1 if arguments.parallel is None else arguments.parallel
    result = train_seeds(config, seeds=seeds, parallel=parallel, init_from=arguments.init_from, quiet=arguments.quiet)
    if arguments.json:
        print_json({"result": {"run_dir": str(result.run_dir), **result.plain()}})
    elif not arguments.quiet:
        print_seeds(result)
    return result.exit_code


def output_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `--json` means as a setting."""
    return {"metrics.console": "json"} if arguments.json else {}


def report(result: Result, arguments: argparse.Namespace) -> int:
    """What came of it, and what to do next."""
    if arguments.json:
        print_json({"result": vars(result)})
    elif not arguments.quiet:
        print()
        print_table(result_rows(result))
        print_next(result)
    return INTERRUPTED if result.interrupted else 0


def result_rows(result: Result) -> list[tuple[str, str]]:
    """The result as rows of a table."""
    return [
        ("run", str(result.run_dir)),
        ("ended", result.reason),
        ("steps", f"{result.env_steps:,} in {result.updates:,} updates and {result.episodes:,} episodes"),
        ("return", f"{number(result.mean_return)} (mean of the last 100 training episodes)"),
        ("speed", f"{result.steps_per_second:,.0f} steps/s"),
        ("wall", seconds(result.wall_s)),
    ]


def print_next(result: Result) -> None:
    """Commands to try now."""
    from millrace.deploy.rllib_checkpoint import find_rllib

    trust = " --trust" if find_rllib(result.run_dir) else ""
    print("\nnext:")
    print_table(
        [
            (f"  millrace eval {result.run_dir}{trust}", "how good it is without exploring"),
            (f"  millrace play {result.run_dir}{trust}", "watch a game"),
            (f"  millrace resume {result.run_dir}{_lifted_limit(result)}", "train on"),
        ]
    )


def _lifted_limit(result: Result) -> str:
    """The option without which a resumed run would end at once for the same reason."""
    if result.reason == "complete":
        return f" --total-env-steps {result.env_steps * 2}"
    if result.reason.startswith("stop."):
        limit = result.reason.partition("=")[0]
        return f" --{limit} {'none' if limit == 'stop.mean_return' else 0}"
    return ""
