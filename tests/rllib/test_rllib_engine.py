"""RLlib trains what Millrace describes: runs where ray[rllib] is installed, see CONTRIBUTING.md."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray.rllib", exc_type=ImportError)
pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]  # Ray warns of much of its own

import millrace  # noqa: E402
from millrace.collect.collector import EnvRows  # noqa: E402
from millrace.config import Config  # noqa: E402
from millrace.deploy.policy import find_policy  # noqa: E402
from millrace.envs.make import EnvMaker  # noqa: E402
from millrace.metrics.catalogue import CATALOGUE  # noqa: E402
from millrace.metrics.rows import read_rows  # noqa: E402
from millrace.rllib.seats import as_inputs  # noqa: E402
from millrace.types import RolloutLayout  # noqa: E402

TINY = {"metrics.every_s": 0.0, "metrics.tensorboard": False, "net.hidden": [8], "ppo.learning_rate": 3e-3}


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """One Ray for all runs of this file, which find it at work and leave it there."""
    import ray

    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *([path] if path else [])])
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def train(env, run_dir, settings=None, **short):
    sizes = {"backend": "serial", "workers": 1, "envs_per_worker": 4, "rollout_steps": 16, "total_env_steps": 128}
    return millrace.train(
        env,
        run_dir=str(run_dir),
        quiet=True,
        settings={**TINY, **(settings or {})},
        engine="rllib",
        **{**sizes, **short},
    )


def test_a_run_has_the_directory_of_any_run_and_its_policy_loads(tmp_path):
    result = train("CartPole-v1", tmp_path / "run", backend="processes")
    assert result.env_steps >= 128
    assert {"config.toml", "metrics.jsonl", "status.json", "lock"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    rows = read_rows(tmp_path / "run")
    assert {"env_steps", "policy_loss", "value_loss", "entropy", "share_learn"} <= set(rows[-1])
    assert set(rows[-1]) <= set(CATALOGUE)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "complete"
    assert result.policy.env.id == "CartPole-v1"
    assert result.policy.record.net.hidden == (8,)
    assert len(millrace.evaluate(result.policy, episodes=2).episodes) == 2


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("millrace/RealmMini-v0", {}),
        ("Pendulum-v1", {"ppo.normalize_observation": True, "net.shared": True}),
        ("Pendulum-v1", {"net.state_log_std": True, "net.activation": "relu"}),
        ("CartPole-v1", {"net.memory": "lstm", "net.memory_size": 6}),
        ("toys:Masked", {}),
        ("CartPole-v1", {"rllib.algorithm": "APPO"}),
    ],
)
def test_what_was_trained_plays_here_as_it_did_there(env, settings, tmp_path):
    """The policy's parameters, from the environment's own observations, are those of RLlib's module."""
    result = train(env, tmp_path / "run", settings)
    policy = result.policy
    here = EnvMaker(Config().replace({"env.id": env}).env).make(1, seed=7)
    row = EnvRows((layout := RolloutLayout(here.spec, 1, 1)).allocate(), layout).rows[0]
    here.reset(row)
    params, value = policy.forward(row.observation, policy.new_state() if policy.has_memory else None)

    seen = as_inputs(here.spec, row.observation)
    if settings.get("ppo.normalize_observation"):
        arrays = find_policy(tmp_path / "run", trust=True).read_policy()[1]
        moments = [arrays[f"normalizer.[obs].{name}"] for name in ("offset", "factor")]
        seen = np.clip((seen - moments[0]) * moments[1], -10, 10)
    newest = max((tmp_path / "run" / "checkpoints").glob("step_*"))
    wanted, wanted_value = by_rllib(newest / "learner_group/learner/rl_module/default_policy", seen, row.action_mask)
    np.testing.assert_allclose(value, wanted_value, rtol=1e-5, atol=1e-5)
    spec = policy.spec.action
    if spec.num_box:
        half = (np.array(spec.high) - np.array(spec.low)) / 2
        wanted = np.concatenate([wanted[:, : spec.num_box] * half, wanted[:, spec.num_box :] + np.log(half)], axis=1)
    allowed = np.ones_like(params, bool) if row.action_mask is None else row.action_mask
    np.testing.assert_allclose(params[allowed], wanted[allowed], rtol=1e-5, atol=1e-5)


