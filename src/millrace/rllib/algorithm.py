"""Millrace's settings as those of RLlib's PPO or APPO, on its new API stack, through its public interface."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from millrace.config import Config, look_up, setting_names
from millrace.errors import ConfigError
from millrace.nets.inputs import NATURE_MIN_SIDE
from millrace.rllib.seats import single_image
from millrace.stop_rules import RECENT_EPISODES
from millrace.types import SlotSpec

DEFAULT_POLICY, SHARED_POLICY = "default_policy", "shared"  # one of the default's name is none of several agents
TRANSLATED_TABLES = ("env.", "rllib.", "stop.", "metrics.", "eval.")
TRANSLATED = (
    *("collect.backend", "collect.workers", "collect.envs_per_worker", "collect.rollout_steps"),
    *("net.hidden", "net.activation", "net.shared", "net.state_log_std", "net.memory", "net.memory_size"),
    *("ppo.learning_rate", "ppo.learning_rate_schedule", "ppo.epochs", "ppo.minibatch_size", "ppo.minibatches"),
    *("ppo.gamma", "ppo.gae_lambda", "ppo.clip", "ppo.value_coef", "ppo.entropy_coef", "ppo.max_grad_norm"),
    *("ppo.normalize_observation", "ppo.threads", "total_env_steps", "seed", "device", "run_dir", "engine"),
    *("checkpoint.every_env_steps", "checkpoint.every_s", "checkpoint.keep_last"),
)
"""Settings that RLlib follows, or that are the run's own affair."""
CONVOLUTIONS = {"nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)), "small": ((16, 5, 2), (32, 3, 2), (32, 3, 2))}


def without_counterpart(config: Config, before: Config, spec: SlotSpec) -> list[str]:
    """Settings that differ from those before and that RLlib will not follow, as NAME=VALUE."""
    names = [
        name
        for name in setting_names(config)
        if look_up(config, name) != look_up(before, name)
        and name not in TRANSLATED
        and not name.startswith(TRANSLATED_TABLES)
    ]
    if config.ppo.learning_rate_schedule == "kl":
        names.append("ppo.learning_rate_schedule")
    if config.ppo.normalize_observation and not can_normalize(config, spec):
        names.append("ppo.normalize_observation")
    return [f"{name}={look_up(config, name)}" for name in names]


def can_normalize(config: Config, spec: SlotSpec) -> bool:
    """Whether RLlib's filter does what Millrace's would: for one seat, one array of numbers, without a mask."""
    arrays = list(spec.observation.values())
    if config.rllib.seats > 1:  # each would have moments of its own
        return False
    return (
        len(arrays) == 1 and arrays[0].dtype.startswith("float") and arrays[0].stack == 1 and not spec.has_action_mask
    )


def make_algorithm(config: Config, spec: SlotSpec, environment: dict[str, Any]) -> Any:
    """RLlib's algorithm, built.

    Args:
        config: resolved.
        environment: from `millrace.rllib.envs.offer`.

    Raises:
        ConfigError: RLlib cannot do what is asked.
    """
    settings = algorithm_config(config, spec).environment(**environment)
    if config.rllib.seats > 1:
        settings = settings.multi_agent(policies={SHARED_POLICY}, policy_mapping_fn=_one_for_all)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # after its import, which sets another
    try:
        return settings.build_algo() if hasattr(settings, "build_algo") else settings.build()
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise ConfigError(f"RLlib refuses these settings: {error}") from error


def _one_for_all(*_: Any, **__: Any) -> str:
    return SHARED_POLICY


def algorithm_config(config: Config, spec: SlotSpec) -> Any:
    """All but the environment."""
    from ray.rllib.algorithms.appo import APPOConfig
    from ray.rllib.algorithms.ppo import PPOConfig

    is_ppo = config.rllib.algorithm == "PPO"
    collect, ppo = config.collect, config.ppo
    settings = (PPOConfig if is_ppo else APPOConfig)().framework("torch")
    # A local runner shares the process of the learner, as `serial` has it; APPO has none.
    runners = 0 if is_ppo and collect.backend == "serial" else collect.workers
    settings = settings.env_runners(
        num_env_runners=runners,
        num_envs_per_env_runner=collect.envs_per_worker * (1 if runners else collect.workers),
        rollout_fragment_length=collect.rollout_steps,
        **_filter(config, spec),
    )
    rows = collect.workers * collect.envs_per_worker * collect.rollout_steps
    falls = ppo.learning_rate_schedule == "linear"
    settings = settings.training(
        lr=[[0, ppo.learning_rate], [config.total_env_steps, 0.0]] if falls else ppo.learning_rate,
        gamma=ppo.gamma,
        lambda_=ppo.gae_lambda,
        clip_param=ppo.clip,
        train_batch_size_per_learner=rows,
        num_epochs=ppo.epochs,
        # RLlib's value loss is a squared error, Millrace's half of one.
        vf_loss_coeff=ppo.value_coef / 2,
        entropy_coeff=ppo.entropy_coef,
        grad_clip=ppo.max_grad_norm,
        grad_clip_by="global_norm",
        use_kl_loss=False,
        **({"minibatch_size": ppo.minibatch_size, "vf_clip_param": np.inf} if is_ppo else {}),
    )
    settings = settings.learners(num_learners=0, num_gpus_per_learner=1 if config.device.startswith("cuda") else 0)
    settings = settings.debugging(seed=config.seed, log_level="ERROR")
    settings = settings.reporting(metrics_num_episodes_for_smoothing=RECENT_EPISODES, min_time_s_per_iteration=0)
    return settings.rl_module(rl_module_spec=_module_spec(config, spec))


def _filter(config: Config, spec: SlotSpec) -> dict[str, Any]:
    if not config.ppo.normalize_observation or not can_normalize(config, spec):
        return {}
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    return {"env_to_module_connector": lambda *_, **__: MeanStdFilter()}


def _module_spec(config: Config, spec: SlotSpec) -> Any:
    """RLlib's own module of the same widths; the one for masks where there is a mask."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    if not config.net.hidden:
        raise ConfigError("net.hidden is empty, and RLlib's network has one dense layer at least; try 64")
    if config.net.memory == "gru":
        raise ConfigError("net.memory=gru is none of RLlib's default networks; use lstm")
    settings = DefaultModelConfig(
        fcnet_hiddens=list(config.net.hidden),
        fcnet_activation=config.net.activation,
        vf_share_layers=config.net.shared,
        free_log_std=spec.action.num_box > 0 and not config.net.state_log_std,
        use_lstm=config.net.memory == "lstm",
        lstm_cell_size=config.net.memory_size,
        max_seq_len=config.collect.rollout_steps,
        **_convolutions(spec),
    )
    if not spec.has_action_mask:
        return RLModuleSpec(model_config=settings)
    if config.rllib.algorithm == "APPO" or config.net.memory != "none":
        raise ConfigError("RLlib's module for action masks is for PPO without memory")
    from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

    return RLModuleSpec(module_class=ActionMaskingTorchRLModule, model_config=settings)


def _convolutions(spec: SlotSpec) -> dict[str, Any]:
    """Millrace's filters, and its dense layer behind them, of which RLlib has one for each head."""
    key = single_image(spec)
    if key is None:
        return {}
    shape = spec.observation[key].seen_shape
    is_large = sorted(shape)[-2] >= NATURE_MIN_SIDE
    filters = [[*one, "valid"] for one in CONVOLUTIONS["nature" if is_large else "small"]]
    width = 512 if is_large else 256
    return {"conv_filters": filters, "conv_activation": "relu", "head_fcnet_hiddens": [width]}
