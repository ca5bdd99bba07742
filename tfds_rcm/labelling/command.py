"""What `python -m tfds_rcm.label` does with its options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import contextlib
import webbrowser

from tfds_rcm.errors import UserError
from tfds_rcm.labelling import journal, order, predictions, readings, server, stacks
from tfds_rcm.labelling.session import Session
from tfds_rcm.study import annotations as labels_lib
from tfds_rcm.study import label_tables
from tfds_rcm.study import manifest as manifest_lib


def run(args: argparse.Namespace) -> None:
  """Serves the page until the process is asked to end.

  Raises:
    UserError: something is wrong with the study or an option.
  """
  with opened(args) as session, contextlib.closing(server.listen(args.port)) as listener:
    token = server.new_token()
    address = f"http://{server.HOST}:{listener.getsockname()[1]}/{token}/"
    overview = session.overview()
    left = sum(state in ("new", "draft") for state in overview["states"])
    print(f"stacks      {len(overview['states'])} to read, {left} of them left", flush=True)
    print(f"labels      {session.journal.path}", flush=True)
    print(f"page        {address}", flush=True)
    if not args.no_browser:
      webbrowser.open(address)
    server.serve(session, listener, token)


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator[Session]:
  """A reader's session, whose journal is held while the block lasts.

  Raises:
    UserError: something is wrong with the study or an option.
  """
  journal.check_reader(args.reader)
  if not 0 <= args.repeats <= 1:
    raise UserError(f"--repeats={args.repeats}: expected a share, 0 to 1")
  if args.order == "uncertain" and args.predictions is None:
    raise UserError("--order=uncertain needs --predictions, which say what is uncertain")
  found = stacks.find(args.source, step_um=args.step_um, pixel_um=args.pixel_um)
  predicted = predictions.read(args.predictions, found) if args.predictions else {}
  folder = _study_folder(args) / label_tables.LABELS_FOLDER
  others = {}
  if args.adjudicate:
    others = _differing(args)
    folder = folder / label_tables.ADJUDICATED
    plan = [(stack_id, journal.FIRST) for stack_id in others]
  else:
    doubt = {name: p.doubt for name, p in predicted.items()} if args.order == "uncertain" else None
    plan = order.plan(
      [stack.stack_id for stack in found],
      args.reader,
      seed=args.seed,
      repeats=args.repeats,
      doubt=doubt,
    )
  kept = journal.Journal(folder, args.reader)
  slices = stacks.Slices(found)
  try:
    kept.started(
      seed=args.seed, order=args.order, repeats=args.repeats, corneum=args.corneum,
      predictions=len(predicted),
    )  # fmt: skip
    yield Session(kept, slices, plan, args.corneum, predicted, others)
  finally:
    kept.close()
    slices.close()


def _study_folder(args: argparse.Namespace):
  """Where labels/ lies: beside the manifest, if there is one."""
  if any(args.source.rglob(manifest_lib.MANIFEST)):
    return stacks.manifest_of(args.source).parent
  return args.source


def _differing(args: argparse.Namespace) -> dict[str, list]:
  """Labels of all readers of the stacks on which they differ, most different first."""
  manifest = stacks.manifest_of(args.source)
  labels = manifest.parent / label_tables.LABELS_FOLDER
  if not label_tables.label_files(labels):
    labels = label_tables.find_labels(manifest.parent)
  read = readings.read_study(manifest, labels, labels_lib.Rules(), [])
  read = [stack for stack in read if len(stack.by_reader) > 1 and stack.differing]
  if not read:
    raise UserError(f"{args.source}: no stack on which two readers differ; nothing to adjudicate")
  read.sort(key=lambda stack: (-stack.differing, stack.stack_id))
  for stack in read:
    if args.reader in stack.by_reader:
      raise UserError(
        f"--reader={args.reader}: has labelled stack {stack.stack_id}, so is no third reader; "
        "choose another name"
      )
  return {stack.stack_id: [stack.by_reader[r] for r in sorted(stack.by_reader)] for stack in read}
