"""The parser of one command: errors in one line, with the nearest name."""

from __future__ import annotations

import argparse
import difflib
from typing import Any, NoReturn

from millrace.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """`argparse` with our manners."""

    def __init__(self, command: str, summary: str, examples: str = "") -> None:
        super().__init__(
            prog=f"millrace {command}",
            description=summary,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def parse(self, words: list[str]) -> argparse.Namespace:
        """The arguments.

        Raises:
            ConfigError: an unknown option, with the nearest one, or a missing argument.
        """
        # The unknown name is what a person wants to read about, not what follows from it.
        words = [_normalized(word) for word in words]
        for word in words:
            if word.startswith("--") and len(word) > 2:
                self._check_option(word.partition("=")[0])
        return self.parse_args(words)

    def _check_option(self, name: str) -> None:
        known = self._option_string_actions
        if name in known:
            return
        ending = "." + name[2:].replace("-", "_")
        near = [other for other in known if other.endswith(ending)] or difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; see `{self.prog} --help`"
        raise ConfigError(f"there is no option {name}{hint}")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The option without which RLlib's checkpoints are refused."""
    parser.add_argument(
        "--trust", action="store_true", help="RLlib's checkpoints too, which are pickles: you know where they come from"
    )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Each option on a line with its argument named once; examples as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=120)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        """Settings are many: the usage names them together."""
        shown = [action for action in actions if not action.option_strings or "." not in action.dest]
        hidden = len(shown) < len(list(actions))
        text = super()._format_usage(usage, shown, groups, prefix)
        return text.rstrip("\n") + (" [--SECTION.KEY VALUE ...]\n\n" if hidden else "\n\n")


def _normalized(word: str) -> str:
    """Dashes and underscores in option names are alike: `--ppo.learning-rate`, `--total_env_steps`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_") if "." in name else name.replace("_", "-")
    return f"--{name}{equals}{value}"
