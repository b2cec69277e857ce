"""Frame of every page: warnings, a footer, and the recipe, times and versions at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from pruneengine.report.page import Fact, Page, Section
from pruneengine.report.pages.parts import pairs, provenance

FOOTER = "Written by pruneengine; report.json beside this file holds the numbers."


@dataclass(frozen=True)
class Recipe:
    """The recipe among a report's values, taken apart.

    Attributes:
        rest: the recipe without ``config`` and ``versions``.
        config: the section with the job's own options.
        versions: of the packages that the numbers depend on.
    """

    rest: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], section: str) -> Recipe:
        """Return the recipe of ``values``, empty where there is none; ``section`` names the config in it."""
        rest = dict(values.get("recipe") or {})
        config, versions = rest.pop(section, {}), rest.pop("versions", None)
        return cls(rest, config, versions or values.get("versions"))

    @property
    def calibration(self) -> str | None:
        """The calibration text, where one was read."""
        return self.config.get("calibration") if self.rest.get("calibration_hash") else None

    def model(self, values: Mapping[str, Any]) -> str:
        """Return the dense model's name without its folder."""
        source = str(values.get("source") or self.rest.get("source") or "a model")
        return PurePath(source).name or source

    def sections(
        self, time: Section, hashes: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> tuple[Section, ...]:
        """Return the last sections: recipe and options, the given times, and versions, hashes and seed."""
        options = Section("Recipe", tables=(pairs(self.rest), pairs(self.config, "Options")))
        return options, time, provenance(self.versions, hashes, seed)


def framed(
    values: Mapping[str, Any], title: str, subtitle: str, facts: Iterable[Fact], sections: tuple[Section, ...]
) -> Page:
    """Return a page with the warnings among ``values``."""
    return Page(title, subtitle, tuple(facts), sections, warnings=tuple(values.get("warnings", ())), footer=FOOTER)
