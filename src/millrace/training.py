"""The loop, and the two calls that run it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.checkpoints.store import Checkpoint, find_checkpoints
from millrace.composer import Extras
from millrace.config import SHORT_NAMES, Config
from millrace.deploy.policy import find_policy
from millrace.deploy.rllib_checkpoint import RllibCheckpoint, find_rllib
from millrace.envs.make import EnvMaker
from millrace.errors import ConfigError, WorkerError
from millrace.run import Run
from millrace.rundir import RunDirectory, find_checkpoint, newest_run
from millrace.stop_signal import STOPPED_BY


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        mean_return: of the last 100 training episodes; nan where none finished.
        wall_s: seconds of the run; steps_per_second leaves out its start.
        reason: why it ended.
    """

    run_dir: Path
    env_steps: int
    updates: int
    episodes: int
    mean_return: float
    wall_s: float
    steps_per_second: float
    reason: str

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it; all up to the last update is saved."""
        return self.reason.startswith(STOPPED_BY)

    @property
    def policy(self) -> Any:
        """The trained policy, loaded from the last checkpoint; see `millrace.load_policy`."""
        from millrace.deploy.policy import load_policy

        return load_policy(self.run_dir, trust=True)  # what this process wrote


def loop(run: Run) -> None:
    """Collect, learn, publish, until the run is complete or asked to stop."""
    while not run.is_complete and not run.stopping:
        batch = run.source.next_batch(run.should_stop)  # T steps x B slots, collected under old policies
        if batch is None:
            break
        if batch.is_empty:
            run.updates_skipped += 1  # every worker was lost: nothing to learn from
            continue
        # Targets; K epochs of clipped minibatch descent. While a device computes, what arrives is taken in.
        stats = run.learner.update(batch, run.env_steps, run.source.take_in)
        run.publish()
        run.source.feedback(batch)
        run.record(batch, stats)
        run.evaluate_if_due()
        run.checkpoint_if_due()


def execute(run: Run) -> Result:
    """Open the run, loop, and end it whole: a worker crisis still leaves a checkpoint."""
    with run:
        run.announce()
        begin_s, begin_steps = time.perf_counter(), run.env_steps
        try:
            loop(run)
        except WorkerError:
            run.stopping = "worker failures"
            run.record_faults()
            run.finish()
            raise
        trained_s = time.perf_counter() - begin_s
        run.finish()
        return Result(
            run_dir=run.directory.path,
            env_steps=run.env_steps,
            updates=run.learner.updates,
            episodes=run.episodes,
            mean_return=run.mean_return,
            wall_s=run.wall_s,
            steps_per_second=(run.env_steps - begin_steps) / max(trained_s, 1e-9),
            reason=run.stopping or "complete",
        )


def make_config(
    env: str | Callable[..., Any] | Config, settings: Mapping[str, Any] | None = None, **short: Any
) -> tuple[Config, EnvMaker]:
    """Settings and environment maker from an id, a callable or a config, overruled by settings and short names.

    Raises:
        ConfigError: an unknown name, with the nearest one, or a bad value.
    """
    config = env if isinstance(env, Config) else Config()
    if isinstance(env, str):
        config = Config.named(env)
    unknown = [name for name in short if name not in SHORT_NAMES]
    if unknown:
        raise ConfigError(f"there is no argument {unknown[0]!r}; have {', '.join(SHORT_NAMES)}, or settings={{...}}")
    overrules = {
        SHORT_NAMES[name]: str(value) if name == "run_dir" and value else value for name, value in short.items()
    }
    config = config.replace({**(settings or {}), **{k: v for k, v in overrules.items() if v is not None}})
    if not callable(env):
        return config, EnvMaker(config.env)
    # Named, so that resume, eval and replay can find it again where it can be imported.
    config = config.replace({"env.id": f"{env.__module__}:{getattr(env, '__qualname__', type(env).__name__)}"})
    return config, EnvMaker(config.env, env)


def train(
    env: str | Callable[..., Any] | Config,
    *,
    settings: Mapping[str, Any] | None = None,
    network: Any = None,
    intrinsic: Callable[..., Any] | None = None,
    auxiliary: Callable[..., Any] | None = None,
    init_from: str | Path | None = None,
    trust: bool = False,
    auto_resume: bool = False,
    quiet: bool = False,
    **short: Any,
) -> Result:
    """Train an agent.

    Args:
        env: a Gymnasium id, `module:function`, a TOML file, a callable that makes an environment, or a `Config`.
        settings: dotted names, for example `{"ppo.clip": 0.1}`.
        network: an `nn.Module` to use instead of the default; see `millrace.nets.policy.Network`.
        intrinsic: from the `SlotSpec` to a reward beside the game's; see `millrace.learner.intrinsic.Intrinsic`.
        auxiliary: from the `Policy` to a loss beside PPO's; see `millrace.learner.auxiliary.Auxiliary`.
        init_from: run or checkpoint whose weights and normalisers to start from.
        trust: whether `init_from` may be one of RLlib's checkpoints, which are pickles.
        auto_resume: continue `run_dir` where it holds a checkpoint.
        quiet: print nothing, whatever `metrics.console` says.
        **short: total_env_steps, seed, backend, workers, envs_per_worker, max_policy_lag, device, run_dir, ...

    Raises:
        MillraceError: one of its kinds; every message says what to do.
    """
    started_s = time.perf_counter()
    config, maker = make_config(env, settings, **short)
    if config.engine == "rllib":
        given = {"network": network, "intrinsic": intrinsic, "auxiliary": auxiliary, "init_from": init_from}
        return _train_with_rllib(config, maker, quiet, started_s, given, auto_resume)
    resume_from = newest_of(config.run_dir) if auto_resume else None
    _refuse_overwriting(config, resume_from)
    if init_from is not None and config.imitate.player:
        raise ConfigError(f"init_from={init_from} and imitate.player={config.imitate.player} are two starts; give one")
    start = _start(init_from, trust) if init_from is not None and resume_from is None else None
    run = Run(config, maker, network, resume_from, start, quiet, started_s, Extras(intrinsic, auxiliary))
    return execute(run)


def resume(
    run_dir: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    network: Any = None,
    intrinsic: Callable[..., Any] | None = None,
    auxiliary: Callable[..., Any] | None = None,
    env: Callable[..., Any] | None = None,
    quiet: bool = False,
    **short: Any,
) -> Result:
    """Continue a run from its newest whole checkpoint, with some settings changed if wanted.

    Args:
        run_dir: a run, a checkpoint of one, or None for the newest run.
        network, intrinsic, auxiliary: what `train` was given, where it was given any.
        env: the callable that made the environment, where it was one.
    """
    started_s = time.perf_counter()
    engine_run = rllib_run(run_dir)
    if engine_run is not None:
        checkpoint_path, directory = engine_run
        config, maker = make_config(directory.read_config(), settings, **short)
        config = dataclasses.replace(config, run_dir=str(directory.path))
        return execute_rllib(config, EnvMaker(config.env, env), quiet, started_s, checkpoint_path)
    config, maker, checkpoint, problems = prepare_resume(run_dir, settings, env, **short)
    extras = Extras(intrinsic, auxiliary)
    run = Run(config, maker, network, checkpoint, quiet=quiet, started_s=started_s, extras=extras)
    run.add_notes(problems)
    return execute(run)


def rllib_run(run_dir: str | Path | None) -> tuple[Path, RunDirectory] | None:
    """The checkpoint to go on from and its run, where RLlib trained it; None for runs of Millrace's own."""
    where = Path(run_dir) if run_dir else newest_run()
    place = where if (where / "config.toml").is_file() else where.parent.parent
    if not (place / "config.toml").is_file() or RunDirectory(place).read_config().engine != "rllib":
        return None
    from millrace.rllib.checkpoints import newest_checkpoint

    return newest_checkpoint(where), RunDirectory(place)


