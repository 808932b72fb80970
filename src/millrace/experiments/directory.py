"""The directory of an experiment: what its runs have in common, and that nobody else is at work in it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from millrace import system
from millrace.config import Config, look_up, parse_toml, setting_names
from millrace.errors import ConfigError, MillraceError
from millrace.experiments.records import jsonable

SETTINGS = "settings.toml"


class ExperimentDirectory:
    """settings.toml, summaries, lock, and the directories of the runs. A context manager: it holds the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = system.FileLock(path / "lock")

    def __enter__(self) -> ExperimentDirectory:
        if (self.path / "config.toml").exists():
            raise ConfigError(f"{self.path} holds a single run; choose another --run-dir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise MillraceError(f"cannot write the directory {self.path}: {error.strerror}; choose --run-dir") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def settle(self, config: Config) -> None:
        """Write the settings that all runs share, or check that they are those with which it began.

        Raises:
            ConfigError: they differ; runs under unlike settings do not belong in one table.
        """
        file = self.path / SETTINGS
        config = dataclasses.replace(config, seed=0, run_dir="")  # each run has its own
        config = config.replace({"metrics.console": "lines"})  # and how it is shown says nothing
        if not file.exists():
            file.write_text(config.to_toml(), encoding="utf-8")
            return
        before = Config.from_toml(file)
        config = Config().replace(parse_toml(config.to_toml()))  # a tuple among arguments reads back as a list
        for name in setting_names():
            old, new = look_up(before, name), look_up(config, name)
            if old != new:
                raise ConfigError(
                    f"{self.path} was begun with {name}={old!r}, and now it is {new!r}; give the same settings and "
                    "--parallel to continue it, or choose another --run-dir"
                )

    def write_json(self, name: str, content: Any) -> None:
        """Replace a summary, whole or not at all."""
        self.write_text(name, json.dumps(jsonable(content), indent=1) + "\n")

    def write_text(self, name: str, content: str) -> None:
        aside = self.path / f"{name}.new"
        aside.write_text(content, encoding="utf-8")
        aside.replace(self.path / name)
