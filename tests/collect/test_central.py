"""Central inference: one process acts for all workers, and nothing else is different."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import millrace
from helpers import evaluated, libraries_of, log_of, opened, quick_train
from millrace.collect.collector import Remote
from millrace.collect.exchange import Exchange, ExchangeLayout
from millrace.collect.inference import Teller
from millrace.collect.setup import InferenceSetup, PoolSetup
from millrace.collect.weights import WeightsBoard
from millrace.config import Config
from millrace.describe import describe_inference
from millrace.errors import ConfigError, WorkerError
from millrace.ops.distributions import log_prob_and_entropy
from millrace.resolve import Probe, resolve
from millrace.system import SharedBlock
from millrace.types import ActionSpec, ArraySpec, SlotSpec
from toys import Clock, Everything, Faulty, Masked, Pixels

CENTRAL = {"collect.backend": "processes", "collect.inference": "central", "collect.max_wait_ms": 0.0}
LSTM = {"net.memory": "lstm", "net.memory_size": 6}
ALONE = {"collect.workers": 1, "collect.double_buffering": False}


def in_step(mode):
    def make(num_envs=8):
        return SyncVectorEnv([Clock] * num_envs, autoreset_mode=AutoresetMode[mode])

    return make


# What is collected ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        (Clock, {**LSTM, "env.frame_stack": 3, "ppo.normalize_observation": True}),
        (Everything, {}),
        (Masked, {}),
        (Pixels, {"net.image": "small"}),
    ],
)
def test_rollouts_are_those_of_local_inference_where_the_batches_are_the_same(env, settings, run_dir):
    found = []
    for inference in ("local", "central"):
        choices = {**CENTRAL, **ALONE, "collect.inference": inference, "collect.backend": "processes"}
        with opened(env, run_dir / inference, **{**settings, **choices}) as run:
            found.append([run.source.next_batch().rollout for _ in range(3) if run.publish() is None])
    for local, central in zip(*found, strict=True):
        for (name, expected), (_, array) in zip(local.fields(), central.fields(), strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("env", [Clock, in_step("SAME_STEP")])
def test_the_learner_sees_probabilities_and_values_as_they_were_in_two_halves(env, run_dir):
    """Over ends of episodes and of rollouts, with a state that begins in the row before."""
    with opened(env, run_dir, **CENTRAL, **LSTM, **{"ppo.learning_rate": 0.01, "collect.envs_per_worker": 5}) as run:
        for _ in range(4):
            batch = run.source.next_batch()
            rollout = batch.rollout
            assert (rollout.policy_version == run.learner.updates).all()
            params, value = evaluated(run, rollout)
            action = torch.from_numpy(rollout.action).flatten(0, 1)
            log_prob, _ = log_prob_and_entropy(run.probe.spec.action, params[: len(action)], action)
            valid = rollout.valid.ravel()
            np.testing.assert_allclose(log_prob.numpy()[valid], rollout.log_prob.ravel()[valid], atol=1e-5)
            np.testing.assert_allclose(value.numpy(), rollout.value.ravel(), atol=1e-5)
            run.learner.update(batch, run.env_steps)
            run.publish()
        assert np.abs(rollout.state).sum() > 0
        assert run.source.counts.weight_mismatches == 0


def test_no_two_slots_of_a_worker_in_two_halves_play_the_same_episode(run_dir):
    with opened(Clock, run_dir, **CENTRAL) as run:
        tags = run.source.next_batch().rollout.observation["obs"][0, :, 0]
        assert len(set(tags.tolist())) == 8


def test_every_row_names_the_weights_that_acted_also_where_they_change_within_a_rollout(run_dir):
    """The weights of version v give the value v everywhere."""
    env = functools.partial(Faulty, "raises", "", step_s=0.002)
    with opened(env, run_dir, **CENTRAL, **{"collect.max_policy_lag": 1}) as run:
        weights = np.zeros_like(run.learner.weights())
        names = [name for name, _ in run.learner.policy.weights_index()]
        sizes = [int(np.prod(shape)) for _, shape in run.learner.policy.weights_index()]
        bias = sum(sizes[: names.index("network.value_head.bias")])
        is_mixed = False
        while not is_mixed:
            batch = run.source.next_batch()
            versions = batch.rollout.policy_version
            known = versions > 0
            assert (batch.rollout.value[:-1] == versions)[known].all()
            assert (np.diff(versions, axis=0) >= 0).all()
            for item, (_, block) in zip(batch.items, batch.blocks(), strict=True):
                assert item.version == block.policy_version.min()
            is_mixed = (versions[0] != versions[-1]).any()
            run.source.updates += 1
            weights[bias] = run.source.updates
            time.sleep(0.01)  # into the middle of the rollouts that were granted above
            run.source.publish(weights)
        assert run.source.counts.weight_mismatches == 0


# Who needs what ---------------------------------------------------------------------------------------------------


def test_workers_load_no_torch_and_the_inference_process_does(run_dir):
    with opened(Pixels, run_dir, **CENTRAL, **{"net.image": "small"}) as run:
        run.source.next_batch()
        *workers, inference = run.source.pool.pids()
        assert len(workers) == 2
        assert not any(libraries_of(pid, "torch") for pid in workers)
        assert libraries_of(inference, "torch")


def test_a_user_network_stays_out_of_the_workers(run_dir):
    from millrace.envs.make import EnvMaker
    from millrace.run import Run

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 4)

        def forward(self, observation):
            y = self.layer(observation["obs"])
            return y[:, :3], y[:, 3]

    sizes = {"collect.workers": 1, "collect.envs_per_worker": 2, "collect.rollout_steps": 4}
    config = Config().replace({**CENTRAL, **sizes, "run_dir": str(run_dir), "metrics.console": "off"})
    with Run(config, EnvMaker(config.env, Clock), Own()) as run:
        assert run.source.next_batch().rollout.valid.any()
        assert not libraries_of(run.source.pool.pids()[0], "torch")


def probed(array: ArraySpec) -> Probe:
    return Probe(SlotSpec({"obs": array}, ActionSpec(nvec=(3,))), (None, None), False, False, "state")


IMAGE = ArraySpec((84, 84, 3), "uint8", scale=1 / 255)
VECTOR = ArraySpec((4,), "float32")


@pytest.mark.parametrize(
    ("array", "settings", "inference"),
    [
        (IMAGE, {}, "central"),
        (VECTOR, {}, "local"),
        (IMAGE, {"collect.workers": 1}, "local"),
        (IMAGE, {"collect.workers": 1, "device": "cuda"}, "central"),
        (IMAGE, {"collect.max_policy_lag": 0}, "local"),
        (IMAGE, {"collect.deterministic": True}, "local"),
        (IMAGE, {"collect.backend": "serial", "device": "cuda"}, "local"),
        (IMAGE, {"collect.inference": "local"}, "local"),
        (VECTOR, {"collect.inference": "central"}, "central"),
    ],
)
def test_auto_takes_central_inference_where_it_pays_and_breaks_no_promise(array, settings, inference):
    sizes = {"collect.backend": "processes", "collect.workers": 4, "collect.envs_per_worker": 8, "device": "cpu"}
    config = resolve(Config().replace({**sizes, **settings}), probed(array))
    assert config.collect.inference == inference
    assert config.collect.inference_threads > 0
    assert ("central" in describe_inference(config, needs_torch=True)) == (inference == "central")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"collect.deterministic": True}, "collect.deterministic=true wants the same batches every time"),
        ({"collect.backend": "serial"}, 'use collect.backend="processes"'),
    ],
)
def test_central_inference_is_refused_where_it_cannot_be(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve(Config().replace({**CENTRAL, **settings}), probed(IMAGE))


def test_the_choice_stands_in_the_first_lines_and_in_the_settings_of_the_run(run_dir):
    with opened(Clock, run_dir, **CENTRAL, **ALONE) as run:
        assert any("central, in one process" in line for line in run.describe())
        assert 'inference = "central"' in (run_dir / "config.toml").read_text()


# Going on ---------------------------------------------------------------------------------------------------------


def test_a_run_in_halves_is_resumed_where_it_stopped_and_local_ones_begin_anew(run_dir):
    quick_train(Clock, run_dir, {**CENTRAL, "stop.updates": 2}, backend="processes")
    millrace.resume(run_dir, env=Clock, settings={"stop.updates": 4}, quiet=True)
    assert "exactly where it stopped" in log_of(run_dir)
    result = millrace.resume(run_dir, env=Clock, settings={"stop.updates": 6, "collect.inference": "local"}, quiet=True)
    assert "its slots were in 2 part(s), and are in 1 now" in log_of(run_dir)
    assert result.updates == 6


# One question at a time -------------------------------------------------------------------------------------------


class Counting:
    """Answers with what it was asked, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.loaded = 0.0

    def load(self, weights):
        self.loaded = float(weights[0])

    def forward(self, observation, state=None):
        self.sizes.append(len(observation["obs"]))
        if state is not None:
            state += 1
        return np.repeat(observation["obs"], 3, axis=1), observation["obs"][:, 0] + self.loaded


