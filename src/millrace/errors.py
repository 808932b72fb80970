"""The exceptions of Millrace. Each says what happened, where, and what to do, and carries its exit code."""

from __future__ import annotations


class MillraceError(Exception):
    """Base of every error that Millrace raises on purpose."""

    exit_code = 1


class ConfigError(MillraceError):
    """A setting is unknown, out of range, or contradicts another one."""

    exit_code = 2


class EnvError(MillraceError):
    """An environment broke its contract: a space, a mask, a reward, or an exception of its own."""

    exit_code = 3


class WorkerError(MillraceError):
    """Workers failed more often than the restart budget allows, or none could be started."""

    exit_code = 3


class CheckpointError(MillraceError):
    """A checkpoint or run directory cannot be read, or does not fit what is asked of it."""

    exit_code = 4


class RunLockedError(MillraceError):
    """Another trainer is at work in this run directory."""

    exit_code = 5


class MissingExtraError(MillraceError):
    """An optional library is needed and not installed."""

    exit_code = 6

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {library}, which is not installed: pip install 'millrace[{extra}]'")
