"""What the commands that take a model and labelled stacks have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib

from rcm_jax.data import labelled
from tfds_rcm.study.splits import SPLITS


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options that name a model and labelled stacks."""
  option = parser.add_argument
  option("--checkpoint", type=pathlib.Path, required=True, help="work directory of a run")
  option("--source", required=True, help="prepared data set, such as rcm_clinical")
  option("--data_dir", help="where TFDS keeps data sets; its default if not given")
  option(
    "--split",
    default=labelled.ALL,
    help=f"all, or some of {','.join(SPLITS)} (default: %(default)s)",
  )


def named(source: str, splits: Sequence[str]) -> str:
  """Names stacks as figures on them are told; the test split as runs name it."""
  if tuple(splits) == ("test",):
    return source
  return f"{source}, {'all splits' if tuple(splits) == SPLITS else ' and '.join(splits)}"