class Bureau:
    """A teller in this process, with its board and the actors of three workers."""

    def __init__(self, max_batch_slots: int = 0, timeout_s: float = 60.0, state_size: int = 0) -> None:
        import multiprocessing

        spec = SlotSpec({"obs": ArraySpec((1,), "float32")}, ActionSpec(nvec=(3,)))
        layout = ExchangeLayout(spec, state_size, 4, 3, 1)
        self.exchange = Exchange.open(layout, multiprocessing.get_context("spawn"))
        self.board = WeightsBoard(SharedBlock(WeightsBoard.nbytes(1)).memory, 1)
        setup = InferenceSetup(3, 1, 2, max_batch_slots, 0.0, "cpu", 1, 0)
        self.policy = Counting()
        self.teller = Teller(setup, self.exchange, self.board, np.zeros(3, np.int64), self.policy)
        self.actors = [self.exchange.actor(worker, 0, timeout_s) for worker in range(3)]
        self.board.publish(np.zeros(1, np.float32), 0)


def asked(number: float, rows: int = 4) -> dict[str, np.ndarray]:
    return {"obs": np.full((rows, 1), number, np.float32)}


def test_an_actor_is_one_that_can_be_asked_beforehand():
    assert isinstance(Bureau().actors[0], Remote)


def test_everyone_gets_the_answer_to_the_own_question_and_the_version_behind_it():
    bureau = Bureau()
    for number, actor in enumerate(bureau.actors):
        actor.ask(asked(number, rows=number + 1))
    bureau.board.publish(np.full(1, 10, np.float32), 7)
    bureau.teller.turn()
    assert bureau.policy.sizes == [6]
    for number, actor in enumerate(bureau.actors):
        params, value = actor.forward(asked(-1))
        np.testing.assert_array_equal(params, np.full((number + 1, 3), number))
        np.testing.assert_array_equal(value, np.full(number + 1, number + 10))
        assert actor.held.version == 7


