"""What a sweep tries: its file, and the settings of each trial."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from millrace.config import Config, look_up, read_toml, replace_checked, setting_names
from millrace.errors import ConfigError
from millrace.types import require

Settings = dict[str, Any]
LOWER_IS_BETTER = ("env_steps", "wall_s")


@dataclass(frozen=True)
class SweepConfig:
    """The table `[sweep]` of a settings file."""

    method: Literal["grid", "random"] = "grid"
    """Every combination of the values, or draws from them."""
    draws: int = 20
    """Trials of a random sweep; more of them later begin with the same ones."""
    seed: int = 0
    """Of the draws; those of the runs count from the settings' own `seed`."""
    seeds: int = 1
    """Runs of each trial."""
    metric: Literal["mean_return", "best_return", "steps_per_second", "env_steps", "wall_s"] = "mean_return"
    """What trials are sorted by, mean over seeds; of steps and seconds (to a `stop.mean_return`) fewer are better."""
    settings: dict[str, Any] = field(default_factory=dict)
    """By dotted name: a list of values, or `{low, high, log}` to draw from."""

    def __post_init__(self) -> None:
        require(self.draws >= 1, f"sweep.draws={self.draws} must be 1 or more")
        require(self.seeds >= 1, f"sweep.seeds={self.seeds} must be 1 or more")
        require(self.seed >= 0, f"sweep.seed={self.seed} must be 0 or more")


@dataclass(frozen=True)
class Span:
    """Numbers from low to high, both included; integers where the setting is one.

    Attributes:
        log: as many between 1 and 10 as between 10 and 100.
    """

    low: float
    high: float
    log: bool
    is_integer: bool

    def draw(self, random: np.random.Generator) -> int | float:
        # Half a unit to each side gives the outermost integers their share.
        margin = 0.5 if self.is_integer else 0.0
        low, high = self.low - margin, self.high + margin
        value = math.exp(random.uniform(math.log(low), math.log(high))) if self.log else random.uniform(low, high)
        value = min(max(value, self.low), self.high)  # rounding leaves the range by a bit
        return round(value) if self.is_integer else float(value)


def read_plan(path: str | Path) -> tuple[Config, SweepConfig]:
    """The settings that all trials share, and the sweep.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown, with the nearest one, or of the wrong type.
    """
    content = read_toml(path)
    if not isinstance(content.get("sweep"), Mapping):
        raise ConfigError(
            f"{path} has no table [sweep]; see docs/experiments.md, or train on it: millrace train {path}"
        )
    table = content.pop("sweep")
    known = [f"sweep.{entry.name}" for entry in fields(SweepConfig)]
    return Config().replace(content, where=str(path)), replace_checked(SweepConfig(), table, str(path), "sweep.", known)


def make_trials(base: Config, plan: SweepConfig) -> list[Settings]:
    """The settings of each trial, by dotted name.

    Raises:
        ConfigError: a setting is unknown, a value does not fit it, or there is nothing to try.
    """
    choices = {name: _choice(base, name, value) for name, value in _by_name(plan.settings).items()}
    if not choices:
        raise ConfigError('[sweep.settings] is empty; name settings, for example "ppo.clip" = [0.1, 0.2]')
    trials = _grid(choices) if plan.method == "grid" else _random(choices, plan)
    for trial in trials:
        base.replace(trial, where="sweep.settings")
    return trials


def _by_name(table: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested tables as dotted names: `ppo.clip = [...]` and `"ppo.clip" = [...]` are the same."""
    known, found = set(setting_names()), Settings()
    for key, value in table.items():
        name = prefix + key
        is_table = isinstance(value, Mapping) and any(other.startswith(f"{name}.") for other in known)
        found |= _by_name(value, f"{name}.") if is_table else {name: value}
    return found


def _choice(base: Config, name: str, value: Any) -> list[Any] | Span:
    """The values, each fit for the setting, or the range."""
    where = "sweep.settings"
    if name in ("seed", "run_dir"):
        raise ConfigError(f"{where}: {name} is each run's own; sweep.seeds says how many seeds a trial has")
    if name not in set(setting_names()):
        base.replace({name: value}, where)  # which says so, with the nearest name
    if isinstance(value, list) and value:
        return [look_up(base.replace({name: item}, where), name) for item in value]
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where}: {name}={value!r} must be a list of values or a range such as {{low = 1, high = 9}}"
        )
    return _span(base, name, value)


def _span(base: Config, name: str, table: Mapping[str, Any]) -> Span:
    where, shown = f"sweep.settings: {name}", dict(table)
    unknown = table.keys() - {"low", "high", "log"}
    if unknown or not {"low", "high"} <= table.keys():
        raise ConfigError(f"{where}={shown}: a range is {{low = ..., high = ...}}, with log = true if wanted")
    current = look_up(base, name)
    if isinstance(current, bool | str | tuple | dict):
        raise ConfigError(f"{where} is no number to draw from a range; give a list of values")
    low, high = (look_up(base.replace({name: table[end]}, where), name) for end in ("low", "high"))
    log = table.get("log", False)
    if not low < high or not isinstance(log, bool) or (log and low <= 0):
        raise ConfigError(f"{where}={shown}: low must be below high, log true or false, and low above 0 with log")
    return Span(low, high, log, isinstance(current, int))


def _grid(choices: Mapping[str, list[Any] | Span]) -> list[Settings]:
    spans = [name for name, choice in choices.items() if isinstance(choice, Span)]
    if spans:
        raise ConfigError(f'sweep.settings: {spans[0]} is a range, which a grid has no end of; method = "random" draws')
    lists = [choice for choice in choices.values() if not isinstance(choice, Span)]
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*lists)]


def _random(choices: Mapping[str, list[Any] | Span], plan: SweepConfig) -> list[Settings]:
    random = np.random.default_rng(plan.seed)
    return [{name: _draw(choice, random) for name, choice in choices.items()} for _ in range(plan.draws)]


def _draw(choice: list[Any] | Span, random: np.random.Generator) -> Any:
    return choice.draw(random) if isinstance(choice, Span) else choice[int(random.integers(len(choice)))]
