"""Who may know whom: the table of rooms in docs/architecture.md, checked by reading the imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
PACKAGE = SRC / "millrace"
ALL = "*"
# Room: the rooms that it may import. What stands here as a room may be a folder or a single file.
KNOWS: dict[str, set[str] | str] = {
    "errors": set(),
    "types": {"errors"},
    "curriculum": {"types"},
    "interval": set(),
    "logbook": {"errors", "config", "metrics", "rundir"},
    "stop_rules": {"config"},
    "config": {"errors", "types"},  # types for `require`
    "system": {"errors"},
    "ops": {"types"},
    "compiled": set(),
    "games": {"types", "compiled"},
    "nets": {"types", "ops", "config", "errors"},
    "envs": {"types", "games", "config", "errors"},
    "buffer": {"types", "system", "compiled", "config"},
    "collect": {"types", "errors", "config", "system", "envs", "nets", "ops", "buffer"},
    "learner": {"types", "errors", "config", "system", "compiled", "ops", "nets", "buffer"},
    "checkpoints": {"types", "errors", "config", "system"},
    "metrics": {"types", "errors"},
    "players": {"types", "errors", "games", "envs", "collect", "deploy"},
    "experiments": {"types", "errors", "config", "system", "metrics", "deploy", "rundir", "stop_signal", "training"},
    "doctor": {
        "types",
        "errors",
        "config",
        "system",
        "nets",
        "ops",
        "checkpoints",
        "envs",
        "rundir",
        "collect",
        "deploy",
        "metrics",
    },
    "deploy": {"types", "errors", "config", "system", "nets", "ops", "checkpoints", "envs", "rundir", "collect"},
}
# Optional library: the only file that may name it, and there inside functions only.
OPTIONAL = {
    "tensorboard": {"metrics/tensorboard.py"},
    "imageio": {"deploy/play.py"},
    "PIL": {"deploy/panel.py", "deploy/play.py", "experiments/picture.py", "games/realm/render.py"},
    "pygame": set(),
    "ale_py": {"envs/atari.py"},
    "envpool": {"envs/envpool.py"},
    "onnxruntime": {"deploy/onnx_policy.py"},
    "onnx_ir": {"deploy/onnx_export.py"},
    "ray": {
        *(f"collect/{name}.py" for name in ("ray_session", "ray_host", "ray_board", "ray_inference", "ray_actors")),
        "metrics/ray_metrics.py",
        "deploy/rllib_module.py",
        *(f"rllib/{name}.py" for name in ("envs", "algorithm")),
    },
    "wandb": set(),
    "zmq": set(),
    "psutil": set(),
}
TORCH_FREE_ROOMS = [
    "compiled",
    "envs",
    "games",
    "collect",
    "buffer",
    "checkpoints",
    "config",
    "types",
    "errors",
    "system",
    "metrics",
    "experiments",
]


@dataclass(frozen=True)
class Import:
    """One imported module, and whether that happens only when a function runs or for the type checker."""

    file: str
    module: str
    is_lazy: bool


def imports_of(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy_nodes: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_checking:
            lazy_nodes |= set(ast.walk(node)) - {node}
    name = path.relative_to(PACKAGE).as_posix()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide the room"
            # `from millrace import system` names a room too.
            modules = (
                [f"millrace.{alias.name}" for alias in node.names] if node.module == "millrace" else [node.module or ""]
            )
        else:
            continue
        yield from (Import(name, module, node in lazy_nodes) for module in modules)


IMPORTS = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]


def room_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("room", KNOWS)
def test_a_room_knows_only_what_its_table_says(room):
    assert any(room_of(found.file) == room for found in IMPORTS), f"there is no room {room}"
    allowed = {room, "__version__", *KNOWS[room]}
    for found in IMPORTS:
        top, _, rest = found.module.partition(".")
        if room_of(found.file) == room and top == "millrace":
            assert rest.split(".")[0] in allowed, f"{found.file} imports {found.module}"


def test_every_room_is_in_the_table():
    composing = {
        "__init__",
        "run",
        "training",
        "imitation",
        "resolve",
        "describe",
        "watch",
        "rundir",
        "cli",
        "journal",
        "composer",
        "checkpointer",
        "publisher",
        "warm_start",
        "stop_signal",
        "rllib",
        "__main__",
    }
    rooms = {room_of(path.relative_to(PACKAGE).as_posix()) for path in PACKAGE.rglob("*.py")}
    assert rooms - composing == set(KNOWS)


def test_collecting_and_learning_meet_only_at_the_buffer_and_the_weights():
    for found in IMPORTS:
        pair = {room_of(found.file), *found.module.split(".")[1:2]}
        assert pair != {"collect", "learner"}, f"{found.file} imports {found.module}"


@pytest.mark.parametrize("room", TORCH_FREE_ROOMS)
def test_a_room_without_torch_does_not_name_it(room):
    for found in IMPORTS:
        if room_of(found.file) == room:
            assert found.module.split(".")[0] != "torch", f"{found.file} imports {found.module}"


@pytest.mark.parametrize("library", OPTIONAL)
def test_an_optional_library_is_named_in_its_own_file_only_and_on_use(library):
    for found in IMPORTS:
        if found.module.split(".")[0] == library:
            assert found.file in OPTIONAL[library], f"{found.file} imports {library}"
            assert found.is_lazy, f"{found.file} imports {library} before it is used"


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter that ran the code."""
    script = f"{code}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import millrace", {"numpy", "torch", "gymnasium", "numba", "rich"}),
        ("import millrace; dir(millrace); millrace.__version__", {"numpy", "torch", "gymnasium"}),
        ("import millrace.config", {"torch", "gymnasium", "numba"}),
        ("import millrace.envs.make", {"torch", "numba"}),
        ("import millrace.deploy.policy", {"torch", "numba"}),
        (
            "import millrace.collect.worker, millrace.collect.processes, millrace.collect.worker_pool",
            {"torch", "numba", "rich", "tensorboard"},
        ),
        ("import millrace.buffer.queue, millrace.buffer.slab", {"torch", "numba"}),
        ("import millrace.buffer.samplers, millrace.buffer.rate_limiter", {"torch", "numba"}),
        ("import millrace.training", {"tensorboard", "rich", "PIL", "imageio"}),
        ("import millrace.experiments.seeds, millrace.experiments.sweep", {"rich", "PIL", "tensorboard"}),
    ],
)
def test_importing_loads_no_more_than_is_used(code, unwanted):
    assert modules_after(code).isdisjoint(unwanted)


