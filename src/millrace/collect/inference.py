"""The inference process: one policy for all workers, which ask it through shared memory."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection

import cloudpickle
import numpy as np

from millrace import system
from millrace.collect.exchange import ANSWERED, ASKED, DIGEST, ROWS, VERSION, WAKE_INTERVAL_S, Desk, Exchange
from millrace.collect.setup import Blocks, InferenceSetup, progress_words
from millrace.collect.weights import WeightsBoard
from millrace.collect.worker import exit_with_parent, report
from millrace.collect.workplace import NOTHING
from millrace.nets.actor import Actor
from millrace.types import Array


def inference_main(
    setup: InferenceSetup, blocks: Blocks, exchange: Exchange, maker: bytes, connection: Connection
) -> None:
    """Entry point of the process, which is killed when it is not needed any more: it keeps nothing.

    Messages to the parent: ("ready", ""), and ("failed", ...) as a worker says it.

    Args:
        maker: of the actor, pickled by value.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(os.getppid())
    system.lower_priority(setup.nice)
    try:
        actor = cloudpickle.loads(maker).make(setup.device, setup.threads)
        board = WeightsBoard(blocks.weights.memory, setup.weights_size, setup.num_versions)
        teller = Teller(setup, exchange, board, progress_words(blocks.progress, setup.num_seats)[:, 1], actor)
        connection.send(("ready", ""))
        while True:
            teller.turn()
    except Exception as error:
        report(connection, error)


class Teller:
    """Gathers questions, answers them in one batch.

    Args:
        busy: [workers] int64, 1 for those that collect.
    """

    def __init__(
        self, setup: InferenceSetup, exchange: Exchange, board: WeightsBoard, busy: Array, actor: Actor
    ) -> None:
        self._setup, self._actor, self._exchange = setup, actor, exchange
        self._desks = [exchange.desk(index) for index in range(exchange.layout.num_desks)]
        self._board, self._busy = board, busy
        self._weights, self._held = np.empty(setup.weights_size, np.float32), NOTHING
        self._answer_s = 0.0  # that the last answer took
        self._first = 0  # whose turn it is where not all fit into a batch

    def turn(self) -> None:
        """Answer whoever asks; returns after a while if nobody does."""
        self._exchange.heartbeat[0] += 1
        asking = self._gather()
        if len(asking):
            self._refresh()
            begin_s = time.perf_counter()
            self._answer(asking)
            self._answer_s = time.perf_counter() - begin_s

    def _gather(self) -> Array:
        """Desks with questions: those that are there, and those that come while it is worth waiting."""
        asking = self._asking()
        if not len(asking):
            self._exchange.questions.acquire(True, WAKE_INTERVAL_S)
            asking = self._asking()
        # Longer than an answer takes, waiting for another question costs more than it can save.
        deadline_s = time.perf_counter() + min(self._setup.max_wait_s, self._answer_s)
        while len(asking) and not self._is_enough(asking):
            left_s = deadline_s - time.perf_counter()
            if left_s <= 0 or not self._exchange.questions.acquire(True, left_s):
                break
            asking = self._asking()
        return self._limited(asking)

    def _asking(self) -> Array:
        # Wake-ups are taken before looking: what is asked after the look has one left.
        while self._exchange.questions.acquire(False):
            pass
        words = self._exchange.words
        return np.flatnonzero(words[:, ASKED] != words[:, ANSWERED])

    def _is_enough(self, asking: Array) -> bool:
        """One question of every worker that collects: while it waits for that, it can hardly ask another."""
        most = self._setup.max_batch_slots
        is_full = bool(most and self._exchange.words[asking, ROWS].sum() >= most)
        return is_full or len(asking) >= self._busy.sum()

    def _limited(self, asking: Array) -> Array:
        """As many desks as a batch may have, in turn; at least one."""
        most = self._setup.max_batch_slots
        if not most or len(asking) < 2:
            return asking
        asking = np.roll(asking, -int(np.searchsorted(asking, self._first)))
        num_rows = np.cumsum(self._exchange.words[asking, ROWS])
        chosen = asking[: max(1, int(np.searchsorted(num_rows, most, "right")))]
        self._first = int(chosen[-1]) + 1
        return chosen

    def _refresh(self) -> None:
        if self._held != self._board.newest:
            self._held = self._board.read(self._weights)
            self._actor.load(self._weights)

    def _answer(self, asking: Array) -> None:
        words = self._exchange.words
        # Before anything else of the question: what changes from now on belongs to another ticket.
        tickets, num_rows = words[asking, ASKED], words[asking, ROWS]
        desks = [self._desks[index] for index in asking]
        observation, state = _batch(desks, num_rows)
        params, value = self._actor.forward(observation, state)
        last = np.cumsum(num_rows)
        for i, desk in enumerate(desks):
            rows, count = slice(last[i] - num_rows[i], last[i]), num_rows[i]
            desk.params[:count], desk.value[:count] = params[rows], value[rows]
            if desk.next_state is not None and state is not None:
                desk.next_state[:count] = state[rows]
            desk.words[VERSION], desk.words[DIGEST] = self._held
            desk.words[ANSWERED] = tickets[i]
            self._exchange.answers[asking[i] // self._exchange.layout.num_lanes].release()


def _batch(desks: list[Desk], num_rows: Array) -> tuple[dict[str, Array], Array | None]:
    """Copies of what was asked, one desk below the other."""
    pairs = list(zip(desks, num_rows, strict=True))
    keys = desks[0].observation
    observation = {key: np.concatenate([desk.observation[key][:count] for desk, count in pairs]) for key in keys}
    states = [desk.state[:count] for desk, count in pairs if desk.state is not None]
    return observation, np.concatenate(states) if states else None
