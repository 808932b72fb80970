"""Copies on a stream of their own: whatever order the streams get on in, a batch holds what its rollouts held."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from millrace.buffer.batch import Item
from millrace.buffer.queue import RolloutQueue
from millrace.buffer.slab import Slab
from millrace.config import NetConfig, PPOConfig
from millrace.learner.targets import Targets
from millrace.learner.uploads import Uploads
from millrace.nets.policy import Policy
from millrace.system import SharedBlock
from millrace.types import ActionSpec, ArraySpec, RolloutLayout, SlotSpec

SPEC = SlotSpec({"a": ArraySpec((2,), "float32"), "b": ArraySpec((4, 4), "uint8", stack=2)}, ActionSpec((2,)))
LAYOUT = RolloutLayout(SPEC, num_steps=3, num_slots=2)


class Streams:
    """A device on one thread: what is queued on a stream is done when somebody waits for it, or when chance has it."""

    def __init__(self, chance: Iterator[int]) -> None:
        self.main = LateStream()
        self._all = [self.main]
        self._chance = chance

    def Stream(self) -> LateStream:  # noqa: N802
        self._all.append(LateStream())
        return self._all[-1]

    def Event(self) -> LateEvent:  # noqa: N802
        return LateEvent(self)

    def current_stream(self) -> LateStream:
        return self.main

    @contextlib.contextmanager
    def stream(self, stream: LateStream) -> Iterator[None]:
        with Queueing(stream):
            yield

    def time_passes(self) -> None:
        """Some of the streams do some of what is queued on them."""
        for stream in self._all:
            for _ in range(next(self._chance, 0)):
                stream.advance()


class LateStream:
    is_at_work = False  # any of them

    def __init__(self) -> None:
        self._queue: list[Any] = []
        self._num_done = self._num_queued = 0

    def put(self, work: Any) -> int:
        """Queue it, and say as which."""
        self._queue.append(work)
        self._num_queued += 1
        return self._num_queued

    def advance(self) -> None:
        if self._queue:
            work = self._queue.pop(0)
            self._num_done += 1
            was_at_work, LateStream.is_at_work = LateStream.is_at_work, True
            work()
            LateStream.is_at_work = was_at_work

    def reach(self, number: int) -> None:
        while self._num_done < number:
            self.advance()

    def synchronize(self) -> None:
        self.reach(self._num_queued)


class LateEvent:
    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._last: tuple[LateStream, int] | None = None

    def record(self, stream: LateStream) -> None:
        self._last = stream, stream.put(lambda: None)
        self._streams.time_passes()

    def wait(self, stream: LateStream) -> None:
        if self._last is not None:
            source, number = self._last
            stream.put(lambda: source.reach(number))

    def synchronize(self) -> None:
        if self._last is not None:
            self._last[0].reach(self._last[1])


class Queueing(TorchDispatchMode):
    """Operations inside write to their results later; until then those hold nothing of use."""

    def __init__(self, stream: LateStream) -> None:
        super().__init__()
        self._stream = stream

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if LateStream.is_at_work:
            return operation(*args, **kwargs)
        if operation is torch.ops.aten.copy_.default:
            self._stream.put(lambda: operation(*args, **kwargs))
            return args[0]
        if operation is torch.ops.aten.cat.default:
            result = torch.full_like(operation(*args, **kwargs), 99)
            self._stream.put(lambda: result.copy_(operation(*args, **kwargs)))
            return result
        return operation(*args, **kwargs)


@settings(max_examples=60, deadline=None)
@given(chances=st.lists(st.integers(0, 6), min_size=8, max_size=8), seed=st.integers(0, 2**16))
def test_whatever_order_streams_get_on_in_a_batch_is_what_its_rollouts_held(chances, seed):
    rng = np.random.default_rng(seed)
    num_places = 4
    slab = Slab(LAYOUT, num_places, SharedBlock(Slab.nbytes(LAYOUT, num_places)))
    streams = Streams(iter(chances * 1000))
    uploads = Uploads(slab, "cpu", streams)
    queue = RolloutQueue(slab, 2, 1, uploads)
    learned: list[tuple[Any, Any]] = []
    for version in range(12):
        for worker in rng.permutation(2):
            place = slab.acquire()
            for array in slab.rollouts[place].observation.values():
                array[:] = rng.integers(90, size=array.shape)
            slab.rollouts[place].valid[:] = True
            queue.insert(Item(int(worker), version, place))
            streams.time_passes()
        with Queueing(streams.main):  # the device is behind with the batches before
            batch = queue.take(version)
        expected = {key: array.copy() for key, array in batch.rollout.observation.items()}
        learned.append((expected, batch.uploaded))
        streams.time_passes()
    streams.main.synchronize()
    for expected, uploaded in learned:
        assert expected.keys() == uploaded.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(uploaded[key].numpy(), array)
    uploads.close()


def test_what_is_dropped_is_waited_for_before_its_place_is_used_again():
    slab = Slab(LAYOUT, 2, SharedBlock(Slab.nbytes(LAYOUT, 2)))
    uploads = Uploads(slab, "cpu", Streams(iter([])))
    queue = RolloutQueue(slab, 1, 1, uploads)
    place = slab.acquire()
    slab.rollouts[place].observation["a"][:] = 7.0
    queue.insert(Item(0, 0, place))
    assert float(uploads._twins[place]["a"].sum()) == 0.0  # nobody has asked for it yet
    queue.drop_stale(1)
    slab.rollouts[place].observation["a"][:] = 8.0  # the next rollout
    assert bool((uploads._twins[place]["a"] == 7.0).all())


def test_targets_take_what_is_uploaded_and_give_the_same_rows():
    policy = Policy(SPEC, NetConfig(hidden=(8,)))
    config = PPOConfig(targets="vtrace", values="learner", minibatch_size=6)
    slab = Slab(LAYOUT, 2, SharedBlock(Slab.nbytes(LAYOUT, 2)))
    streams = Streams(iter([]))
    rng = np.random.default_rng(0)
    rows = []
    for uploads in (None, Uploads(slab, "cpu", streams)):
        queue = RolloutQueue(slab, 1, 1, uploads)
        place = slab.acquire()
        rollout = slab.rollouts[place]
        rng = np.random.default_rng(0)
        for array in rollout.observation.values():
            array[:] = rng.integers(90, size=array.shape)
        rollout.valid[:] = True
        queue.insert(Item(0, 0, place))
        with Queueing(streams.main):
            batch = queue.take(0)
        streams.main.synchronize()
        if uploads is not None:
            batch.rollout.observation = dict.fromkeys(SPEC.observation)  # none of it is asked for
        rows.append(Targets(policy, config, None).rows(batch))
    for key, expected in rows[0].seen().items():
        assert torch.equal(rows[1].seen()[key], expected)
    assert torch.equal(rows[1].advantage, rows[0].advantage)
