"""`millrace envs`."""

from __future__ import annotations

from typing import Any

from millrace.cli.main import COMMANDS
from millrace.cli.output import print_json, print_table
from millrace.cli.parser import Parser
from millrace.config import RECIPES, Config, recipe_names

EXAMPLES = """\
  millrace envs                                     all of them
  millrace envs cart"""


def parser() -> Parser:
    """The options of `envs`."""
    options = Parser("envs", f"{COMMANDS['envs'].capitalize()}.", EXAMPLES)
    options.add_argument("filter", metavar="FILTER", nargs="?", default="", help="only names that contain this")
    options.add_argument("--json", action="store_true", help="one JSON object")
    return options


def run(words: list[str]) -> int:
    """List."""
    arguments = parser().parse(words)
    wanted = arguments.filter.lower()
    environments = [row for row in environment_rows() if wanted in row["id"].lower()]
    recipes = [row for row in recipe_rows() if wanted in (row["name"] + row["id"]).lower()]
    if arguments.json:
        print_json({"environments": environments, "recipes": recipes})
        return 0
    print_table(
        [
            (row["id"], "native" if row["native"] else "single", _limit(row["max_episode_steps"]))
            for row in environments
        ],
        ("environment", "form", "step limit"),
    )
    print()
    print_table([(row["name"], row["id"]) for row in recipes], ("recipe", "environment"))
    if not environments and not recipes:
        print(f"none with {arguments.filter!r} in its name")
    return 0


def environment_rows() -> list[dict[str, Any]]:
    """Every registered environment; `native` ones bring a vector form of their own."""
    import gymnasium

    from millrace.envs.make import list_ids
    from millrace.envs.registration import GAME_SIZES

    rows = []
    for env_id in list_ids():
        spec = gymnasium.spec(env_id)
        is_native = env_id in GAME_SIZES or spec.vector_entry_point is not None
        rows.append({"id": env_id, "native": is_native, "max_episode_steps": spec.max_episode_steps})
    return rows


def recipe_rows() -> list[dict[str, str]]:
    """The recipes and what they train."""
    return [{"name": name, "id": Config.from_toml(RECIPES / f"{name}.toml").env.id} for name in recipe_names()]


def _limit(max_episode_steps: int | None) -> str:
    return f"{max_episode_steps:,}" if max_episode_steps else "-"
