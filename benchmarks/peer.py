"""A peer in a process of its own, so that no other library's threads are beside its own.

`call` starts it; python -m benchmarks.peer MODULE FUNCTION ARGUMENTS is what runs there.
"""

from __future__ import annotations

from collections.abc import Callable
import importlib
import json
import os
import subprocess
import sys
import threading


def call(
  module: str, function: str, *arguments: int, patience: float | None = None
) -> Callable[[], None]:
  """Has `function` of `module` make a call in another process; it must return only when done.

  Args:
    module: where the function is.
    function: makes the call.
    arguments: its own.
    patience: seconds that one call may take, with the start of the process in the first; then the
      process is ended.

  Returns:
    Does that call once, and returns when it is done. It ends with this process.
  """
  command = [sys.executable, "-m", "benchmarks.peer", module, function, json.dumps(arguments)]
  # On a GPU this process has most of the memory already.
  environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  child = subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
  )

  def once():
    limit = threading.Timer(patience or 0, child.kill)
    if patience:
      limit.start()
    try:
      child.stdin.write("go\n")
      child.stdin.flush()
      done = child.stdout.readline() == "done\n"
    finally:
      limit.cancel()
    if not done:
      raise RuntimeError(
        f"{' '.join(command)} ended with code {child.wait()}; see its output above"
        + (f", or it took more than {patience:g} s" if patience else "")
      )

  return once


def main(module: str, function: str, arguments: str) -> None:
  """Makes the call, and repeats it for every line on standard input."""
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # libraries print what they like
  once = getattr(importlib.import_module(module), function)(*json.loads(arguments))
  for _ in sys.stdin:
    once()
    replies.write("done\n")
    replies.flush()


if __name__ == "__main__":
  main(*sys.argv[1:])
