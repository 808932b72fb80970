"""Realm's yardsticks on the frozen map: random play, the walker and the oracle on the same games.

    python -m benchmarks.realm_yardsticks [--games 100] [--size full]

Scores are means over the games with seeds 0, 1, ..; seconds are of CPU time per game, compiling and distance
fields apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from millrace.games.realm import RealmRules, make_game
from millrace.games.realm.oracle import oracle_games
from millrace.games.realm.play import PlayedGames, play_games, random_policy
from millrace.games.realm.walker import walker_actions

RESULTS = Path(__file__).parent / "results" / "realm-yardsticks.json"

Player = Callable[..., PlayedGames]


def random_games(size: str, seeds: Sequence[int], **options: Any) -> PlayedGames:
    return play_games(make_game(size, len(seeds), **options), seeds, random_policy())


def walker_games(size: str, seeds: Sequence[int], **options: Any) -> PlayedGames:
    return play_games(make_game(size, len(seeds), **options), seeds, walker_actions)


PLAYERS: dict[str, Player] = {"random": random_games, "walker": walker_games, "oracle": oracle_games}


def tasks(size: str) -> list[dict[str, Any]]:
    """The two published tasks; for another size its default, and all places in half the time."""
    if size == "full":
        return [{"n_treasures": 9, "max_step": 2000}, {"n_treasures": 13, "max_step": 1000}]
    rules = RealmRules.of_size(size)
    return [
        {"n_treasures": rules.default_treasures, "max_step": rules.max_step},
        {"n_treasures": rules.num_places, "max_step": rules.max_step // 2},
    ]


def measure(size: str, name: str, seeds: Sequence[int], task: dict[str, Any]) -> dict[str, Any]:
    """Mean figures of one player in one task."""
    PLAYERS[name](size, seeds[:1], **task)
    started = time.process_time()
    played = PLAYERS[name](size, seeds, **task)
    seconds = (time.process_time() - started) / len(seeds)
    figures = {key: float(played.of(key).mean()) for key in ("score", "finished", "treasures", "steps", "flashes")}
    return {"player": name, **task, **figures, "lowest": float(played.of("score").min()), "cpu_s_per_game": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=100)
    parser.add_argument("--size", choices=("full", "mini"), default="full")
    arguments = parser.parse_args()
    seeds = range(arguments.games)
    rows = [measure(arguments.size, name, seeds, task) for task in tasks(arguments.size) for name in PLAYERS]
    if arguments.size == "full":
        RESULTS.write_text(json.dumps({"machine": machine(), "games": arguments.games, "rows": rows}, indent=1))
    print("| treasures, max_step | player | score | lowest | finished | treasures | steps | CPU s a game |")
    print("| --- " * 8 + "|")
    for row in rows:
        print(
            f"| {row['n_treasures']}, {row['max_step']} | {row['player']} | {row['score']:.1f} | {row['lowest']:.1f} "
            f"| {row['finished']:.0%} | {row['treasures']:.2f} | {row['steps']:.1f} | {row['cpu_s_per_game']:.3f} |"
        )


if __name__ == "__main__":
    main()
