"""`millrace bench scaling`."""

from __future__ import annotations

from millrace.cli.main import COMMANDS
from millrace.cli.output import number, print_json, print_table
from millrace.cli.parser import Parser
from millrace.cli.scaling import ScalingPoint, measure_scaling
from millrace.config import Config

EXAMPLES = """\
  millrace bench scaling CartPole-v1
  millrace bench scaling my_game:make_env --workers 1,2,4 --seconds 20 -- --max-policy-lag 1

What follows -- goes to `millrace train`. Comparisons with other libraries are in benchmarks/ of the repository."""


def parser() -> Parser:
    """The options of `bench`."""
    options = Parser("bench", f"{COMMANDS['bench'].capitalize()}.", EXAMPLES)
    options.add_argument(
        "what", choices=["scaling"], help="train briefly with each number of workers, learning included"
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
    options = parser()
    arguments = options.parse(words[:cut])
    try:
        workers = [int(word) for word in arguments.workers.split(",")]
    except ValueError:
        options.error(f"--workers {arguments.workers!r} must be numbers with commas, for example 1,2,4")
    Config.named(arguments.env)  # a wrong name is told at once
    points = []
    for count in workers:
        points.append(measure_scaling(arguments.env, count, arguments.seconds, words[cut + 1 :]))
        if arguments.json:
            print_json(vars(points[-1]))
    if not arguments.json:
        print_table([_row(point, points[0]) for point in points], HEADER)
    return 0


HEADER = ("workers", "steps/s", "speed-up", "episodes/hour", "memory (PSS)", "CPU")


def _row(point: ScalingPoint, first: ScalingPoint) -> list[str]:
    return [
        str(point.workers),
        f"{point.steps_per_second:,.0f}",
        f"{point.steps_per_second / first.steps_per_second:.2f}",
        number(point.episodes_per_hour),
        f"{point.memory_mb:,.0f} MB",
        f"{point.cpu_share:.0%}",
    ]
