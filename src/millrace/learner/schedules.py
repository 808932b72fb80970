"""How learning rate and clip range change as training goes on."""

from __future__ import annotations

from millrace.config import PPOConfig

MIN_CLIP = 1e-6
KL_RATE_BOUNDS = (1e-6, 1e-2)


class Schedules:
    """Linear in the environment steps, constant, or, for the learning rate, steered by the KL divergence."""

    def __init__(self, config: PPOConfig, total_env_steps: int) -> None:
        self._config, self._total_env_steps = config, total_env_steps
        self.kl_rate = config.learning_rate

    def at(self, env_steps: int) -> tuple[float, float]:
        """Learning rate and clip range of an update that begins after `env_steps`."""
        config = self._config
        remaining = 1.0 - min(1.0, env_steps / self._total_env_steps)
        rates = {
            "linear": config.learning_rate * remaining,
            "constant": config.learning_rate,
            "kl": self.kl_rate,
        }
        clip = config.clip * (remaining if config.clip_schedule == "linear" else 1.0)
        return rates[config.learning_rate_schedule], max(clip, MIN_CLIP)

    def observe_kl(self, kl: float) -> None:
        """Steer: slower by 1.5 above twice the desired KL, faster below half of it (rl_games, Sample Factory)."""
        low, high = KL_RATE_BOUNDS
        if kl > 2.0 * self._config.desired_kl:
            self.kl_rate = max(self.kl_rate / 1.5, low)
        elif kl < 0.5 * self._config.desired_kl:
            self.kl_rate = min(self.kl_rate * 1.5, high)
