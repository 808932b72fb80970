"""Maps of Realm: one map, its JSON form, the frozen maps, and stacks of maps as the kernels read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.games.realm.kernels import Maps, distance_fields
from millrace.games.realm.rules import CELL_UNITS, RealmRules


@dataclass(frozen=True)
class RealmMap:
    """The ground and its fixed points."""

    walkable: npt.NDArray[np.uint8]
    """[H, H], 1 walkable; row 0 is the smallest z, column 0 the smallest x."""
    points: npt.NDArray[np.int64]
    """Positions (x, z) in world units by point id: buff, end, start, treasure places; [K, 2]."""


def map_to_json(realm_map: RealmMap) -> dict[str, Any]:
    """The JSON form of a map: CellWidth, Width, Height, Flags (row-major from the smallest z), Points."""
    height, width = realm_map.walkable.shape
    return {
        "CellWidth": CELL_UNITS,
        "Width": width,
        "Height": height,
        "Flags": realm_map.walkable.ravel().tolist(),
        "Points": realm_map.points.tolist(),
    }


def map_from_json(record: dict[str, Any], rules: RealmRules, source: str) -> RealmMap:
    """A map of the rules' size from its JSON form; `source` names it in errors."""
    missing = [key for key in ("CellWidth", "Width", "Height", "Flags", "Points") if key not in record]
    if missing:
        raise ValueError(f"map {source} has no {missing[0]!r}")
    expected = (CELL_UNITS, rules.width_cells, rules.width_cells)
    found = (record["CellWidth"], record["Width"], record["Height"])
    if found != expected:
        raise ValueError(f"map {source} has CellWidth, Width, Height {found}; Realm {rules.name} needs {expected}")
    flags = np.asarray(record["Flags"], dtype=np.uint8)
    if flags.size != rules.width_cells**2:
        raise ValueError(f"map {source} has {flags.size} Flags; Width x Height is {rules.width_cells**2}")
    points = np.asarray(record["Points"], dtype=np.int64)
    if points.shape != (rules.num_points, 2):
        raise ValueError(
            f"map {source} has Points of shape {points.shape}; needed are {rules.num_points} pairs (x, z): "
            f"buff, end, start and {rules.num_places} treasure places"
        )
    realm_map = RealmMap((flags != 0).astype(np.uint8).reshape(rules.width_cells, rules.width_cells), points)
    _check_points(realm_map, rules, source)
    return realm_map


def _check_points(realm_map: RealmMap, rules: RealmRules, source: str) -> None:
    for point_id, (x, z) in enumerate(realm_map.points):
        inside = 0 <= x < rules.world_units and 0 <= z < rules.world_units
        if not inside or not realm_map.walkable[z // CELL_UNITS, x // CELL_UNITS]:
            raise ValueError(f"map {source}: point {point_id} at ({x}, {z}) is not in a walkable cell")


def load_map(path: str | Path, rules: RealmRules) -> RealmMap:
    """Read a user's own map."""
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    return map_from_json(record, rules, str(path))


def frozen_map(rules: RealmRules) -> RealmMap:
    """The map that comes with the package, the same for ever so that scores compare."""
    source = resources.files("millrace.games.realm") / "data" / f"{rules.name}.json"
    return map_from_json(json.loads(source.read_text(encoding="utf-8")), rules, f"frozen {rules.name}")


def stack_maps(maps: list[RealmMap], rules: RealmRules) -> Maps:
    """Lay maps of one size side by side, with their padded copies and distance fields."""
    walkable = np.stack([realm_map.walkable for realm_map in maps])
    radius = rules.view_radius_cells
    return Maps(
        walkable=walkable,
        padded=np.pad(walkable, ((0, 0), (radius, radius), (radius, radius))),
        points=np.stack([realm_map.points for realm_map in maps]),
        distance=np.stack([distance_fields(one.walkable, one.points) for one in maps]),
    )