def test_a_worker_with_a_dense_policy_does_not_load_torch(run_dir):
    from helpers import libraries_of, opened

    with opened("CartPole-v1", run_dir, **{"collect.backend": "processes"}) as run:
        run.source.next_batch()
        for pid in run.source.pool.pids():
            assert not libraries_of(pid, "torch")
            assert libraries_of(pid, "numpy")


def test_a_worker_with_a_network_of_the_users_own_does(run_dir):
    """The same question where the answer is yes, so that the one above is known to be able to fail."""
    import torch

    from helpers import QUICK, libraries_of
    from millrace.config import Config
    from millrace.envs.make import EnvMaker
    from millrace.run import Run

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, observation):
            y = self.layer(observation["obs"])
            return y[:, :2], y[:, 2]

    sizes = {
        "collect.backend": "processes",
        "collect.workers": 1,
        "collect.envs_per_worker": 2,
        "collect.rollout_steps": 4,
    }
    config = Config().replace({**QUICK, **sizes, "run_dir": str(run_dir), "metrics.console": "off"})
    with Run(config, EnvMaker(config.env), Own()) as run:
        batch = run.source.next_batch()
        run.learner.update(batch, 0)
        assert libraries_of(run.source.pool.pids()[0], "torch")


def test_loading_and_evaluating_a_policy_in_a_fresh_process_needs_no_torch(run_dir):
    from helpers import quick_train

    quick_train("CartPole-v1", run_dir, {"stop.updates": 1}, backend="serial")
    code = f"import millrace; millrace.evaluate({str(run_dir)!r}, episodes=2).mean_return"
    assert "torch" not in modules_after(code)