def test_a_batch_takes_no_more_slots_than_allowed_and_everyone_in_turn():
    bureau = Bureau(max_batch_slots=8)
    for _ in range(2):
        for actor in bureau.actors:
            actor.ask(asked(1))
        bureau.teller.turn()
    assert not bureau.exchange.is_waiting(0)
    assert bureau.policy.sizes == [8, 8]  # workers 0 and 1, then 2 and 0
    assert bureau.exchange.is_waiting(1)
    bureau.teller.turn()
    assert not any(bureau.exchange.is_waiting(worker) for worker in range(3))


def test_a_question_larger_than_the_largest_batch_is_answered_all_the_same():
    bureau = Bureau(max_batch_slots=2)
    bureau.actors[0].ask(asked(5))
    bureau.teller.turn()
    assert bureau.actors[0].forward(asked(5))[1].tolist() == [5] * 4


def test_a_question_survives_the_inference_process_and_its_state_is_stepped_once():
    """The first teller dies with half an answer written."""
    bureau = Bureau(state_size=2)
    state = np.zeros((4, 2), np.float32)
    bureau.actors[0].ask(asked(3), state)
    desk = bureau.exchange.desk(0)
    desk.params[:], desk.next_state[:] = np.nan, np.nan
    bureau.teller.turn()
    params, value = bureau.actors[0].forward(asked(3), state)
    assert np.isfinite(params).all()
    assert (value == 3).all()
    assert (state == 1).all()


def test_a_workers_successor_does_not_take_an_answer_to_its_predecessor_for_its_own():
    bureau = Bureau()
    bureau.actors[0].ask(asked(1))
    successor = bureau.exchange.actor(0, 0, 60.0)
    bureau.teller.turn()
    successor.ask(asked(2))
    bureau.teller.turn()
    assert successor.forward(asked(2))[1].tolist() == [2] * 4


def test_nobody_waits_for_an_answer_without_end():
    bureau = Bureau(timeout_s=0.01)
    with pytest.raises(WorkerError, match=r"gave no answer within 0\.01 s"):
        bureau.actors[0].forward(asked(1))


def test_halves_cover_all_slots_with_seeds_of_their_own():
    from millrace.nets.actor import ActorMaker
    from millrace.types import RolloutLayout

    spec = SlotSpec({"obs": VECTOR}, ActionSpec(nvec=(2,)))
    config = Config().replace({**CENTRAL, "collect.workers": 3}).collect
    maker = ActorMaker(spec, Config().net)
    setup = PoolSetup(None, maker, RolloutLayout(spec, 4, 5), config, 1, 1, 1)  # type: ignore[arg-type]
    lanes = [lane for worker in range(3) for lane in setup.lanes(worker, 0)]
    assert [(lane.first, lane.last, lane.layout.num_slots) for lane in lanes[:2]] == [(0, 3, 3), (3, 5, 2)]
    assert len({lane.stream_seed for lane in lanes}) == 6
