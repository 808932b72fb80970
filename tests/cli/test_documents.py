"""What the documents say is so."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest

from millrace.cli.main import COMMANDS, EXIT_CODES
from millrace.config import RECIPES, Config, recipe_names, setting_names

from .conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_settings", ROOT / "docs" / "generate_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == module.markdown(), "run: python docs/generate_settings.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_settings_named_in_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"^(?:\$ )?millrace ([a-z-]+)", text, re.MULTILINE) + re.findall(
        r"`millrace ([a-z-]+)", text
    ):
        assert name in COMMANDS, f"{page.name} names the command {name}"
    names = set(setting_names())
    for option in re.findall(r"--([a-z]+\.[a-z_]+)", text):
        assert option in names, f"{page.name} names the setting {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_s_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"train", "test"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_troubleshooting_page_explains_every_exit_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert all(f"| {code} |" in text for code in EXIT_CODES)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name: str) -> None:
    assert Config.from_toml(RECIPES / f"{name}.toml").env.id


def test_functions_and_settings_in_the_table_of_ppo_details_exist() -> None:
    text = (ROOT / "docs" / "ppo-details.md").read_text(encoding="utf-8")
    settings = set(setting_names())
    names = [name for name in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", text) if name not in settings]
    assert len(names) > 30
    for name in names:
        assert _resolves(f"millrace.{name}"), f"ppo-details.md names {name}"


def _resolves(path: str) -> bool:
    """Whether a dotted path leads to a module, class, function, field or attribute set by a constructor."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                # Fields without a default and attributes of instances are no attributes of the class.
                return f"{name}:" in inspect.getsource(found) or f"self.{name} =" in inspect.getsource(found)
            found = getattr(found, name)
        return True
    return False


def test_constraints_pin_the_torch_that_make_and_ci_install_first() -> None:
    pinned = next(
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("torch==")
    )
    assert f"TORCH = {pinned}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    ci = shlex.split((ROOT / ".ci" / "run").read_text(encoding="utf-8"), comments=True)
    assert pinned in ci


def test_the_page_of_realm_names_every_option_and_reward_term_with_its_default() -> None:
    from millrace.games.realm import RealmOptions, RealmReward

    text = (ROOT / "docs" / "realm.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip(" `"): cells[2].strip()
        for cells in (line.split("|") for line in text.splitlines())
        if len(cells) > 3
    }
    for name in RealmOptions.__dataclass_fields__:
        assert name in rows, f"realm.md lacks the option {name}"
    for name, default in vars(RealmReward()).items():
        assert float(rows[name]) == default, f"realm.md on {name}"
