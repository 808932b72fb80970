"""Realm: find treasures and the way out of a maze of corridors before time is up."""

from millrace.games.realm.game import RealmGame, make_game
from millrace.games.realm.rules import RealmOptions, RealmReward, RealmRules

__all__ = ["RealmGame", "RealmOptions", "RealmReward", "RealmRules", "make_game"]
