"""Settings on the command line: every one as an option, documented by the source of `millrace.config`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from millrace import config as config_module
from millrace.cli.parser import Parser
from millrace.config import SHORT_NAMES, Config, parse_toml
from millrace.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """One setting and what its source says of it.

    Attributes:
        name: dotted, for example `ppo.clip`.
        section: `ppo`, or empty for those at the top.
        hint: its type.
        meaning: the docstring below the field.
    """

    name: str
    section: str
    hint: Any
    default: Any
    meaning: str

    @property
    def options(self) -> list[str]:
        """Its names on the command line, the short one first."""
        short = [option(key) for key, name in SHORT_NAMES.items() if name == self.name]
        return [*short, *([f"--{self.name}"] if f"--{self.name}" not in short and self.section else [])]

    @property
    def kind(self) -> str:
        """Its type in words."""
        origin, arguments = typing.get_origin(self.hint), typing.get_args(self.hint)
        if origin is Literal:
            return "|".join(map(str, arguments))
        if origin is dict:
            return "KEY=VALUE"
        if origin is tuple:
            return f"{arguments[0].__name__.upper()},..."
        return str((arguments[0] if arguments else self.hint).__name__).upper()


@dataclass(frozen=True)
class Section:
    """A table of settings with the docstring of its class."""

    name: str
    meaning: str
    settings: list[Setting]


def option(name: str) -> str:
    """`total_env_steps` as `--total-env-steps`."""
    return "--" + name.replace("_", "-")


def sections() -> list[Section]:
    """Every setting by table, those without one first, in the order of `millrace.config`."""
    config, docs = Config(), _docstrings()
    tables = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    tables = {name: value for name, value in tables.items() if dataclasses.is_dataclass(value)}
    found = [Section("", "The run", list(_settings(config, "", docs)))]
    for name, table in tables.items():
        found.append(Section(name, docs[type(table).__name__, ""], list(_settings(table, name, docs))))
    return found


def _settings(table: Any, section: str, docs: Mapping[tuple[str, str], str]) -> Iterator[Setting]:
    hints = typing.get_type_hints(type(table))
    for field in dataclasses.fields(table):
        default = getattr(table, field.name)
        if dataclasses.is_dataclass(default):
            continue
        name = f"{section}.{field.name}" if section else field.name
        yield Setting(name, section, hints[field.name], default, docs[type(table).__name__, field.name])


def _docstrings() -> dict[tuple[str, str], str]:
    """(class, field) to the string below the field; (class, "") to the class's own."""
    docs: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(config_module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        docs[node.name, ""] = (ast.get_docstring(node) or "").split("\n")[0]
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                docs[node.name, field.target.id] = inspect.cleandoc(str(below.value.value)) if is_text else ""  # type: ignore[attr-defined]
    return docs


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for every setting; what is given is collected in `arguments.settings`."""
    parser.set_defaults(settings={})
    for section in sections():
        title = f"settings of the {section.name} table" if section.name else "settings of the run"
        group = parser.add_argument_group(title, section.meaning if section.name else None)
        for setting in section.settings:
            group.add_argument(
                *setting.options,
                dest=setting.name,
                action=_SettingAction,
                hint=setting.hint,
                metavar=setting.kind,
                help=f"{setting.meaning} [{shown(setting.default)}]".replace("%", "%%"),
            )


def add_dict_option(parser: argparse.ArgumentParser, name: str, meaning: str) -> None:
    """One option of the kind KEY=VALUE outside the settings, collected in `arguments.settings` too."""
    parser.set_defaults(settings={})
    parser.add_argument(f"--{name}", action=_SettingAction, hint=dict[str, Any], metavar="KEY=VALUE", help=meaning)


class _SettingAction(argparse.Action):
    """Collects the setting; a table that is named twice grows."""

    def __init__(self, option_strings: list[str], dest: str, hint: Any, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, **kwargs)
        self.hint = hint

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        value = parse_value(self.hint, values, option_string or self.dest)
        if isinstance(value, dict):
            value = {**namespace.settings.get(self.dest, {}), **value}
        namespace.settings[self.dest] = value


def parse_value(hint: Any, text: str, where: str) -> Any:
    """A command-line word as the type that a setting has; what does not fit is left to the settings' own check.

    Raises:
        ConfigError: a table that is not KEY=VALUE.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is str or origin is Literal:
        return text
    if origin is dict:
        return _parse_table(text, where)
    if origin is tuple:
        items = text.strip().strip("[]()").split(",")
        return tuple(parse_value(arguments[0], item.strip().strip("'\""), where) for item in items if item.strip())
    if type(None) in arguments and text in ("", "none", "None"):
        return None
    return _parse_word(text)


def _parse_table(text: str, where: str) -> dict[str, Any]:
    """`a=1, b=two` or `{a = 1, b = "two"}`."""
    inner = text.strip()
    try:
        return dict(parse_toml(f"table = {inner if inner.startswith('{') else '{' + inner + '}'}")["table"])
    except ValueError:
        key, equals, value = inner.partition("=")
        if not equals or not key.strip() or inner.startswith("{"):
            raise ConfigError(
                f"{where} {text!r}: write KEY=VALUE, or a TOML table such as '{{a = 1, b = \"x\"}}'"
            ) from None
        return {key.strip(): _parse_word(value.strip())}


def _parse_word(text: str) -> Any:
    try:
        return parse_toml(f"word = {text}")["word"]
    except ValueError:
        return text


def overrule(config: Config, settings: Mapping[str, Any]) -> Config:
    """The config with command-line settings; tables add to what is there."""
    merged = dict(settings)
    present = {"env.kwargs": config.env.kwargs, "eval.kwargs": config.eval.kwargs, "curriculum": config.curriculum}
    for name, table in present.items():
        if name in settings:
            merged[name] = {**table, **settings[name]}
    return config.replace(merged, where="command line")


def parse_words(config: Config, words: list[str]) -> Config:
    """The config overruled by `--section.key value ...` alone."""
    options = Parser("train", "")
    add_settings(options)
    return overrule(config, options.parse(words).settings)


def commented_toml(config: Config, auto: Config | None = None) -> str:
    """The settings as TOML with their meaning above each.

    Args:
        auto: the settings before `auto` values were filled in: what differs is marked.
    """
    lines: list[str] = []
    for section in sections():
        values = getattr(config, section.name) if section.name else config
        before = values if auto is None else (getattr(auto, section.name) if section.name else auto)
        if section.name:
            lines += ["", f"# {section.meaning}", f"[{section.name}]"]
        for setting in section.settings:
            key = setting.name.rpartition(".")[2]
            value, is_auto = getattr(values, key), getattr(values, key) != getattr(before, key)
            lines += [f"# {line}" for line in setting.meaning.splitlines()]
            line = f"# {key} = " if value is None else config_module.toml_line(key, value)
            lines.append(line + ("  # auto" if is_auto else ""))
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A default for people."""
    if value is None or value == "":
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:_}" if isinstance(value, int) else str(value)