def _train_with_rllib(
    config: Config, maker: EnvMaker, quiet: bool, started_s: float, given: Mapping[str, Any], auto_resume: bool
) -> Result:
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f'{name}=... is of Millrace\'s own training; engine="rllib" takes settings alone')
    from millrace.rllib.checkpoints import checkpoints_of

    found = checkpoints_of(RunDirectory(Path(config.run_dir))) if config.run_dir else []
    if found and not auto_resume:
        raise ConfigError(f"{config.run_dir} already holds a run; use `millrace resume`, or choose another --run-dir")
    return execute_rllib(config, maker, quiet, started_s, found[-1] if found else None)


def execute_rllib(
    config: Config, maker: EnvMaker, quiet: bool, started_s: float, resume_from: Path | None = None
) -> Result:
    """The same as `execute`, with RLlib at work."""
    from millrace.rllib.engine import RllibRun

    with RllibRun(config, maker, quiet, started_s, resume_from) as run:
        run.announce()
        run.loop()
        steps_per_second = run.steps_per_second
        run.finish()
        counters = run.counters
        return Result(
            run_dir=run.directory.path,
            env_steps=counters.env_steps,
            updates=counters.updates,
            episodes=counters.episodes,
            mean_return=float("nan") if counters.mean_return is None else counters.mean_return,
            wall_s=run.wall_s,
            steps_per_second=steps_per_second,
            reason=run.stopping or "complete",
        )


def prepare_resume(
    run_dir: str | Path | None, settings: Mapping[str, Any] | None, env: Callable[..., Any] | None = None, **short: Any
) -> tuple[Config, EnvMaker, Checkpoint, list[str]]:
    """What a resumed run starts from, and what was wrong with newer checkpoints."""
    checkpoint = find_checkpoint(run_dir)
    directory = RunDirectory(checkpoint.path.parent.parent)
    newest, problems = directory.newest_checkpoint()
    is_named = run_dir is not None and Path(run_dir).resolve() == checkpoint.path.resolve()
    config, _ = make_config(directory.read_config(), settings, **short)
    config = dataclasses.replace(config, run_dir=str(directory.path))
    return config, EnvMaker(config.env, env), checkpoint if is_named else newest, problems


def newest_of(run_dir: str) -> Checkpoint | None:
    """The newest whole checkpoint of a directory, or None where it holds none."""
    if not run_dir:
        raise ConfigError("auto-resume needs a run directory: --run-dir DIR")
    directory = RunDirectory(Path(run_dir))
    return directory.newest_checkpoint()[0] if find_checkpoints(directory.checkpoints) else None


def _start(init_from: str | Path, trust: bool) -> Checkpoint | RllibCheckpoint:
    """The checkpoint whose weights a run begins with."""
    if find_rllib(init_from) is None:
        return find_checkpoint(init_from)
    found = find_policy(init_from, trust)
    assert isinstance(found, RllibCheckpoint)
    return found


def _refuse_overwriting(config: Config, resume_from: Checkpoint | None) -> None:
    if resume_from is None and config.run_dir and find_checkpoints(Path(config.run_dir) / "checkpoints"):
        raise ConfigError(
            f"{config.run_dir} already holds a run; continue it with `millrace resume {config.run_dir}` or "
            "--auto-resume, or choose another --run-dir"
        )
