"""Command line of the comparison: `python -m benchmarks.compare setup | run | show`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence

from benchmarks import harness
from benchmarks.compare.setup import environments, module_of, peers, python_of, set_up
from benchmarks.compare.works import WORKS, Work, works_named

LIST_TIMEOUT_S = 120.0


def main() -> None:
    """Parse and do."""
    arguments = _parser().parse_args()
    if arguments.command == "setup":
        for peer in arguments.peers:
            set_up(peer, arguments.again)
    elif arguments.command == "run":
        _run_all(arguments)
    else:
        for work in works_named(arguments.work):
            _show(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help="make the peers' virtual environments")
    setup.add_argument("--again", action="store_true", help="also those that are there")
    run = commands.add_parser("run", help="run works on all peers in turn")
    run.add_argument("--repeats", type=int, default=5)
    run.add_argument("--warmups", type=int, default=0, help="rounds before that are not kept")
    run.add_argument("--seconds", type=float, help="how long to measure (default: the work's own)")
    run.add_argument("--millrace-python", default=sys.executable, metavar="PATH", help="interpreter for millrace")
    run.add_argument("--dry", action="store_true", help="do not keep the results")
    show = commands.add_parser("show", help="print the tables of the kept results")
    names = sorted({work.name for work in WORKS} | {work.function for work in WORKS})
    for command in (run, show):
        command.add_argument("--work", default="", choices=names, help="default: all")
    for command, known in ((setup, environments()), (run, peers())):
        command.add_argument("--peers", type=_names_of(known), default=known, help=f"of {','.join(known)}")
    return parser


def _names_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = set(names) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"no peer {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return names

    return parse


def _run_all(arguments: argparse.Namespace) -> None:
    pythons = {peer: python_of(peer, arguments.millrace_python) for peer in arguments.peers}
    variants = {peer: _variants(peer, python) for peer, python in pythons.items()}
    for work in works_named(arguments.work):
        seconds = arguments.seconds or work.seconds
        candidates = [
            _candidate(work, peer, variant, pythons[peer], seconds)
            for peer in arguments.peers
            for variant in variants[peer].get(work.function, ())
        ]
        facts = harness.machine()
        runs = harness.alternate(candidates, arguments.repeats, work.timeout_s(seconds), arguments.warmups)
        if not arguments.dry:
            harness.save(_results_name(work), runs, machine=facts)
        _print(work, runs, facts)


def _variants(peer: str, python: str) -> dict[str, list[str]]:
    """The works of a peer with their variants. Asking also warms the disk: every library is read once."""
    command = [python, "-m", module_of(peer), "--list"]
    done = subprocess.run(
        command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=LIST_TIMEOUT_S
    )
    variants: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return variants


def _candidate(work: Work, peer: str, variant: str, python: str, seconds: float) -> harness.Candidate:
    script = (python, "-m", module_of(peer), work.function, variant)
    return harness.Candidate(f"{peer} {variant}", (*script, *work.arguments(seconds)), work.cold_caches)


def _results_name(work: Work) -> str:
    return f"compare-{work.name}"


def _show(work: Work) -> None:
    try:
        runs, facts = harness.load(_results_name(work))
    except FileNotFoundError:
        harness.say(f"{work.name}: not run yet")
        return
    _print(work, runs, facts["machine"])


def _print(work: Work, runs: Sequence[harness.Run], facts: dict[str, object]) -> None:
    print(f"{work.name}: {harness.machine_line(facts)}\n\n{harness.table(runs, work.columns)}\n", flush=True)


if __name__ == "__main__":
    main()
