"""Environment options as functions of training progress."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from millrace.types import require

Options = dict[str, Any]
ROUNDING = 1e-9
RAMP_STEPS = 100  # a ramp moves in hundredths: the options change that often at most


@dataclass(frozen=True)
class Steps:
    """One value after another: the i-th from the progress `begins[i]` on."""

    values: tuple[Any, ...]
    begins: tuple[float, ...]

    def at(self, progress: float) -> Any:
        return self.values[sum(begin <= progress for begin in self.begins) - 1]


@dataclass(frozen=True)
class Ramp:
    """From one number to another until some progress, then on at the last; whole numbers stay whole."""

    first: float
    last: float
    until: float

    def at(self, progress: float) -> float:
        share = min(1.0, int(RAMP_STEPS * progress / self.until + ROUNDING) / RAMP_STEPS)
        value = self.first + share * (self.last - self.first)
        return round(value) if isinstance(self.first, int) and isinstance(self.last, int) else value


class Curriculum:
    """The `[curriculum]` table: option by option a schedule over progress, 0 at the start and 1 at `total_env_steps`.

    A schedule is a list of values for equal shares of progress, `{values = [...], at = [...]}` with the progress
    at which each value begins, or a ramp `{from = a, to = b, until = p}`.

    Raises:
        ConfigError: a schedule of another form.
    """

    def __init__(self, table: Mapping[str, Any], total_env_steps: int) -> None:
        self._total_env_steps = total_env_steps
        self._schedules = {name: _schedule(name, value) for name, value in _flat(table)}

    def at(self, env_steps: int) -> Options:
        """The options after so many environment steps."""
        progress = min(1.0, env_steps / self._total_env_steps)
        return {name: schedule.at(progress) for name, schedule in self._schedules.items()}

    def stages(self) -> list[Options]:
        """Every combination that the run will come through, in order; to be tried out beforehand."""
        stages: list[Options] = []
        for hundredth in range(RAMP_STEPS + 1):
            options = self.at(hundredth * self._total_env_steps // RAMP_STEPS)
            if not stages or options != stages[-1]:
                stages.append(options)
        return stages


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots for tables within tables, which TOML makes of keys without quotes."""
    for name, value in table.items():
        if isinstance(value, Mapping) and not {"values", "at", "from", "to", "until"} & set(value):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _schedule(name: str, value: Any) -> Steps | Ramp:
    where = f"curriculum.{name}={value!r}"
    if isinstance(value, list | tuple):
        require(bool(value), f"{where} has no values")
        return Steps(tuple(value), tuple(i / len(value) for i in range(len(value))))
    require(
        isinstance(value, Mapping),
        f"{where} must be a list of values, {{values, at}} or {{from, to, until}}; try [...]",
    )
    if "values" in value:
        return _steps(_known(value, ("values", "at"), where), where)
    return _ramp(_known(value, ("from", "to", "until"), where), where)


def _known(value: Mapping[str, Any], names: tuple[str, ...], where: str) -> Mapping[str, Any]:
    for key in value:
        near = difflib.get_close_matches(key, names, 1)
        require(key in names, f"{where} has no key {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
    for key in names:
        require(key in value or key == "until", f"{where} needs {key!r}")
    return value


def _steps(value: Mapping[str, Any], where: str) -> Steps:
    values, begins = tuple(value["values"]), tuple(float(begin) for begin in value["at"])
    require(len(values) == len(begins) > 0, f"{where}: as many values as beginnings are needed")
    require(begins[0] == 0.0 and list(begins) == sorted(begins), f"{where}: `at` must rise from 0.0")
    require(begins[-1] < 1.0, f"{where}: the last value would never begin; progress ends at 1")
    return Steps(values, begins)


def _ramp(value: Mapping[str, Any], where: str) -> Ramp:
    until = float(value.get("until", 1.0))
    require(0.0 < until <= 1.0, f"{where}: `until` must lie in 0..1")
    for key in ("from", "to"):
        require(isinstance(value[key], int | float), f"{where}: {key!r} must be a number")
    return Ramp(value["from"], value["to"], until)
