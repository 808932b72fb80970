"""Finds the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from millrace import __version__
from millrace.errors import ConfigError, MillraceError

COMMANDS = {
    "train": "train an agent on an environment, a settings file or a recipe",
    "resume": "continue a run where it stopped",
    "sweep": "train under different settings side by side, and sort them by what came of it",
    "eval": "play episodes with trained policies, and compare them",
    "play": "record one episode as GIF, MP4 or PNG",
    "export": "write a policy into one file, for Millrace or as ONNX",
    "envs": "list environments and recipes",
    "check-env": "look at an environment before training on it",
    "config": "print the effective settings as TOML",
    "bench": "measure how speed grows with workers, or that a run repeats",
    "doctor": "examine this machine, a policy as it is loaded, or the health of a run",
    "replay": "reproduce a worker's crash from its file",
    "demo": "train RealmMini for three minutes and compare with the yardsticks",
}

HELP = """\
usage: millrace COMMAND [ARGUMENTS]

Trains game-playing agents with PPO, in one process or many.

commands:
{commands}

  millrace COMMAND --help tells about one; --version prints the version.

examples:
  millrace train CartPole-v1                        learn something in seconds
  millrace train my_game:make_env --workers 4       your own environment
  millrace resume                                   go on with the newest run
  millrace eval --episodes 100                      how good is it?

exit codes:
{codes}

MILLRACE_DEBUG=1 in the environment shows tracebacks.
"""

EXIT_CODES = {
    0: "done",
    1: "an error that none of the others names",
    2: "a setting, an argument or an environment's name is wrong",
    3: "an environment broke its contract, or workers failed too often",
    4: "a run or checkpoint cannot be read or does not fit",
    5: "another process is training in this run directory",
    6: "an optional library is missing",
    130: "interrupted; training has saved a checkpoint",
}

INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(arguments)
    except SystemExit as leaving:  # --help of a command
        return leaving.code if isinstance(leaving.code, int) else 1
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output is gone; keep Python from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MillraceError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error} ({_place(error)}); MILLRACE_DEBUG=1 shows the traceback", 1)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"millrace {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise ConfigError(_unknown_command(name))
    return int(importlib.import_module(f"millrace.cli.commands.{name.replace('-', '_')}").run(rest))


def _help() -> str:
    commands = "\n".join(f"  {name:<11}{summary}" for name, summary in COMMANDS.items())
    codes = "\n".join(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items())
    return HELP.format(commands=commands, codes=codes)


def _unknown_command(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, 1)
    return f"there is no command {name!r}" + (
        f"; did you mean {near[0]}?" if near else "; `millrace --help` lists them"
    )


def _fail(message: str, exit_code: int) -> int:
    if os.environ.get("MILLRACE_DEBUG") == "1":
        traceback.print_exc()
    print(f"millrace: {message}", file=sys.stderr, flush=True)
    return exit_code


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else "no place known"  # noqa: PTH119 - pathlib is not loaded yet
