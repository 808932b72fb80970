"""Questions to the one process that holds the policy, and its answers, in shared memory.

The truth is in the shared words: a question that is not answered has another ticket than the last answer. Semaphores
only wake whoever sleeps, so that lost and superfluous ones do no harm, whoever dies when. The inference process keeps
nothing: recurrent state travels with the question, and a question outlives the process that was to answer it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from millrace.collect.weights import Held
from millrace.errors import WorkerError
from millrace.system import SharedBlock
from millrace.types import Array, ArrayTable, SlotSpec, nbytes_of, views_of

DESK_WORDS = 8  # int64, a cache line a desk
ASKED, ANSWERED, ROWS, VERSION, DIGEST = range(5)  # tickets of question and answer; rows; whose weights answered
WAKE_INTERVAL_S = 0.25


@dataclass(frozen=True)
class ExchangeLayout:
    """How many desks there are and what lies on each.

    Attributes:
        num_slots: that one question may be about.
        num_lanes: desks of one worker: it asks about some of its slots while it steps the others.
    """

    spec: SlotSpec
    state_size: int
    num_slots: int
    num_workers: int
    num_lanes: int

    @property
    def num_desks(self) -> int:
        return self.num_workers * self.num_lanes

    @property
    def words(self) -> ArrayTable:
        """Heartbeat of the inference process; the words of all desks."""
        word = np.dtype("int64")
        return {"heartbeat": ((1,), word), "desks": ((self.num_desks, DESK_WORDS), word)}

    @property
    def desk(self) -> ArrayTable:
        """The arrays of one desk."""
        rows, number = self.num_slots, np.dtype("float32")
        state = {name: ((rows, self.state_size), number) for name in ("state", "next_state") if self.state_size}
        return {
            **{
                f"observation/{key}": ((rows, *array.seen_shape), np.dtype(array.dtype))
                for key, array in self.spec.observation.items()
            },
            **state,
            "params": ((rows, self.spec.action.num_params), number),
            "value": ((rows,), number),
        }

    @property
    def question_nbytes(self) -> int:
        """Of a desk's memory, the part before what is answered."""
        asked = {name: array for name, array in self.desk.items() if name.startswith("observation/") or name == "state"}
        return nbytes_of(asked)

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.words) + self.num_desks * nbytes_of(self.desk)


@dataclass
class Desk:
    """What one question is about, and its answer. B is at most `ExchangeLayout.num_slots`.

    Attributes:
        words: [8] int64, see `ASKED` and those after it.
    """

    words: Array
    observation: Mapping[str, Array]  # as seen [B, ...]
    params: Array  # [B, P] float32
    value: Array  # [B] float32
    state: Array | None = None  # [B, S] float32, before the step
    next_state: Array | None = None  # after it


class Bell(Protocol):
    """What wakes whoever sleeps: a semaphore, or the end of a connection."""

    def release(self) -> None:
        """Ring."""

    def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool:
        """Whether it rang, now or within so many seconds; once for nothing does no harm."""


class Exchange:
    """All desks; picklable only while a process is being spawned.

    Attributes:
        questions: released when something was asked.
        answers: of each worker, released when something of it was answered.
        heartbeat: [1] int64, counts the turns of the inference process.
        words: [desks, 8] int64 of all desks, those of a worker beside each other.
    """

    def __init__(self, layout: ExchangeLayout, block: SharedBlock, questions: Bell, answers: Sequence[Bell]) -> None:
        self.layout, self._block = layout, block
        self.questions, self.answers = questions, answers
        views = views_of(layout.words, block.memory)
        self.heartbeat, self.words = views["heartbeat"], views["desks"]

    @classmethod
    def open(cls, layout: ExchangeLayout, context: Any) -> Exchange:
        """A new one, whose semaphores are of this `multiprocessing` context."""
        answers = tuple(context.Semaphore(0) for _ in range(layout.num_workers))
        return cls(layout, SharedBlock(layout.nbytes), context.Semaphore(0), answers)

    def __reduce__(self) -> tuple[Any, ...]:
        return Exchange, (self.layout, self._block, self.questions, self.answers)

    def desk(self, index: int) -> Desk:
        """Views of one desk; worker w has those from w * num_lanes on."""
        layout = self.layout
        views = views_of(layout.desk, self.memory_of(index))
        observation = {key: views.pop(f"observation/{key}") for key in layout.spec.observation}
        return Desk(self.words[index], observation, **views)

    def memory_of(self, index: int) -> memoryview:
        """Bytes of one desk but its words."""
        nbytes = nbytes_of(self.layout.desk)
        offset = nbytes_of(self.layout.words) + index * nbytes
        return memoryview(self._block.memory)[offset : offset + nbytes]

    def actor(self, worker: int, lane: int, timeout_s: float) -> CentralActor:
        """The policy as one lane of a worker sees it."""
        desk = self.desk(worker * self.layout.num_lanes + lane)
        return CentralActor(desk, self.questions, self.answers[worker], timeout_s)

    def is_waiting(self, worker: int) -> bool:
        """Whether a worker has a question that is not answered."""
        lanes = self.layout.num_lanes
        words = self.words[worker * lanes : (worker + 1) * lanes]
        return bool((words[:, ASKED] != words[:, ANSWERED]).any())

    def close(self) -> None:
        """Let go; the names of semaphores go with the last reference."""
        self._block.close()
        del self.questions, self.answers


class CentralActor:
    """The policy as one lane of a worker sees it: see `millrace.collect.collector.Remote`.

    Args:
        desk: where it asks.
        questions: rung when something was asked.
        answers: rings when something was answered.
        timeout_s: how long an answer may take, a restart of the inference process included.
    """

    def __init__(self, desk: Desk, questions: Bell, answers: Bell, timeout_s: float) -> None:
        self._desk, self._questions, self._answers = desk, questions, answers
        self._timeout_s = timeout_s
        # A worker that died may have left a question here: tickets go on from there.
        self._ticket = int(self._desk.words[ASKED])
        self._is_asked = False
        self.held = Held(-1, 0)

    def ask(self, observation: dict[str, Array], state: Array | None = None) -> None:
        desk, num_rows = self._desk, len(next(iter(observation.values())))
        for key, array in observation.items():
            desk.observation[key][:num_rows] = array
        if desk.state is not None:
            desk.state[:num_rows] = state
        self._ticket += 1
        desk.words[ROWS] = num_rows
        desk.words[ASKED] = self._ticket
        self._questions.release()
        self._is_asked = True

    def forward(self, observation: dict[str, Array], state: Array | None = None) -> tuple[Array, Array]:
        """Parameters and values lie in shared memory: they are good until the next question.

        Raises:
            WorkerError: no answer came in time.
        """
        if not self._is_asked:
            self.ask(observation, state)
        self._wait()
        self._is_asked = False
        desk, words = self._desk, self._desk.words
        num_rows = int(words[ROWS])
        self.held = Held(int(words[VERSION]), int(words[DIGEST]))
        if state is not None and desk.next_state is not None:
            state[...] = desk.next_state[:num_rows]
        return desk.params[:num_rows], desk.value[:num_rows]

    def _wait(self) -> None:
        words, deadline_s = self._desk.words, time.monotonic() + self._timeout_s
        while words[ANSWERED] != self._ticket:
            if not self._answers.acquire(True, WAKE_INTERVAL_S) and time.monotonic() > deadline_s:
                raise WorkerError(f"the inference process gave no answer within {self._timeout_s:g} s")
