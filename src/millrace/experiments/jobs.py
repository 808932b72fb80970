"""One run to be done, and its share of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace import system
from millrace.config import Config
from millrace.errors import ConfigError
from millrace.experiments.records import RunRecord, read_record


@dataclass(frozen=True)
class Job:
    """What a process of its own needs to train.

    Attributes:
        name: for people, for example `seed 3`.
        config: with seed and run directory.
        factory: the user's callable that makes the environment, where it was one.
        network, init_from: as of `millrace.train`.
    """

    name: str
    config: Config
    factory: Callable[..., Any] | None = None
    network: Any = None
    init_from: str | Path | None = None

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)

    def record(self) -> RunRecord:
        """What its directory says."""
        return read_record(self.config.seed, self.run_dir)


def share_cores(config: Config, parallel: int) -> Config:
    """The settings for one of `parallel` runs beside each other: `auto` is what suits its share of the cores.

    Raises:
        ConfigError: parallel is below 1.
    """
    if parallel < 1:
        raise ConfigError(f"--parallel {parallel} must be 1 or more")
    if parallel == 1:
        return config
    share = max(1, system.available_cores() // parallel)
    collect, filled = config.collect, dict[str, Any]()
    backend = collect.backend
    if backend == "auto" and share == 1 and collect.workers <= 1:
        backend = filled["collect.backend"] = "serial"
    if not collect.workers:
        filled["collect.workers"] = 1 if backend == "serial" else max(1, share - 1)  # one core is the learner's
    if not config.ppo.threads:
        filled["ppo.threads"] = 1
    return config.replace(filled)


def seeds_from(seeds: int | list[int] | tuple[int, ...], first: int) -> list[int]:
    """So many seeds counted from the first, or those that are named.

    Raises:
        ConfigError: none, or one twice.
    """
    found = list(range(first, first + seeds)) if isinstance(seeds, int) else list(seeds)
    if not found:
        raise ConfigError(f"seeds={seeds!r}: give how many (1 or more), or name them: 3,7,11")
    if len(set(found)) < len(found):
        raise ConfigError(f"seeds={seeds!r} names a seed twice; each is trained once")
    return found