def by_rllib(module_directory, seen, mask):
    """What RLlib's module makes of one observation [1, inputs]: inputs of the distribution, and the value."""
    import torch
    from ray.rllib.core.rl_module.rl_module import RLModule

    module = RLModule.from_checkpoint(str(module_directory))

    def batch():
        observation = torch.as_tensor(seen)
        if mask is not None:
            return {"obs": {"observations": observation, "action_mask": torch.as_tensor(mask).float()}}
        if not module.is_stateful():
            return {"obs": observation}
        zeros = {key: {k: torch.as_tensor(x)[None] for k, x in part.items()} for key, part in state.items()}
        return {"obs": observation[None], "state_in": zeros}

    state = module.get_initial_state()
    with torch.no_grad():
        params = module.forward_inference(batch())["action_dist_inputs"]
        return params.reshape(1, -1).numpy(), module.compute_values(batch()).numpy().ravel()


def test_seats_of_one_game_are_agents_and_share_a_policy(tmp_path):
    result = train("toys:PileRounds", tmp_path / "run", {"rllib.seats": 2})
    assert result.policy.spec.observation["obs"].shape == (2,)
    assert result.episodes > 0


def test_the_agents_of_a_game_act_and_end_together():
    from millrace.rllib.envs import make_seats_env

    given = millrace.rllib_env("toys:PileRounds", seats=2)["env_config"]
    env = make_seats_env(given)
    observation, _ = env.reset(seed=1)
    assert list(observation) == ["seat_0", "seat_1"]
    total, steps = {"seat_0": 0.0, "seat_1": 0.0}, 0
    ends = {"__all__": False}
    while not ends["__all__"]:
        observation, reward, ends, _, _ = env.step({"seat_0": 1, "seat_1": 0})
        total = {name: total[name] + reward[name] for name in total}
        steps += 1
    # Nine stones, taken 2, 1, 2, 1, 2 and the last 1: seat 1 wins 10, and either's gain is the other's loss.
    assert total == {"seat_0": 6 - 3 - 10, "seat_1": 3 - 6 + 10}
    assert steps == 3
    assert env.reset()[0]["seat_0"][0] == 1.0


def test_one_call_offers_any_environment_with_its_mask(tmp_path):
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

    config = PPOConfig().environment(**millrace.rllib_env("toys:Masked"))
    config = config.env_runners(num_env_runners=0).training(train_batch_size=32, minibatch_size=32, num_epochs=1)
    algorithm = config.rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule)).build_algo()
    algorithm.train()
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()
    policy = millrace.load_policy(tmp_path / "checkpoint", trust=True)
    assert policy.env.id == "toys:Masked"
    assert policy.spec.has_action_mask


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    first = train("CartPole-v1", tmp_path / "run")
    again = millrace.resume(tmp_path / "run", total_env_steps=256, quiet=True)
    assert again.env_steps >= 256 > first.env_steps
    assert again.updates > first.updates
    assert len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == 2


def test_settings_without_a_counterpart_are_named(tmp_path):
    train(
        "CartPole-v1",
        tmp_path / "run",
        {"ppo.dual_clip": 3.0, "rnd.coef": 0.5, "ppo.clip": 0.1, "ppo.clip_schedule": "linear"},
    )
    text = (tmp_path / "run" / "log.txt").read_text()
    named = text.partition("no counterpart of ")[2]
    assert "ppo.dual_clip=3.0" in named
    assert "rnd.coef=0.5" in named
    assert "ppo.clip_schedule=linear" in named
    assert "ppo.clip=" not in named


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"net.hidden": []}, "one dense layer at least"), ({"net.memory": "gru"}, "use lstm")],
)
def test_what_rllib_cannot_do_is_refused(settings, sentence, tmp_path):
    with pytest.raises(millrace.MillraceError, match=sentence):
        train("CartPole-v1", tmp_path / "run", settings)


def test_ctrl_c_ends_the_run_whole(tmp_path):
    command = [sys.executable, "-m", "millrace", "train", "CartPole-v1", "--engine", "rllib", "--workers", "1"]
    sizes = ["--envs-per-worker", "4", "--rollout-steps", "16", "--metrics.every_s", "0"]
    found = {**os.environ, "PYTHONPATH": str(Path(millrace.__file__).parents[1])}
    process = subprocess.Popen([*command, *sizes, "--run-dir", "run"], cwd=tmp_path, env=found, start_new_session=True)
    rows = tmp_path / "run" / "metrics.jsonl"
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s and not (rows.exists() and rows.read_text().count("\n") >= 2):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped by SIGINT"
    assert millrace.load_policy(tmp_path / "run", trust=True).env.id == "CartPole-v1"
