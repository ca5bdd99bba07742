"""What jobs will cost, roughly, before any is started: within a factor of two or three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Protocol

from rcm_jax.run import methods

_FORWARD_FLOP = 11.4e9  # Inception-V3, full width, one image of 299 px
_SLICES_PER_STACK = 42.5  # of the paper: 21,412 slices in 504 stacks


@dataclasses.dataclass(frozen=True)
class _Source:
  train: int  # stacks
  others: int
  pixels: int  # a side


_SOURCES = {
  "rcm_phantom/demo": _Source(32, 28, 80),
  "rcm_phantom/paper_small": _Source(245, 259, 80),
  "rcm_phantom/paper": _Source(245, 259, 299),
}


@dataclasses.dataclass(frozen=True)
class _Device:
  flop_per_second: float  # of convolutions, sustained
  head_step_seconds: float  # a step of one member, four stacks of 71 slices
  members_in_step: int  # members that one step serves
  encoded_pixels_per_second: float  # of the baselines' dense encoding
  start_seconds: float  # imports and compilation


_DEVICES = {
  "cpu": _Device(5e10, 5e-3, 1, 2e6, 20.0),  # two cores
  "gpu": _Device(4e13, 5e-3, 64, 1e9, 60.0),  # H200
}


class Job(Protocol):
  """What `launch.runners.job.Job` has that costs depend on."""

  fields: Mapping[str, Any]
  members: int
  after: str | None


def seconds(job: Job, device: str) -> float:
  """Estimates a job's time on one device; what another job leaves in the cache costs nothing."""
  fields, rates = job.fields, _DEVICES[device]
  sources = [
    _SOURCES.get(name.split("+")[0], _SOURCES["rcm_phantom/paper"])
    for name in fields["data.sources"]
  ]
  train, others = sum(s.train for s in sources), sum(s.others for s in sources)
  pixels = fields["data.image_size"] or max(s.pixels for s in sources)
  method = methods.METHODS[fields["pipeline"]]
  work = method.work(fields)
  passes = work.train_passes * train + work.other_passes * others
  if method.shared and job.after is None:  # a step of training costs three forward passes
    passes += (3 * fields["cnn.epochs"] + 1) * train + others
  forward = _FORWARD_FLOP * (pixels / 299) ** 2 * fields["cnn.width"] ** 2
  steps = fields["head.epochs"] * train / 4 * work.head_trainings
  encoded = (train + others) * _SLICES_PER_STACK * pixels**2 * work.encodings
  return (
    rates.start_seconds
    + passes * _SLICES_PER_STACK * forward / rates.flop_per_second
    + steps * rates.head_step_seconds * -(-job.members // rates.members_in_step)
    + encoded / rates.encoded_pixels_per_second
  )


def line(jobs: Sequence[Job], device: str) -> str:
  """Returns one line for a person: jobs, members and device time."""
  minutes = sum(seconds(job, device) for job in jobs) / 60
  time = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
  members = sum(job.members for job in jobs)
  most = max((job.members for job in jobs), default=0)
  return (
    f"{len(jobs)} jobs, {members} trainings, at most {most} in one program; "
    f"roughly {time} of {device} time in all"
  )
