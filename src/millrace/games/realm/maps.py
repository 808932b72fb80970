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
from millrace.games.realm.rules import CELL_UNITS, MEMORY_CAP, RealmRules


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


def map_from_json(
    record: dict[str, Any], rules: RealmRules, source: str, points: tuple[Any, str] | None = None
) -> RealmMap:
    """A map of the rules' size from its JSON form; `source` names it in errors.

    `points` are the points and what to call them, where the record does not hold them.
    """
    needed = ("CellWidth", "Width", "Height", "Flags") + (() if points else ("Points",))
    missing = [key for key in needed if key not in record]
    if missing:
        hint = "; or name a file with the points by the option points" if missing == ["Points"] else ""
        raise ValueError(f"map {source} has no {missing[0]!r}{hint}")
    expected = (CELL_UNITS, rules.width_cells, rules.width_cells)
    found = (record["CellWidth"], record["Width"], record["Height"])
    if found != expected:
        raise ValueError(f"map {source} has CellWidth, Width, Height {found}; Realm {rules.name} needs {expected}")
    where, points_source = points if points else (record["Points"], source)
    realm_map = RealmMap(_walkable(record["Flags"], rules, source), _points(where, rules, points_source))
    _check_points(realm_map, rules, points_source)
    return realm_map


def _walkable(flags: Any, rules: RealmRules, source: str) -> npt.NDArray[np.uint8]:
    """Flags as [H, H] of 0 and 1."""
    cells = np.ravel(flags)
    if cells.size != rules.width_cells**2:
        raise ValueError(f"map {source} has {cells.size} Flags; Width x Height is {rules.width_cells**2}")
    odd = [flag for flag in cells.tolist() if flag not in (0, 1)]
    if odd:
        raise ValueError(f"map {source} has a flag {odd[0]!r}; Flags are 1 for walkable cells and 0 for others")
    return cells.astype(np.uint8).reshape(rules.width_cells, rules.width_cells)


def _points(points: Any, rules: RealmRules, source: str) -> npt.NDArray[np.int64]:
    """Points [K, 2] from pairs (x, z), or from objects with x and z."""
    try:
        pairs = [(one["x"], one["z"]) if isinstance(one, dict) else tuple(one) for one in points]
        array = np.array(pairs, dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f'map {source}: Points are pairs [x, z] or objects {{"x": .., "z": ..}} by point id') from None
    if array.shape != (rules.num_points, 2):
        raise ValueError(
            f"map {source} has Points of shape {array.shape}; needed are {rules.num_points} pairs (x, z): "
            f"buff, end, start and {rules.num_places} treasure places"
        )
    return np.round(array).astype(np.int64)


def _check_points(realm_map: RealmMap, rules: RealmRules, source: str) -> None:
    for point_id, (x, z) in enumerate(realm_map.points):
        inside = 0 <= x < rules.world_units and 0 <= z < rules.world_units
        if not inside or not realm_map.walkable[z // CELL_UNITS, x // CELL_UNITS]:
            raise ValueError(f"map {source}: point {point_id} at ({x}, {z}) is not in a walkable cell")


def load_map(path: str | Path, rules: RealmRules, points_path: str | Path | None = None) -> RealmMap:
    """Read a user's own map; its points from a file of their own where one is named.

    That file is the list of points itself, or an object that holds it as "Points".
    """
    record = _read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"map {path} is not a JSON object with CellWidth, Width, Height, Flags and Points")
    if points_path is None:
        return map_from_json(record, rules, str(path))
    points = _read_json(points_path)
    if isinstance(points, dict):
        if "Points" not in points:
            raise ValueError(f"map {points_path} has no 'Points'")
        points = points["Points"]
    return map_from_json(record, rules, str(path), (points, str(points_path)))


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read the map {path}: {error.strerror}; the option map is 'frozen', 'random' or a path"
        ) from None
    except ValueError as error:
        raise ValueError(f"map {path} is not valid JSON: {error}") from None


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
        padded=np.pad(walkable * np.uint8(MEMORY_CAP), ((0, 0), (radius, radius), (radius, radius))),
        points=np.stack([realm_map.points for realm_map in maps]),
        distance=np.stack([distance_fields(one.walkable, one.points) for one in maps]),
    )
