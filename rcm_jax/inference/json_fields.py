"""Reads values that came as JSON: each is of the kind and in the range that its place asks for.

A check takes a place ("calibration.temperature") and a value, and returns the value or raises a
ValueError that names the place. Nothing is allocated by the size that a value claims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
from typing import Any

Check = Callable[[str, Any], Any]
_SHOWN = 40  # characters of a value in a message


def parse(text: str) -> Any:
  """Reads JSON.

  Raises:
    ValueError: it is not JSON, or is nested too deeply.
  """
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError("it is nested too deeply") from None


def _fail(place: str, value: Any, expected: str) -> None:
  shown = repr(value)
  shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
  raise ValueError(f"{place}: {shown} is not {expected}")


def number(low: float | int, high: float | int) -> Check:
  """A finite number from `low` to `high`."""

  def check(place, value):
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not low <= value <= high:  # NaN compares as False
      _fail(place, value, f"a number from {low:g} to {high:g}")
    return float(value)

  return check


def whole(low: int, high: int) -> Check:
  """A whole number from `low` to `high`."""

  def check(place, value):
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
      _fail(place, value, f"a whole number from {low} to {high}")
    return value

  return check


def flag(place: str, value: Any) -> bool:
  """True or false."""
  return value if isinstance(value, bool) else _fail(place, value, "true or false")


def text(place: str, value: Any) -> str:
  """A text."""
  return value if isinstance(value, str) else _fail(place, value, "a text")


def optional(check: Check, absent: Any = None) -> Check:
  """Null, which becomes `absent`, or what passes `check`."""
  return lambda place, value: absent if value is None else check(place, value)


def listed(check: Check, least: int, most: int) -> Check:
  """A list of `least` to `most` values that pass `check`; becomes a tuple."""

  def check_all(place, value):
    if not isinstance(value, list) or not least <= len(value) <= most:
      count = f"{least}" if least == most else f"{least} to {most}"
      _fail(place, value, f"a list of {count}")
    return tuple(check(f"{place}[{i}]", item) for i, item in enumerate(value))

  return check_all


def mapped(check: Check) -> Check:
  """An object of any names, whose values pass `check`."""

  def check_all(place, value):
    if not isinstance(value, dict):
      _fail(place, value, "an object")
    return {name: check(f"{place}.{name}", item) for name, item in value.items()}

  return check_all


def fields(checks: Mapping[str, Check], may_miss: frozenset[str] = frozenset()) -> Check:
  """An object of exactly the named fields.

  Args:
    checks: by name.
    may_miss: names that it may lack; they are left out.
  """

  def check_all(place, value):
    prefix = f"{place}." if place else ""
    if not isinstance(value, dict):
      _fail(place or "it", value, "an object")
    for name in checks.keys() - value.keys() - may_miss:
      raise ValueError(f"{prefix}{name} is missing")
    for name in value.keys() - checks.keys():
      raise ValueError(f"{prefix}{name} is unknown here")
    return {
      name: check(prefix + name, value[name]) for name, check in checks.items() if name in value
    }

  return check_all
