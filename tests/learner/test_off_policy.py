"""What the learner makes of rows that another policy collected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers import opened
from millrace.buffer.batch import Batch, Draws, Refresh
from millrace.config import NetConfig, PPOConfig, ReplayConfig
from millrace.learner.ppo import Learner
from millrace.nets.policy import Policy
from millrace.types import ActionSpec, ArraySpec, RolloutLayout, SlotSpec
from toys import Recall

SPEC = SlotSpec({"obs": ArraySpec((3,), "float32")}, ActionSpec((2,)))
STEPS, SLOTS = 8, 4
GAMMA, LAMBDA = 0.9, 0.8
OFF_POLICY = {"objective": "decoupled", "targets": "vtrace", "values": "learner"}


def make_learner(replay: ReplayConfig | None = None, **settings: Any) -> Learner:
    torch.manual_seed(0)
    config = PPOConfig(minibatch_size=8, threads=1, gamma=GAMMA, gae_lambda=LAMBDA, **settings)
    policy = Policy(SPEC, NetConfig((8,)))
    for parameter in policy.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return Learner(policy, config, 10**6, 0, replay=replay)


def make_batch(seed: int = 0) -> Batch:
    """As some other policy collected it, with an episode that ends in the middle of one slot."""
    rng = np.random.default_rng(seed)
    rollout = RolloutLayout(SPEC, STEPS, SLOTS).allocate()
    rollout.observation["obs"][:] = rng.normal(size=(STEPS + 1, SLOTS, 3))
    rollout.action[:] = rng.integers(2, size=(STEPS, SLOTS, 1))
    rollout.log_prob[:] = np.log(rng.uniform(0.2, 0.8, size=(STEPS, SLOTS)))
    rollout.value[:] = rng.normal(size=(STEPS + 1, SLOTS))
    rollout.reward[:] = rng.normal(size=(STEPS, SLOTS))
    rollout.valid[:] = True
    rollout.terminated[3, 1], rollout.valid[4, 1] = True, False
    return Batch(rollout, [], SLOTS, 7)


def judged(learner: Learner, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """log pi of the actions [T, B] and V [T + 1, B] of the present policy, by hand."""
    observation = torch.from_numpy(batch.rollout.observation["obs"])
    with torch.no_grad():
        logits, value = learner.policy({"obs": observation.flatten(0, 1)})
    log_probs = torch.log_softmax(logits, -1).view(STEPS + 1, SLOTS, 2)[:-1].numpy()
    return np.take_along_axis(log_probs, batch.rollout.action, -1)[..., 0], value.view(STEPS + 1, SLOTS).numpy()


def test_ratios_are_of_the_present_policy_and_rows_that_are_no_experience_do_not_spread() -> None:
    learner, batch = make_learner(**OFF_POLICY), make_batch()
    clean = learner._targets.rows(batch)
    log_prob, _ = judged(learner, batch)
    expected = np.where(batch.rollout.valid, log_prob - batch.rollout.log_prob, 0.0)
    np.testing.assert_allclose(clean.log_importance.view(STEPS, SLOTS), expected, atol=1e-6)
    np.testing.assert_allclose(clean.log_prob.view(STEPS, SLOTS), log_prob, atol=1e-6)
    batch.rollout.log_prob[4, 1] = -1e9
    batch.rollout.reward[4, 1] = 1e9
    spoiled = learner._targets.rows(batch)
    valid = torch.from_numpy(batch.rollout.valid.ravel())
    for name in ("advantage", "target", "log_importance"):
        assert torch.equal(getattr(clean, name)[valid], getattr(spoiled, name)[valid])
        assert getattr(spoiled, name).isfinite().all()


def test_values_come_from_the_actor_or_the_learner_by_choice() -> None:
    batch = make_batch()
    for values in ("actor", "learner"):
        learner = make_learner(targets="gae", values=values)
        expected = batch.rollout.value if values == "actor" else judged(learner, batch)[1]
        np.testing.assert_allclose(learner._targets.rows(batch).value.view(STEPS, SLOTS), expected[:-1], atol=1e-6)


def test_an_uncorrected_objective_leaves_the_ratio_to_the_advantage() -> None:
    batch = make_batch()
    decoupled, proximal = make_learner(**OFF_POLICY), make_learner(**{**OFF_POLICY, "objective": "proximal"})
    rows = decoupled._targets.rows(batch)
    ratio = rows.log_importance.exp().clamp(max=1.0)
    torch.testing.assert_close(proximal._targets.rows(batch).advantage, rows.advantage * ratio)


def test_weights_of_draws_emphasis_and_age_multiply() -> None:
    batch = make_batch()
    batch.draws = Draws(np.arange(SLOTS), np.array([1.0, 0.5, 0.25, 1.0], np.float32))
    batch.emphasis = np.array([1.0, 1.0, 2.0, 1.5], np.float32)
    batch.rollout.policy_version[:] = 7
    batch.rollout.policy_version[:, 3] = 5
    rows = make_learner(ReplayConfig(sampler="uniform", burn_in_steps=2), age_weight=0.5)._targets.rows(batch)
    expected = batch.rollout.valid * np.array([1.0, 0.5, 0.5, 1.5 * 0.25])
    expected[:2] = 0.0
    np.testing.assert_allclose(rows.weight.view(STEPS, SLOTS), expected)


@pytest.mark.parametrize("targets", ["gae", "vtrace", "clipped_gae"])
def test_a_single_step_goes_on_from_the_refreshed_error_behind_it(targets: str) -> None:
    """All steps of a rollout, drawn one by one right after it was refreshed, are the rollout."""
    settings = {**OFF_POLICY, "targets": targets}
    learner, whole = make_learner(ReplayConfig(item="step"), **settings), make_batch()
    rollout = whole.rollout
    steps, slots = (x.ravel() for x in np.mgrid[:STEPS, :SLOTS])
    fields = {
        name: array[steps + np.arange(1 + len(array) - STEPS)[:, None], slots] for name, array in rollout.fields()
    }
    error = np.full((STEPS + 1, SLOTS), np.nan, np.float32)
    error[-1] = 0.0
    draws = Draws(steps * SLOTS + slots, np.ones(STEPS * SLOTS, np.float32), [Refresh(rollout, error)])
    draws.carried = lambda: error[steps + 1, slots]
    rows = learner._targets.rows(Batch(type(rollout).from_fields(fields), [], SLOTS, 7, draws=draws))
    expected = learner._targets.rows(whole)
    valid = torch.from_numpy(rollout.valid.ravel()) & torch.from_numpy(
        np.concatenate([rollout.valid[1:], np.ones((1, SLOTS), bool)]).ravel() | rollout.terminated.ravel()
    )
    for name in ("advantage", "target", "log_importance"):
        torch.testing.assert_close(getattr(rows, name)[valid], getattr(expected, name)[valid], atol=1e-5, rtol=1e-5)


def test_the_learner_writes_what_it_found_out_where_the_buffer_looks_for_it() -> None:
    batch = make_batch()
    batch.fresh = []
    for priority in ("td_error", "advantage"):
        batch.draws = Draws(np.arange(SLOTS), np.ones(SLOTS, np.float32))
        learner = make_learner(ReplayConfig(sampler="prioritized", priority=priority), **OFF_POLICY)
        rows = learner._targets.rows(batch)
        learner.update(batch, 0)
        found = rows.td_error if priority == "td_error" else rows.advantage
        np.testing.assert_array_equal(batch.draws.priority, found.view(STEPS, SLOTS).numpy())
        np.testing.assert_allclose(batch.draws.error.ravel(), (rows.target - rows.value).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"net.memory": "lstm"}, {"net.memory": "gru", "net.shared": True}, {"env.frame_stack": 3}]
)
def test_on_policy_the_ratio_is_one_with_any_memory(settings, run_dir) -> None:
    """Ratios come from the unroll over the whole sequence, across ends of episodes: they are what acting was."""
    off_policy = {f"ppo.{name}": value for name, value in OFF_POLICY.items()}
    with opened(lambda: Recall(3), run_dir, **settings, **off_policy, **{"net.memory_size": 8}) as run:
        for _ in range(3):
            batch = run.source.next_batch()
            rows = run.learner._targets.rows(batch)
            assert rows.log_importance.abs().max() < 1e-5
            valid = torch.from_numpy(batch.rollout.valid.ravel())
            np.testing.assert_allclose(rows.value[valid], batch.rollout.value[:-1].ravel()[valid], atol=1e-5)
            run.learner.update(batch, 0)
            run.publish()
            run.source.feedback(batch)
