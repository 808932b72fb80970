"""The life of a worker process: build, then collect what is granted until told to stop.

Messages from the parent: ("collect", place, options, version), ("save",), ("load", state, lanes, spare lanes), or
("close",).
Messages to the parent: ("ready", exactness), ("finished", place, Collected), ("state", state), ("loaded", problem),
("failed", message, traceback, whether the environment broke its contract, which a restart does not mend).
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from millrace import system
from millrace.collect.exchange import Exchange
from millrace.collect.setup import Blocks, Lane, WorkerSetup
from millrace.collect.workplace import Workplace
from millrace.errors import EnvError

ORPHAN_CHECK_S = 2.0


def worker_main(
    setup: WorkerSetup, blocks: Blocks, exchange: Exchange | None, makers: bytes, connection: Connection
) -> None:
    """Entry point of the process.

    Args:
        makers: of environment and actor, pickled by value: functions of a notebook or script travel too.
    """
    # Ctrl-C reaches the whole group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(os.getppid())
    system.lower_priority(setup.nice)
    try:
        env_maker, actor_maker = cloudpickle.loads(makers)
        workplace = Workplace(setup, blocks, env_maker, actor_maker, exchange)
        connection.send(("ready", workplace.exactness))
        _serve(workplace, connection)
        workplace.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone: so are we
    except Exception as error:
        report(connection, error)


def _serve(workplace: Workplace, connection: Connection) -> None:
    idle_since = time.perf_counter()
    while True:
        message: tuple[Any, ...] = connection.recv()
        match message:
            case ("collect", place, options, version):
                waited_s = time.perf_counter() - idle_since
                collected = workplace.collect(place, options, version)
                collected.times.wait_s = waited_s
                connection.send(("finished", place, collected))
                idle_since = time.perf_counter()
            case ("save",):
                connection.send(("state", workplace.save_state()))
            case ("load", state, lanes, spare_lanes):
                connection.send(("loaded", load(workplace, state, lanes, spare_lanes)))
            case _:
                return


def load(workplace: Workplace, state: dict[str, Any], lanes: tuple[Lane, ...], spare: tuple[Lane, ...]) -> str:
    """What was wrong with the state, if anything; new episodes then begin, from the spare lanes' seeds."""
    try:
        workplace.load_state(state, lanes)
    except Exception as error:
        workplace.begin_anew(spare)
        return f"{type(error).__name__}: {error}"
    return ""


def report(connection: Connection, error: Exception) -> None:
    """Tell the parent what ended this process."""
    try:
        connection.send(
            ("failed", f"{type(error).__name__}: {error}", traceback.format_exc(), isinstance(error, EnvError))
        )
    except OSError:
        traceback.print_exc()


def exit_with_parent(parent: int) -> None:
    """A step that never returns must not outlive a killed trainer."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_S)
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="orphan-watch").start()
