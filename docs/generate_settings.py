"""Writes docs/settings.md from the docstrings of millrace.config: `python docs/generate_settings.py`."""

from __future__ import annotations

from pathlib import Path

from millrace.cli.settings import Section, Setting, sections, shown

TARGET = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

Made by `python docs/generate_settings.py` from the docstrings in `src/millrace/config.py`; do not edit.

The same names everywhere: in a TOML file (`[ppo]` and `clip = 0.1`), on the command line (`--ppo.clip 0.1`), and from
Python (`settings={"ppo.clip": 0.1}`). Each source overrules the one before: defaults, file, command line or keyword
arguments. Settings marked "0 = auto" or "-1 = auto" are filled in from the environment and the machine before anything
starts; `millrace config ENV` shows to what, and the run directory's `config.toml` keeps it.
"""


def markdown() -> str:
    """The whole page."""
    return HEAD + "".join(_section(section) for section in sections())


def _section(section: Section) -> str:
    title = f"\n## `[{section.name}]`\n\n{section.meaning}\n" if section.name else "\n## The run\n"
    rows = "".join(_row(setting) for setting in section.settings)
    return f"{title}\n| setting | type | default | meaning |\n| --- | --- | --- | --- |\n{rows}"


def _row(setting: Setting) -> str:
    names = ", ".join(f"`{name}`" for name in [setting.name, *setting.options[: -1 if setting.section else None]])
    kind = setting.kind.replace("|", ", ")
    return f"| {names} | {kind} | {shown(setting.default)} | {' '.join(setting.meaning.split())} |\n"


if __name__ == "__main__":
    TARGET.write_text(markdown(), encoding="utf-8")
