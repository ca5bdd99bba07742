"""Being asked to stop, see `tfds_rcm.interrupts`, which every command shares."""

from __future__ import annotations

from tfds_rcm.interrupts import (
  CTRL_C_CODE,
  EXIT_CODE,
  SIGNALS,
  Preempted,
  asked,
  at_safe_points,
  clear,
  install,
  request,
)

__all__ = [
  "CTRL_C_CODE",
  "EXIT_CODE",
  "SIGNALS",
  "Preempted",
  "asked",
  "at_safe_points",
  "clear",
  "install",
  "request",
]
