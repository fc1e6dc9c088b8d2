"""Sort keys of versions against an independent comparison written after semver.org, section 11."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flint_store.errors import VersionInvalid
from flint_store.version_order import version_sort

numbers = st.one_of(st.integers(0, 12), st.integers(0, 10**19))
alphanumeric = st.from_regex(r"[0-9A-Za-z-]{1,5}", fullmatch=True).filter(lambda text: not text.isdigit())
prereleases = st.lists(st.one_of(numbers, alphanumeric), max_size=3)
versions = st.tuples(numbers, numbers, numbers, prereleases)


def text_of(version: tuple[int, int, int, list[int | str]]) -> str:
    major, minor, patch, prerelease = version
    tail = "-" + ".".join(str(part) for part in prerelease) if prerelease else ""
    return f"{major}.{minor}.{patch}{tail}"


def compare(left: tuple[int, int, int, list[int | str]], right: tuple[int, int, int, list[int | str]]) -> int:
    if left[:3] != right[:3]:
        return -1 if left[:3] < right[:3] else 1
    if not left[3] or not right[3]:
        return (not left[3]) - (not right[3])
    for a, b in zip(left[3], right[3], strict=False):
        if a == b:
            continue
        if isinstance(a, int) and isinstance(b, int):
            return -1 if a < b else 1
        if isinstance(a, int) != isinstance(b, int):
            return -1 if isinstance(a, int) else 1
        return -1 if str(a).encode() < str(b).encode() else 1
    return (len(left[3]) > len(right[3])) - (len(left[3]) < len(right[3]))


@given(versions, versions)
def test_keys_order_as_versions_do(
    left: tuple[int, int, int, list[int | str]], right: tuple[int, int, int, list[int | str]]
) -> None:
    assume(len(text_of(left)) <= 64 and len(text_of(right)) <= 64)
    a, b = version_sort(text_of(left)).encode(), version_sort(text_of(right)).encode()
    assert (a > b) - (a < b) == compare(left, right)


def test_the_specification_s_own_example() -> None:
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"]
    ordered += ["1.0.0-rc.1", "1.0.0", "1.0.1-0", "1.9.0", "1.10.0", "2.0.0"]
    shuffled = ordered[::-1]  # equal keys would stay in this order
    assert sorted(shuffled, key=version_sort) == ordered


def test_build_metadata_does_not_count() -> None:
    assert version_sort("1.0.0+a") == version_sort("1.0.0+b") == version_sort("1.0.0")


@pytest.mark.parametrize(
    "text", ["", "1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0-a..b", "1.0.0\n", "١.0.0"]
)
def test_refuses_what_is_no_version(text: str) -> None:
    with pytest.raises(VersionInvalid):
        version_sort(text)


def test_refuses_more_than_64_characters() -> None:
    assert version_sort("1.0.0-" + "a" * 58)
    with pytest.raises(VersionInvalid):
        version_sort("1.0.0-" + "a" * 59)
