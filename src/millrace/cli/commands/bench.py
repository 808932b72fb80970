"""`millrace bench scaling` and `millrace bench repeat`."""

from __future__ import annotations

import argparse

from millrace.cli.main import COMMANDS
from millrace.cli.output import number, print_json, print_table
from millrace.cli.parser import Parser
from millrace.cli.scaling import ScalingPoint, measure_scaling
from millrace.cli.settings import parse_words
from millrace.config import Config

EXAMPLES = """\
  millrace bench scaling CartPole-v1
  millrace bench scaling my_game:make_env --workers 1,2,4 --seconds 20 -- --max-policy-lag 1
  millrace bench repeat CartPole-v1

What follows -- are settings as `millrace train` takes them. `repeat` ends with exit code 1 if a run does not repeat.
Comparisons with other libraries are in benchmarks/ of the repository."""

HEADER = ("workers", "steps/s", "speed-up", "episodes/hour", "memory (PSS)", "CPU")
NOT_REPEATED = 1


def parser() -> Parser:
    """The options of `bench`."""
    options = Parser("bench", f"{COMMANDS['bench'].capitalize()}.", EXAMPLES)
    options.add_argument(
        "what",
        choices=["scaling", "repeat"],
        help="scaling: train briefly with each number of workers, learning included; "
        "repeat: train a few updates again and again, and compare what was learned bit for bit",
    )
    options.add_argument(
        "env", metavar="ENV", help="what `millrace train` takes: an id, MODULE:FUNCTION, TOML, a recipe"
    )
    options.add_argument("--workers", default="1,2,4,8,16", metavar="INT,...", help="numbers of workers [1,2,4,8,16]")
    options.add_argument(
        "--seconds", type=float, default=15.0, metavar="FLOAT", help="for each run, start included [15]"
    )
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    return options


def run(words: list[str]) -> int:
    """Measure."""
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser().parse(words[:cut])
    config = parse_words(Config.named(arguments.env), words[cut + 1 :])  # a wrong name is told at once
    if arguments.what == "repeat":
        return _repeat(config, arguments)
    return _scaling(arguments, words[cut + 1 :])


def _scaling(arguments: argparse.Namespace, settings: list[str]) -> int:
    try:
        counts = [int(word) for word in arguments.workers.split(",")]
    except ValueError:
        parser().error(f"--workers {arguments.workers!r} must be numbers with commas, for example 1,2,4")
    points: list[ScalingPoint] = []
    for workers in counts:
        points.append(measure_scaling(arguments.env, workers, arguments.seconds, settings))
        if arguments.json:
            print_json(vars(points[-1]))
    if not arguments.json:
        print_table([_row(point, points[0]) for point in points], HEADER)
    return 0


def _row(point: ScalingPoint, first: ScalingPoint) -> list[str]:
    return [
        str(point.workers),
        f"{point.steps_per_second:,.0f}",
        f"{point.steps_per_second / first.steps_per_second:.2f}",
        number(point.episodes_per_hour),
        f"{point.memory_mb:,.0f} MB",
        f"{point.cpu_share:.0%}",
    ]


def _repeat(config: Config, arguments: argparse.Namespace) -> int:
    from millrace.cli.repeat import UPDATES, measure_repetition

    found = measure_repetition(config)
    if arguments.json:
        print_json({"repeats": found.repeats, "weights": found.weights, "beginnings": found.beginnings})
        return 0 if found.repeats else NOT_REPEATED
    first = next(iter(found.weights.values()))
    print_table(
        [(run, digest, "same" if digest == first else "other") for run, digest in found.weights.items()],
        (f"weights after {UPDATES} updates", "digest", ""),
    )
    print()
    print_table(
        [(f"worker {worker}", digest) for worker, digest in enumerate(found.beginnings)],
        ("first observations", "digest"),
    )
    alike = len(set(found.beginnings)) < len(found.beginnings)
    print(f"\n{'the run repeats' if found.repeats else 'the run does NOT repeat'}", end="; ")
    print("the game begins alike for every worker, whose actions differ" if alike else "its workers differ")
    return 0 if found.repeats else NOT_REPEATED
