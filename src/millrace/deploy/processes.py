"""Episodes played in several processes, each watched: nothing waits for one that has died or hangs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection as mp_connection
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium as gym

from millrace import system
from millrace.collect.processes import bare_main
from millrace.collect.worker import exit_with_parent
from millrace.deploy.episodes import Lanes, Played, Task
from millrace.envs.envpool import is_envpool
from millrace.envs.make import EnvMaker
from millrace.errors import ConfigError, EnvError, WorkerError

SIGN_OF_LIFE_S = 1.0
START_TIMEOUT_S, STEP_TIMEOUT_S = 120.0, 120.0
EXIT_TIMEOUT_S = 2.0
WATCH_INTERVAL_S = 1.0
ALONE = "--parallel 1 (in Python: parallel=1) plays in this process"


class Parcel:
    """A task packed for other processes.

    Raises:
        ConfigError: it cannot be shared.
    """

    def __init__(self, task: Task) -> None:
        if _draws_its_own_seeds(task.maker):
            raise ConfigError(
                "a vector environment of your own, or EnvPool's, draws its own seeds, so that its episodes cannot be "
                f"shared among processes; {ALONE}"
            )
        try:
            self.content: bytes = cloudpickle.dumps(task)
        except Exception as error:
            raise ConfigError(
                f"the environment factory or network cannot be sent to other processes ({error}); {ALONE}"
            ) from error


def _draws_its_own_seeds(maker: EnvMaker) -> bool:
    if is_envpool(maker.config.id):
        return True
    if maker.factory is None and ":" not in maker.config.id and not maker.config.wrappers:
        return False  # registered environments take seeds
    env = maker.make_single()
    env.close()
    return isinstance(env, gym.vector.VectorEnv)


def play_in_processes(parcel: Parcel, shares: list[Lanes]) -> Iterator[list[Played]]:
    """The episodes of every share, each played in a process of its own, as they end.

    Raises:
        WorkerError: a process died, hung or raised. EnvError: the environment broke its contract.
    """
    players = [_Player(number, share) for number, share in enumerate(shares)]
    try:
        for player in players:
            player.start(parcel)
        while any(not player.is_done for player in players):
            yield from _wait([player for player in players if not player.is_done])
    finally:
        for player in players:
            player.close()


def _wait(players: list[_Player]) -> Iterator[list[Played]]:
    """What came from the players within a while."""
    handles = [handle for player in players for handle in (player.connection, player.process.sentinel)]
    ready = mp_connection.wait(handles, WATCH_INTERVAL_S)
    for player in players:
        if player.connection in ready or player.process.sentinel in ready:
            yield from player.receive()
        player.check_deadline()


@dataclass
class _Player:
    """One process and its share."""

    number: int
    share: Lanes
    process: Any = None
    connection: Any = None
    is_done: bool = False
    deadline_s: float = 0.0

    def start(self, parcel: Parcel) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        name = f"millrace-evaluation-{self.number}"
        self.process = context.Process(target=player_main, args=(theirs,), name=name, daemon=True)
        with bare_main(), system.environment(**dict.fromkeys(system.THREAD_VARIABLES, "1")):
            self.process.start()
        theirs.close()
        self.deadline_s = time.monotonic() + START_TIMEOUT_S
        with contextlib.suppress(OSError):  # its death is seen by whoever waits
            self.connection.send((parcel.content, self.share))

    def receive(self) -> Iterator[list[Played]]:
        """Everything that has arrived."""
        try:
            while not self.is_done and self.connection.poll():
                yield self._handle(self.connection.recv())
        except (EOFError, OSError):
            self.process.join(EXIT_TIMEOUT_S)  # its pipe closes a moment before its exit code is known
            raise self._lost(f"ended{_exit_reason(self.process.exitcode)}") from None

    def _handle(self, message: tuple[str, Any]) -> list[Played]:
        self.deadline_s = time.monotonic() + STEP_TIMEOUT_S
        match message:
            case ("played", played):
                return list(played)
            case ("refused", error):
                raise error
            case ("failed", text):
                raise self._lost(f"failed:\n\n{text.rstrip()}\n")
        self.is_done = True
        return []

    def check_deadline(self) -> None:
        if not self.is_done and time.monotonic() > self.deadline_s:
            raise self._lost(f"gave no sign of life within {STEP_TIMEOUT_S:g} s")

    def _lost(self, what: str) -> WorkerError:
        return WorkerError(f"the evaluation process {self.number} {what}; {ALONE}")

    def close(self) -> None:
        """End it, whatever it is doing."""
        if self.process is None:
            return
        self.connection.close()
        if self.is_done:
            self.process.join(EXIT_TIMEOUT_S)
        self.process.kill()
        self.process.join(EXIT_TIMEOUT_S)


def _exit_reason(code: int | None) -> str:
    if code is None:
        return ""
    return f" by signal {-code}" if code < 0 else f" with exit code {code}"


def player_main(connection: Connection) -> None:
    """Entry point of a process: takes a task and a share of it, and sends the episodes as they end."""
    # Ctrl-C reaches the whole group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(os.getppid())
    try:
        content, share = connection.recv()
        _play(cloudpickle.loads(content), share, connection)
        connection.send(("done", None))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone: so are we
    except Exception as error:
        connection.send(_report(error))


def _play(task: Task, share: Lanes, connection: Connection) -> None:
    sent_s = 0.0
    for ended in task.play(share):
        if ended or time.monotonic() - sent_s > SIGN_OF_LIFE_S:
            connection.send(("played", ended))
            sent_s = time.monotonic()


def _report(error: Exception) -> tuple[str, Any]:
    if isinstance(error, ConfigError | EnvError):
        return "refused", error
    return "failed", traceback.format_exc()
