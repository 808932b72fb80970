"""What is installed against what the package's own metadata asks for."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from millrace.doctor.findings import Finding

PACKAGE = "millrace"
FOR_DEVELOPERS = "dev"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[(?P<extras>[\w, .-]+)\])?(?P<bounds>[^;]*)(;(?P<marker>.*))?")
LOWEST = re.compile(r">=\s*([\d.]+)")
OF_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w.-]+)['"]""")
OF_PYTHON = re.compile(r"""python_version\s*(<=|>=|<|>|==)\s*['"]([\d.]+)['"]""")


@dataclass(frozen=True)
class Requirement:
    """One line of a package's metadata, as far as it is needed here.

    Attributes:
        lowest: the version from which on it will do; empty = any.
        extra: of the package that asks, which brings this in; empty = always.
        applies: to this Python.
    """

    name: str
    extras: tuple[str, ...]
    lowest: str
    extra: str
    applies: bool

    @staticmethod
    def parse(line: str) -> Requirement:
        """From the form `name[extras]>=1.0; marker`."""
        found = REQUIREMENT.match(line)
        assert found is not None
        extras = tuple(word.strip() for word in (found["extras"] or "").split(",") if word.strip())
        lowest, marker = LOWEST.search(found["bounds"]), found["marker"] or ""
        extra = OF_EXTRA.search(marker)
        return Requirement(
            found["name"],
            extras,
            lowest[1] if lowest else "",
            extra[1] if extra else "",
            all(_holds(sign, version) for sign, version in OF_PYTHON.findall(marker)),
        )

    def problem(self) -> str:
        """Empty, or why it is not fulfilled; what it asks of its own extras included."""
        try:
            installed = metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return f"{self.name} is not installed"
        if _numbers(installed) < _numbers(self.lowest):
            return f"{self.name} {installed} is older than {self.lowest}"
        for extra in self.extras:
            for inner in required(self.name, extra):
                if problem := inner.problem():
                    return problem
        return ""


def required(package: str, extra: str = "") -> list[Requirement]:
    """What a package, or an extra of it, asks for on this Python."""
    lines = [Requirement.parse(line) for line in metadata.requires(package) or []]
    return [line for line in lines if line.extra == extra and line.applies]


def version_findings() -> Iterator[Finding]:
    """Python, ourselves, and what we cannot do without."""
    try:
        wanted = required(PACKAGE)
    except metadata.PackageNotFoundError:
        what = "millrace is on the Python path and not installed: what it needs is not known here"
        yield Finding("note", "packages", what, "pip install -e . in its repository")
        return
    problems = [problem for requirement in wanted if (problem := requirement.problem())]
    named = f"Python {platform.python_version()}, millrace {metadata.version(PACKAGE)}"
    for problem in problems:
        yield Finding("error", "packages", problem, "pip install --upgrade millrace", exit_code=6)
    if not problems:
        yield Finding("ok", "packages", f"{named}, and the {len(wanted)} packages that it needs")


def extra_findings() -> Iterator[Finding]:
    """Optional libraries, by the extra that brings them."""
    try:
        names = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for name in names:
        if name == FOR_DEVELOPERS:
            continue
        problems = [problem for requirement in required(PACKAGE, name) if (problem := requirement.problem())]
        if problems:
            yield Finding("note", f"extra {name}", "; ".join(problems), f"pip install 'millrace[{name}]', if wanted")
        else:
            yield Finding("ok", f"extra {name}", "installed")


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    found = re.match(r"[\d.]*", version)
    return tuple(int(part) for part in (found[0] if found else "").split(".") if part)


def _holds(sign: str, version: str) -> bool:
    ours, theirs = sys.version_info[:2], _numbers(version)
    return {"<": ours < theirs, "<=": ours <= theirs, ">": ours > theirs, ">=": ours >= theirs, "==": ours == theirs}[
        sign
    ]
