"""`millrace config`."""

from __future__ import annotations

from millrace.cli.main import COMMANDS
from millrace.cli.parser import Parser
from millrace.cli.settings import add_settings, commented_toml, overrule
from millrace.config import Config

EXAMPLES = """\
  millrace config CartPole-v1 > settings.toml       then edit, and: millrace train settings.toml
  millrace config realm-mini --workers 8            what these options come to on this machine
  millrace config CartPole-v1 --keep-auto           for another machine"""


def parser() -> Parser:
    """The options of `config`."""
    options = Parser("config", f"{COMMANDS['config'].capitalize()}.", EXAMPLES)
    options.add_argument(
        "env", metavar="ENV", help="what `millrace train` takes: an id, MODULE:FUNCTION, TOML, a recipe"
    )
    options.add_argument("--keep-auto", action="store_true", help="leave auto values open instead of filling them in")
    add_settings(options)
    return options


def run(words: list[str]) -> int:
    """Print the settings."""
    arguments = parser().parse(words)
    config = overrule(Config.named(arguments.env), arguments.settings)
    if arguments.keep_auto:
        print(commented_toml(config), end="")
        return 0
    from millrace.envs.make import EnvMaker
    from millrace.resolve import probe_env, resolve

    print(commented_toml(resolve(config, probe_env(EnvMaker(config.env))), config), end="")
    return 0
