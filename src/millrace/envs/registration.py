"""The built-in games among Gymnasium's environments. Cheap: no game is imported before one is made."""

from __future__ import annotations

import gymnasium

GAME_SIZES = {"millrace/RealmMini-v0": "mini", "millrace/Realm-v0": "full"}
"""Gymnasium's id of each built-in game, and the size that `make_game` calls it by."""


def register_envs() -> None:
    """Make the built-in games known to `gymnasium.make` and `make_vec`; a second call does nothing."""
    for env_id, size in GAME_SIZES.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point="millrace.envs.realm:RealmEnv",
                vector_entry_point="millrace.envs.realm:RealmVectorEnv",
                kwargs={"size": size},
            )
