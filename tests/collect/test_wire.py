"""Questions and answers over TCP: what shared memory gives, whoever comes, goes, or is not one of ours."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from millrace.collect.exchange import ExchangeLayout
from millrace.collect.inference import Teller
from millrace.collect.setup import InferenceSetup
from millrace.collect.weights import WeightsBoard
from millrace.collect.wire import TOKEN_BYTES, Switchboard, WireExchange
from millrace.errors import WorkerError
from millrace.system import SharedBlock
from millrace.types import ActionSpec, ArraySpec, SlotSpec

SPEC = SlotSpec({"pixels": ArraySpec((2, 3), "uint8"), "speed": ArraySpec((1,), "float32")}, ActionSpec(nvec=(3,)))
LAYOUT = ExchangeLayout(SPEC, state_size=2, num_slots=4, num_workers=3, num_lanes=2)
TOKEN = bytes(range(TOKEN_BYTES))


class Echo:
    """Answers with the speed it was told, plus its first weight; a step adds one to its state."""

    def load(self, weights):
        self.loaded = float(weights[0])

    def forward(self, observation, state=None):
        state += 1
        speed = observation["speed"][:, 0]
        return np.stack([speed, observation["pixels"].sum((1, 2)), state[:, 0]], axis=1), speed + self.loaded


class Office:
    """Whoever acts, in a thread of this process."""

    def __init__(self, first_weight: float = 0.0, version: int = 0, port: int = 0) -> None:
        self.board = WeightsBoard(SharedBlock(WeightsBoard.nbytes(1)).memory, 1)
        self.board.publish(np.full(1, first_weight, np.float32), version)
        self.busy = np.zeros(3, np.int64)
        self.switchboard = Switchboard(LAYOUT, "127.0.0.1", port, TOKEN, self.busy)
        setup = InferenceSetup(3, 1, 2, 0, 0.0, "cpu", 1, 0)
        self._teller = Teller(setup, self.switchboard.exchange, self.board, self.busy, Echo())
        self._is_open = True
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._is_open:
            self._teller.turn()

    def close(self) -> None:
        self._is_open = False
        self._thread.join()
        self.switchboard.close()


@pytest.fixture
def office() -> Iterator[Office]:
    office = Office()
    yield office
    office.close()


@pytest.fixture
def exchanges() -> Iterator[list[WireExchange]]:
    made = [WireExchange(LAYOUT, worker) for worker in range(3)]
    yield made
    for exchange in made:
        exchange.close()


def asked(speed: float, rows: int = 4) -> dict[str, np.ndarray]:
    return {"pixels": np.full((rows, 2, 3), 2, np.uint8), "speed": np.full((rows, 1), speed, np.float32)}


def states(rows: int = 4) -> np.ndarray:
    return np.zeros((rows, 2), np.float32)


def test_everybody_gets_the_answer_to_the_own_question(office, exchanges):
    actors = []
    for worker, exchange in enumerate(exchanges):
        exchange.address = office.switchboard.address
        actors += [(worker * 10 + lane, exchange.actor(worker, lane, 10.0)) for lane in range(2)]
    for turn in range(5):
        for speed, actor in actors:
            actor.ask(asked(speed + turn, rows=3), states(3))
        for speed, actor in actors:
            state = states(3)
            params, value = actor.forward(asked(-1, rows=3), state)
            np.testing.assert_array_equal(params, np.tile([speed + turn, 12, 1], (3, 1)))
            np.testing.assert_array_equal(value, np.full(3, speed + turn))
            assert (state == 1).all()
    assert office.busy.tolist() == [1, 1, 1]


def test_the_answer_tells_whose_weights_gave_it(office, exchanges):
    exchanges[0].address = office.switchboard.address
    actor = exchanges[0].actor(0, 0, 10.0)
    office.board.publish(np.full(1, 5.0, np.float32), 7)
    assert actor.forward(asked(1), states())[1].tolist() == [6.0] * 4
    assert actor.held.version == 7


def test_a_question_outlives_the_one_who_was_to_answer_it(exchanges):
    first = Office()
    exchanges[1].address = first.switchboard.address
    actor = exchanges[1].actor(1, 1, 20.0)
    actor.forward(asked(1), states())
    first.close()
    actor.ask(asked(3), states())
    assert exchanges[1].is_waiting()
    second = Office(first_weight=100.0, version=2)
    threading.Timer(0.3, setattr, (exchanges[1], "address", second.switchboard.address)).start()
    state = states()
    assert actor.forward(asked(3), state)[1].tolist() == [103.0] * 4
    assert (state == 1).all()
    assert actor.held.version == 2
    assert not exchanges[1].is_waiting()
    second.close()


def test_a_workers_successor_gets_its_own_answers_and_its_line(office, exchanges):
    exchanges[2].address = office.switchboard.address
    exchanges[2].actor(2, 0, 10.0).ask(asked(1), states())
    successor = WireExchange(LAYOUT, 2)
    successor.address = office.switchboard.address
    actor = successor.actor(2, 0, 10.0)
    for speed in (4.0, 5.0):
        assert actor.forward(asked(speed), states())[1].tolist() == [speed] * 4
    successor.close()
    deadline_s = time.monotonic() + 5
    while office.busy[2] and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert office.busy[2] == 0


@pytest.mark.parametrize(
    "greeting",
    [
        bytes(TOKEN_BYTES) + (0).to_bytes(8, "little"),  # another token
        TOKEN + (6).to_bytes(8, "little"),  # no such desk
        TOKEN + (0).to_bytes(8, "little") + b"\xff" * 4096,  # then a question of too many rows
    ],
)
def test_nobody_else_is_listened_to(office, greeting):
    address = office.switchboard.address
    with socket.create_connection((address.host, address.port), 5.0) as stranger:
        stranger.sendall(greeting)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""


def test_nobody_waits_for_an_answer_without_end(exchanges):
    actor = exchanges[0].actor(0, 0, 0.05)
    with pytest.raises(WorkerError, match=r"gave no answer within 0\.05 s"):
        actor.forward(asked(1), states())
