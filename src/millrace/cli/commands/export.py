"""`millrace export`."""

from __future__ import annotations

from pathlib import Path

from millrace.cli.main import COMMANDS
from millrace.cli.output import print_json
from millrace.cli.parser import Parser, add_trust

EXAMPLES = """\
  millrace export runs/mine policy.millrace         weights, normalisers and description, to be loaded anywhere
  millrace export runs/mine policy.onnx             a graph for ONNX Runtime, in any language; needs millrace[onnx]
  millrace export runs/mine/checkpoints/step_000000100000 early.millrace

Both are loaded by millrace.load_policy(FILE), and taken by eval, play and doctor in the place of RUN."""


def parser() -> Parser:
    """The options of `export`."""
    options = Parser("export", f"{COMMANDS['export'].capitalize()}.", EXAMPLES)
    options.add_argument("run", metavar="RUN", help="a run, a checkpoint or an archive")
    options.add_argument("out", metavar="FILE", help="NAME.millrace or NAME.onnx")
    options.add_argument("--network", metavar="MODULE:NAME", help="what makes your own network, where you trained one")
    add_trust(options)
    options.add_argument("--json", action="store_true", help="one JSON object")
    return options


def run(words: list[str]) -> int:
    """Export."""
    arguments = parser().parse(words)
    from millrace.deploy.export import export_policy

    done = export_policy(arguments.run, arguments.out, network=_network(arguments.network), trust=arguments.trust)
    size_bytes = done.path.stat().st_size
    if arguments.json:
        print_json({**vars(done), "bytes": size_bytes})
        return 0
    print(f"{done.path}: {size_bytes / 1000:,.0f} kB, the policy of {done.source}")
    if done.path.suffix == ".onnx":
        print(f"compared with the policy on 1000 observations: the largest difference is {done.difference:.2g}")
    print(f"\nnext:\n  millrace eval {_short(done.path)}\n  millrace.load_policy({str(_short(done.path))!r}).act(obs)")
    return 0


def _network(path: str | None) -> object:
    if path is None:
        return None
    from millrace.envs.make import load_object

    return load_object(path, "--network")()


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
