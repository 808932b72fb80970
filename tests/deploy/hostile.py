"""Loads damaged and hostile policy files, and tells what came of each: `python hostile.py SEEDS.millrace... --files N`.

Run in a process of its own: it reports its peak memory, and an audit hook ends it where anything but reading happens.
"""

from __future__ import annotations

import collections
import copy
import io
import json
import random
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import millrace
from millrace.checkpoints.sealed import MANIFEST, seal
from millrace.deploy.onnx_policy import digest_entry
from millrace.errors import MillraceError

FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)
TRAP = "module_that_a_file_names"
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**70,
    -(2**40),
    1e308,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "9" * 5000,
    [],
    {},
    [[]],
    [-1],
    [2**40],
    [2**20, 2**20],
    ["x"],
    {"a": {}},
    f"{TRAP}:run",
    f"{TRAP}.sub:run",
    "O",
    "object",
    "float64",
    "V100000",
    "Dict",
    "Tuple",
    "Box",
    "Text",
    "gru",
    "lstm",
    "impala",
    "nature",
    "../../../../etc/passwd",
    "\u0000",
    "\ud800",
    "a" * 100_000,
]


def watch() -> None:
    """End the process if a file makes it do anything but read."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_trap = event == "import" and str(arguments[0]).startswith(TRAP)
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if is_trap or event.startswith(FORBIDDEN) or (writes and not str(arguments[0]).startswith(WRITABLE)):
            print(f"FORBIDDEN {event} {arguments}", flush=True)
            import os

            os._exit(9)

    sys.addaudithook(hook)


WRITABLE = "/dev/null"


class Mutations:
    """Draws damaged and hostile variants of whole files."""

    def __init__(self, archive: bytes, graph: bytes, seed: int) -> None:
        self.rng = random.Random(seed)
        self.archive, self.graph = archive, graph
        with zipfile.ZipFile(io.BytesIO(archive)) as whole:
            self.members = {name: whole.read(name) for name in whole.namelist()}
        self.record = json.loads(self.members["policy.json"])
        self.kinds = (
            [self.bytes_changed] * 3
            + [self.description] * 6
            + [self.arrays] * 3
            + [self.manifest] * 2
            + [self.container, self.bomb, self.graph_changed, self.graph_forged]
        )

    def draw(self) -> tuple[str, str, bytes]:
        """Kind, suffix and content of one file."""
        kind = self.rng.choice(self.kinds)
        suffix = ".onnx" if kind.__name__.startswith("graph") else ".millrace"
        return kind.__name__, suffix, kind()

    def bytes_changed(self) -> bytes:
        return self._damaged(self.archive)

    def graph_changed(self) -> bytes:
        return self._damaged(self.graph)

    def graph_forged(self) -> bytes:
        """Damaged, and with a digest that fits: this reaches ONNX Runtime."""
        content = self._damaged(self.graph[: -len(digest_entry(b""))])
        return content + digest_entry(content)

    def _damaged(self, content: bytes) -> bytes:
        data, rng = bytearray(content), self.rng
        way = rng.randrange(5)
        if way == 0:
            return bytes(data[: rng.randrange(len(data))])
        if way == 1:
            for _ in range(rng.choice((1, 4, 50))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif way == 2:
            at = rng.randrange(len(data))
            data[at:at] = rng.randbytes(rng.choice((1, 8, 1000)))
        elif way == 3:
            at = rng.randrange(len(data))
            del data[at : at + rng.choice((1, 8, 1000))]
        else:
            at = rng.randrange(len(data))
            data[at : at + 16] = rng.choice((b"\xff", b"\x00")) * 16
        return bytes(data)

    def description(self) -> bytes:
        """Values of the description replaced, with digests that fit."""
        record = copy.deepcopy(self.record)
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            self._replace_somewhere(record)
        if self.rng.random() < 0.05:
            text = "[" * 100_000 + "]" * 100_000
            return self._sealed({"policy.json": text.encode()})
        return self._sealed({"policy.json": json.dumps(record).encode()})

    def _replace_somewhere(self, tree: Any) -> None:
        while True:
            keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
            if not keys:
                return
            key = self.rng.choice(keys)
            if not isinstance(tree[key], dict | list) or not tree[key] or self.rng.random() < 0.15:
                break
            tree = tree[key]
        if isinstance(tree, dict) and self.rng.random() < 0.2:
            del tree[key]
        else:
            tree[key] = copy.deepcopy(self.rng.choice(VALUES))

    def arrays(self) -> bytes:
        """The header of the weights changed, or its length, with digests that fit."""
        data, rng = self.members["policy.safetensors"], self.rng
        length = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        way = rng.randrange(5)
        if way == 0:
            changed = (
                rng.choice((2**63 - 1, 2**40, 100_000_001, 0, length + 1, len(data))).to_bytes(8, "little") + data[8:]
            )
        elif way == 1:
            changed = self._damaged(data)
        else:
            name = rng.choice([key for key in header if key != "__metadata__"])
            entry = header[name]
            if way == 2:
                entry["shape"] = rng.choice(
                    ([2**40], [0], [], [-1], [2**32, 2**32], [1] * 1000, entry["shape"][::-1], "x")
                )
            elif way == 3:
                entry["data_offsets"] = rng.choice(([0, 2**50], [5, 0], [0, 0], [-4, 4], "x", [0, len(body)]))
            else:
                entry["dtype"] = rng.choice(("F64", "BF16", "F8_E4M3", "I64", "BOOL", "O", "", 7))
            text = json.dumps(header).encode()
            changed = len(text).to_bytes(8, "little") + text + body
        return self._sealed({"policy.safetensors": changed})

    def manifest(self) -> bytes:
        manifest = json.loads(self.members[MANIFEST])
        self._replace_somewhere(manifest)
        return self._zipped({**self.members, MANIFEST: json.dumps(manifest).encode()})

    def container(self) -> bytes:
        """Names that lead elsewhere, members twice, missing, or hundreds of others."""
        members = dict(self.members)
        way = self.rng.randrange(4)
        if way == 0:
            members = {f"../../{name}": data for name, data in members.items()}
        elif way == 1:
            members |= {f"/etc/{i}": b"x" for i in range(500)}
        elif way == 2:
            del members[self.rng.choice(sorted(members))]
        else:
            members |= {"policy.json/../../x": b"x"}
        return self._zipped(members)

    def bomb(self) -> bytes:
        """A member that grows a thousandfold, or says that it is as large as the sea."""
        name = self.rng.choice(sorted(self.members))
        if self.rng.random() < 0.5:
            return self._zipped({**self.members, name: bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
        data = bytearray(self.archive)
        directory = data.find(b"PK\x01\x02")
        at = directory + self.rng.choice((20, 24))
        data[at : at + 4] = self.rng.choice((0xFFFFFFFF, 0x7FFFFFFF)).to_bytes(4, "little")
        return bytes(data)

    def _sealed(self, changed: dict[str, bytes]) -> bytes:
        content = {name: data for name, data in self.members.items() if name != MANIFEST} | changed
        return self._zipped({MANIFEST: seal(content, 0, "0"), **content})

    @staticmethod
    def _zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
            warnings.simplefilter("ignore")
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
        return buffer.getvalue()


def outcome(path: Path) -> str:
    """`loaded`, or `refused`; anything else that happens is a finding."""
    try:
        policy = millrace.load_policy(path)
    except MillraceError as error:
        text = str(error)
        if "\n" in text or len(text) > 1000:
            return f"FINDING not one line, or a long one: {text[:300]!r}"
        return "refused"
    except BaseException as error:
        return f"FINDING {type(error).__name__}: {error}"[:500]
    try:
        state = policy.new_state()
        seen = {key: np.zeros((1, *array.shape), array.dtype) for key, array in policy.spec.observation.items()}
        policy.actor.forward(state.see(seen), state.state)
    except BaseException as error:
        return f"FINDING loaded, but does not act: {type(error).__name__}: {error}"[:500]
    return "loaded"


def main() -> None:
    global WRITABLE
    scratch, count, seed, *sources = sys.argv[1:]
    WRITABLE = scratch
    pairs = list(zip(sources[::2], sources[1::2], strict=True))
    mutations = [Mutations(Path(a).read_bytes(), Path(g).read_bytes(), int(seed) + i) for i, (a, g) in enumerate(pairs)]
    for whole in sources:
        assert outcome(Path(whole)) == "loaded", outcome(Path(whole))
    watch()
    counts: collections.Counter[str] = collections.Counter()
    for index in range(int(count)):
        kind, suffix, content = mutations[index % len(mutations)].draw()
        path = Path(scratch) / f"hostile{suffix}"
        path.write_bytes(content)
        found = outcome(path)
        if found.startswith("FINDING"):
            kept = Path(scratch) / f"finding_{index}{suffix}"
            kept.write_bytes(content)
            print(f"{kind} {kept}: {found}", flush=True)
        counts[found.split()[0]] += 1
    print(json.dumps({**counts, "peak_mb": round(peak_memory_kb() / 1024)}))


def peak_memory_kb() -> int:
    """Of this program alone: `getrusage` also counts what the process was before, a copy of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
