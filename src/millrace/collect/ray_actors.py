"""What runs in Ray actors: a worker, and whoever acts for all of them.

They know nothing of each other but an address, and share no memory with the driver: what they are given comes as
arguments, what they have comes back as results.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import threadpoolctl

from millrace import system
from millrace.collect.collector import Collected
from millrace.collect.exchange import ExchangeLayout
from millrace.collect.inference import Teller
from millrace.collect.setup import (
    LANE_STEPS,
    Blocks,
    InferenceSetup,
    Lane,
    WorkerSetup,
    episodes_under_way,
    progress_words,
)
from millrace.collect.weights import WeightsBoard
from millrace.collect.wire import Address, Switchboard, WireExchange
from millrace.collect.worker import load
from millrace.collect.workplace import Workplace
from millrace.system import SharedBlock
from millrace.types import Array

SIDE = "side"  # a thread of an actor for what is asked while it collects or serves


class WorkerActor:
    """A worker. `look`, `remains` and `connect` are called beside whatever else it is doing."""

    def __init__(self) -> None:
        self._workplace: Workplace | None = None
        self._exchange: WireExchange | None = None
        self._blocks: Blocks | None = None
        self._address: Address | None = None
        self._idle_since = time.perf_counter()

    def place(self) -> int:
        """Where it is: the process id."""
        return os.getpid()

    def build(
        self,
        setup: WorkerSetup,
        makers: bytes,
        path: list[str],
        layout: ExchangeLayout | None,
        address: Address | None,
    ) -> str:
        """Make everything; how exactly the environment can be saved.

        Args:
            path: where the driver finds modules; what of it is there on this node is looked through too.
            layout: of questions, where somebody acts for all.
        """
        look_through(path)
        self._blas_limit = threadpoolctl.threadpool_limits(1, user_api="blas")
        system.lower_priority(setup.nice)
        self._setup = setup.alone
        self._blocks = Blocks.allocate(self._setup)
        self._board = WeightsBoard(self._blocks.weights.memory, setup.weights_size, 1)
        if layout is not None:
            self._exchange = WireExchange(layout, setup.worker)
            self._exchange.address = self._address or address  # `connect` may have come before
        self._progress = progress_words(self._blocks.progress, 1)[0]
        env_maker, actor_maker = cloudpickle.loads(makers)
        self._workplace = Workplace(self._setup, self._blocks, env_maker, actor_maker, self._exchange)
        self._idle_since = time.perf_counter()
        return self._workplace.exactness

    def collect(
        self, options: dict[str, Any] | None, version: int, weights: Array | None
    ) -> tuple[Array, Collected, int]:
        """One rollout as it lies in memory, what it gave besides, and the bytes of memory that this process has.

        Args:
            weights: of the policy that acts; None where they are here already, or somebody acts for all.
        """
        assert self._workplace is not None
        assert self._blocks is not None
        waited_s = time.perf_counter() - self._idle_since
        if weights is not None:
            self._board.publish(weights, version)
        collected = self._workplace.collect(0, options)
        collected.times.wait_s = waited_s
        self._idle_since = time.perf_counter()
        rollout = np.frombuffer(self._blocks.rollouts.memory, np.uint8)
        return rollout, collected, system.memory_rss_bytes(os.getpid())

    def save_state(self) -> dict[str, Any] | None:
        assert self._workplace is not None
        return self._workplace.save_state()

    def load_state(self, state: dict[str, Any], lanes: tuple[Lane, ...], spare_lanes: tuple[Lane, ...]) -> str:
        """What was wrong with the state, if anything."""
        assert self._workplace is not None
        return load(self._workplace, state, lanes, spare_lanes)

    def look(self) -> tuple[int, bool]:
        """Steps begun so far, and whether it waits for an answer."""
        if self._workplace is None:
            return 0, False
        return int(self._progress[list(LANE_STEPS)].sum()), self._exchange is not None and self._exchange.is_waiting()

    def remains(self) -> tuple[int, list[dict[str, Any]]]:
        """Steps begun, and seed and actions of each slot's episode."""
        if self._workplace is None or self._blocks is None:
            return 0, []
        setup = self._setup
        rollout = setup.layout.view(self._blocks.rollouts.memory)
        slots = episodes_under_way(self._blocks.logs, setup.lanes, setup.action_log_steps, 0, self._progress, rollout)
        return int(self._progress[0]), slots

    def connect(self, address: Address) -> None:
        """Somebody else acts for all from now on."""
        self._address = address
        if self._exchange is not None:
            self._exchange.address = address

    def close(self) -> None:
        if self._workplace is not None:
            self._workplace.close()


class InferenceActor:
    """Acts for all workers, which ask it over TCP. `look` and `take` are called beside `serve`."""

    def place(self) -> int:
        """Where it is: the process id."""
        return os.getpid()

    def open(
        self,
        setup: InferenceSetup,
        maker: bytes,
        path: list[str],
        layout: ExchangeLayout,
        token: bytes,
        port: int,
        version: int,
        weights: Array,
    ) -> Address:
        """Make everything and listen; where."""
        from ray.util import get_node_ip_address

        look_through(path)
        system.lower_priority(setup.nice)
        actor = cloudpickle.loads(maker).make(setup.device, setup.threads)
        self._board = WeightsBoard(SharedBlock(WeightsBoard.nbytes(setup.weights_size)).memory, setup.weights_size)
        self.take(version, weights)
        busy = np.zeros(setup.num_seats, np.int64)
        self._switchboard = Switchboard(layout, get_node_ip_address(), port, token, busy)
        self._teller = Teller(setup, self._switchboard.exchange, self._board, busy, actor)
        return self._switchboard.address

    def serve(self) -> None:
        """Answer questions until killed."""
        while True:
            self._teller.turn()

    def take(self, version: int, weights: Array) -> None:
        """Act with these weights from the next answer on."""
        self._board.publish(weights, version)

    def look(self) -> tuple[int, bool]:
        """Turns so far."""
        return int(self._switchboard.exchange.heartbeat[0]), False


def look_through(path: list[str]) -> None:
    """Find modules where the driver does, after all other places."""
    sys.path += [entry for entry in path if entry not in sys.path and Path(entry).exists()]
