"""Time zones by IANA name, from the data that the package `tzdata` brings: the same on every machine.

The system's own zone files are not asked, since two workers with different ones would replay a run to different
moments.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Final
from zoneinfo import ZoneInfo

__all__ = ["UTC_NAME", "ZoneUnknown", "zone_named", "zone_names"]

UTC_NAME: Final = "UTC"


class ZoneUnknown(ValueError):
    """There is no time zone of this name."""


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """All names that `zone_named` takes."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="ascii").split())


@lru_cache(maxsize=256)
def zone_named(name: str) -> ZoneInfo:
    """The zone of an IANA name such as Europe/Berlin. Raises ZoneUnknown. Reads a small file once per name."""
    if name not in zone_names():
        raise ZoneUnknown(f"there is no time zone '{name[:80]}'")
    with files("tzdata.zoneinfo").joinpath(*name.split("/")).open("rb") as data:
        return ZoneInfo.from_file(data, key=name)
