"""Whether a run repeats, and whether its workers differ: short lock-step runs, compared by digest."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from millrace.checkpoints.store import Checkpoint
from millrace.collect.collector import EnvRows
from millrace.config import Config
from millrace.envs.make import EnvMaker
from millrace.envs.protocol import episode_seed
from millrace.training import train
from millrace.types import RolloutLayout

UPDATES = 5
WORKERS = 2
COPIES = 4


@dataclass(frozen=True)
class Repetition:
    """Digests of what was learned and seen.

    Attributes:
        weights: by description of the run.
        beginnings: the first observations of each worker.
    """

    weights: dict[str, str]
    beginnings: list[str]

    @property
    def repeats(self) -> bool:
        """Whether runs that should be alike are, and the one that should not be is not."""
        first, again, serial, other = self.weights.values()
        return first == again == serial != other


def measure_repetition(config: Config) -> Repetition:
    """Train a few updates four times: twice alike, once in one process, once with another seed."""
    collect = {"workers": WORKERS, "envs_per_worker": COPIES, "max_policy_lag": 0}
    alike = config.replace({"collect": collect, "stop": {"updates": UPDATES}, "total_env_steps": 10**9})
    seed = config.seed
    return Repetition(
        weights={
            f"processes, seed {seed}": _weights_after(alike.replace({"collect.backend": "processes"})),
            f"the same again, seed {seed}": _weights_after(alike.replace({"collect.backend": "processes"})),
            f"in one process, seed {seed}": _weights_after(alike.replace({"collect.backend": "serial"})),
            f"processes, seed {seed + 1}": _weights_after(
                alike.replace({"collect.backend": "processes", "seed": seed + 1})
            ),
        },
        beginnings=[_beginning(EnvMaker(config.env), episode_seed(seed, worker, 0)) for worker in range(WORKERS)],
    )


def _weights_after(config: Config) -> str:
    with tempfile.TemporaryDirectory(prefix="millrace-repeat-") as scratch:
        result = train(config.replace({"run_dir": str(Path(scratch, "run")), "metrics.tensorboard": False}), quiet=True)
        (path,) = (result.run_dir / "checkpoints").glob("step_*")
        _, arrays = Checkpoint(path).read_policy()
    return _digest(*(arrays[name].tobytes() for name in sorted(arrays)))


def _beginning(maker: EnvMaker, stream_seed: int) -> str:
    env = maker.make(COPIES, stream_seed)
    layout = RolloutLayout(env.spec, 1, COPIES, env.same_step_reset)
    row = EnvRows(layout.allocate(), layout).rows[0]
    env.reset(row)
    digest = _digest(*(array.tobytes() for array in row.observation.values()))
    env.close()
    return digest


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]
