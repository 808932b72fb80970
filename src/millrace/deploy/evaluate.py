"""How good a policy is: whole episodes on given seeds, and what they say of all others."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

from millrace import system
from millrace.config import EnvConfig
from millrace.deploy import statistics
from millrace.deploy.episodes import Lanes, Played, Task, policy_choice
from millrace.deploy.policy import LoadedPolicy, load_policy
from millrace.deploy.recorded_games import RecordedGame, Start, read_start, write_games
from millrace.envs.make import EnvMaker
from millrace.errors import ConfigError
from millrace.types import Array, EpisodeRecord

PATIENCE_S = 2.0
"""An evaluation begins in this process; after so long, what is left may be worth starting others."""
WORTH_S = 3.0
"""How long the rest must take in this process for that."""


@dataclass(frozen=True)
class Evaluation:
    """The episodes that were played, in the order of their seeds.

    Attributes:
        games: their actions, where these were asked for.
    """

    episodes: list[EpisodeRecord]
    games: list[RecordedGame]

    @property
    def returns(self) -> Array:
        """[N] undiscounted returns."""
        return np.array([episode.episode_return for episode in self.episodes])

    @property
    def mean_return(self) -> float:
        return float(self.returns.mean())

    @property
    def deviation(self) -> float:
        """The sample standard deviation of the returns; NaN for one alone."""
        return statistics.deviation(self.returns)

    @property
    def confidence_interval(self) -> tuple[float, float]:
        """Where the mean return lies, at 95 %, by the bootstrap; NaN for one episode alone."""
        return statistics.mean_interval(self.returns)

    @property
    def best(self) -> int:
        """The index of the episode with the highest return; of equals the first."""
        return int(self.returns.argmax())

    @property
    def worst(self) -> int:
        """The index of the episode with the lowest return; of equals the first."""
        return int(self.returns.argmin())

    def figure(self, name: str) -> Array:
        """[N] of one of the game's own figures."""
        return np.array([episode.figures.get(name, np.nan) for episode in self.episodes])


def evaluate(
    policy: LoadedPolicy | str | Path,
    env: str | Callable[..., Any] | None = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    env_kwargs: dict[str, Any] | None = None,
    record: str | Path | None = None,
    keep_games: bool = False,
    start: Start | str | None = None,
    parallel: int | None = None,
    on_episode: Callable[[int, EpisodeRecord], None] | None = None,
) -> Evaluation:
    """Play episodes with seeds seed, seed + 1, ...

    Args:
        policy: loaded, or where to load it from.
        env: id or callable; None for the one that the policy was trained on.
        record: a file to write the games to, from which `imitate.player` plays them again.
        keep_games: whether the result holds the games too.
        start: GAMES.jsonl:EPISODE:STEP, a state in a recorded game from which every episode begins; returns and
            lengths count from there on.
        parallel: processes; None for as many as are worth their start. The result does not depend on it.
        on_episode: told the index and the record of each episode as it ends.

    Raises:
        ConfigError: an argument is wrong, or a file cannot be read or written. EnvError: the environment broke its
            contract. WorkerError: a process of the evaluation was lost.
    """
    loaded = policy if isinstance(policy, LoadedPolicy) else load_policy(policy)
    task = Task(
        policy_choice(loaded.actor, deterministic, seed),
        maker_for(loaded, env).with_kwargs(**(env_kwargs or {})),
        episodes,
        seed,
        keep_games or record is not None,
        read_start(start) if isinstance(start, str) else start,
    )
    played = _play(task, parallel, on_episode)
    games = [one.game for one in played if one.game is not None]
    if record is not None:
        write_games(record, games)
    return Evaluation([one.record for one in played], games)


def maker_for(policy: LoadedPolicy, env: str | Callable[..., Any] | None) -> EnvMaker:
    """The environment that the policy was trained on, with its arguments and wrappers, or another one."""
    if env is None:
        return EnvMaker(policy.env)
    if isinstance(env, str):
        return EnvMaker(EnvConfig(env, frame_stack=policy.env.frame_stack))
    return EnvMaker(policy.env, env)


def _play(task: Task, parallel: int | None, on_episode: Callable[[int, EpisodeRecord], None] | None) -> list[Played]:
    """Every episode, in the order of their indices."""
    played: dict[int, Played] = {}
    # One thread, as other processes have it: the last bits of a product may depend on their number.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        for ended in _shared(task, parallel):
            for one in ended:
                if one.index not in played and on_episode is not None:
                    on_episode(one.index, one.record)
                played[one.index] = one
    return [played[index] for index in sorted(played)]


def _shared(task: Task, parallel: int | None) -> Iterator[list[Played]]:
    """The episodes as they end, some of them twice where others take over from this process."""
    if task.episodes < 1 or (parallel is not None and parallel < 1):
        raise ConfigError(f"episodes={task.episodes} and parallel={parallel} must be 1 or more")
    lanes = Lanes.of(task.episodes)
    processes = min(parallel or system.available_cores(), len(lanes.tiles))
    if processes == 1 or multiprocessing.current_process().daemon:  # which may start no others
        return task.play(lanes)
    if parallel is None:
        return _handed_over(task, lanes, processes)
    return _in_processes(task, lanes, processes)


def _in_processes(task: Task, lanes: Lanes, processes: int) -> Iterator[list[Played]]:
    from millrace.deploy.processes import Parcel, play_in_processes

    return play_in_processes(Parcel(task), lanes.split(processes))


def _handed_over(task: Task, lanes: Lanes, processes: int) -> Iterator[list[Played]]:
    """Play here, where that is soon done; else others begin anew, and play what was played here as it was."""
    begin_s, num_ended = time.perf_counter(), 0
    playing = task.play(lanes)
    for ended in playing:
        yield ended
        num_ended += len(ended)
        gone_s = time.perf_counter() - begin_s
        if gone_s > PATIENCE_S:
            break
    else:
        return
    is_long = gone_s * (lanes.episodes - num_ended) > WORTH_S * num_ended
    try:
        others = _in_processes(task, lanes, processes) if is_long else playing
    except ConfigError:  # it cannot be shared
        others = playing
    if others is not playing:
        playing.close()
    yield from others
