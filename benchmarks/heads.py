"""One epoch of head training as in the paper, per model: ours alone and in company, against PyTorch and Keras 3 on JAX.

245 sequences × 71 × 256, batches of 4, bidirectional GRU with 64 units, masked
cross-entropy, Adam, L1 on the recurrent weights, 10 % recurrent dropout (PyTorch's
nn.GRU has none and trains without). Ours is called as in training, for several epochs at once, and
also counts the validation pass that chooses the snapshot, on one stack.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gru, peer, timing
from rcm_jax.anatomy import PAPER
from rcm_jax.arrays import MAX_SLICES, Features
from rcm_jax.heads import member_parallel, objective
from rcm_jax.heads import train_epochs as members_lib
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import HeadSpec

NUM_STRATA = len(PAPER)

STACKS, BATCH, MEMBERS = 245, 4, 8
EPOCHS = 5  # of ours a call
L1, DROPOUT, RATE = 0.05, 0.1, 1e-3
CASE = f"epoch of {STACKS} × {MAX_SLICES} × {gru.FEATURES}, batch {BATCH}, per model"


def rows(peers: bool) -> list[dict]:
  """Seconds an epoch and model."""
  calls = {
    "ours": ours(1, "none"),
    "ours/one device": ours(1, "none", split=False),
    "ours/toeplitz D = 1": ours(1, "toeplitz", 1),
    "ours/toeplitz D = 7": ours(1, "toeplitz", 7),
    f"ours/{MEMBERS} members": ours(MEMBERS, "none"),
  }
  if peers:
    makers = {"torch": ("torch", "_torch"), "keras-jax": ("keras", "_keras")}
    for name, (package, maker) in makers.items():
      if timing.peer(package):
        calls[name] = peer.call(__name__, maker)
  timed = timing.alternate(calls, repeats=5, warmup=1, min_seconds=0)
  floor = STACKS / BATCH * gru.flops(BATCH) / timing.matmul_flops_per_second()
  out = []
  for name, seconds in timed.items():
    models = MEMBERS if "members" in name else 1
    epochs = models * (EPOCHS if "ours" in name else 1)
    out.append(timing.row("heads", CASE, name, {k: v / epochs for k, v in seconds.items()}, floor))
  return out + _growth()


def _growth() -> list[dict]:
  """How an epoch grows with the slices of a stack and the number of members: Toeplitz attention, D = 1."""
  case = f"epoch of {STACKS} stacks, Toeplitz D = 1, all members"
  lengths = {
    f"{length} slices": ours(1, "toeplitz", 1, length=length)
    for length in (MAX_SLICES // 2, MAX_SLICES, 2 * MAX_SLICES, 4 * MAX_SLICES)
  }
  counts = {f"{count} members": ours(count, "toeplitz", 1) for count in (2, 4, 16, 32)}
  timed = timing.alternate(lengths | counts, repeats=3, warmup=1, min_seconds=0)
  per_epoch = lambda seconds: {k: v / EPOCHS for k, v in seconds.items()}
  return [timing.row("heads", case, name, per_epoch(s), None) for name, s in timed.items()]


def features(stacks: int, length: int) -> Features:
  """Returns noise in place of features."""
  rng = np.random.default_rng(0)
  shape = (stacks, length)
  return Features(
    values=jnp.asarray(rng.normal(size=(*shape, gru.FEATURES)), jnp.float32),
    labels=jnp.asarray(rng.integers(0, NUM_STRATA, shape)),
    depth_um=jnp.zeros(shape),
    mask=jnp.ones(shape, bool),
  )


def spec_of(
  attention: str, half_width: int = 0, length: int = MAX_SLICES, feedback: str = "none"
) -> HeadSpec:
  """Returns the paper's head with one kind of attention."""
  return HeadSpec(
    num_features=gru.FEATURES,
    hidden=gru.HIDDEN,
    cell="gru",
    bidirectional=True,
    window=None,
    attention=AttentionSpec(attention, half_width, units=gru.HIDDEN),
    max_slices=length,
    decoder="dense",
    feedback=feedback,
  )


def ours(
  members: int,
  attention: str,
  half_width: int = 0,
  *,
  split: bool = True,
  length: int = MAX_SLICES,
  feedback: str = "none",
):
  """Returns a compiled call that trains all members for `EPOCHS` epochs, from the same state each time."""
  spec = spec_of(attention, half_width, length, feedback)
  training = members_lib.make_train(
    spec,
    features(STACKS, length),
    features(1, length),
    batch_size=BATCH,
    epochs=EPOCHS,
    epochs_per_call=EPOCHS,
  )
  training = training if split else training._replace(splits=False)
  fill = lambda value: jnp.full(members, value)
  settings = (half_width, RATE, L1, DROPOUT, 0.0)
  who = objective.Member(jnp.arange(members), *map(fill, settings))
  state = jax.jit(member_parallel.over_members(training.init))(who)
  arguments = jax.device_get((state, who, jnp.zeros(members, int)))
  return functools.partial(member_parallel.compile_run(training, *arguments), *arguments)


def _torch():
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  data = features(STACKS, MAX_SLICES)
  x, y, real = (
    torch.tensor(np.asarray(a), device=device) for a in (data.values, data.labels, data.mask)
  )
  layer = torch.nn.GRU(gru.FEATURES, gru.HIDDEN, batch_first=True, bidirectional=True).to(device)
  head = torch.nn.Linear(2 * gru.HIDDEN, NUM_STRATA).to(device)
  optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], RATE)
  recurrent = [p for name, p in layer.named_parameters() if "weight_hh" in name]

  def epoch():
    for rows_ in torch.randperm(STACKS, device=device).split(BATCH):
      optimizer.zero_grad()
      logits = head(layer(x[rows_])[0])
      losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), y[rows_].long(), reduction="none"
      )
      loss = (losses * real[rows_]).sum() / real[rows_].sum()
      (loss + L1 * sum(p.abs().mean() for p in recurrent)).backward()
      optimizer.step()
    if device == "cuda":
      torch.cuda.synchronize()

  return epoch


def _keras():
  import keras

  weights = gru.HIDDEN * 3 * gru.HIDDEN
  layer = keras.layers.GRU(
    gru.HIDDEN,
    return_sequences=True,
    recurrent_dropout=DROPOUT,
    recurrent_regularizer=keras.regularizers.L1(L1 / weights),
  )
  inputs = keras.Input((MAX_SLICES, gru.FEATURES))
  encoded = keras.layers.Bidirectional(layer)(keras.layers.Masking()(inputs))
  model = keras.Model(inputs, keras.layers.Dense(NUM_STRATA)(encoded))
  model.compile(
    keras.optimizers.Adam(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  )
  data = features(STACKS, MAX_SLICES)
  x, y = np.asarray(data.values), np.asarray(data.labels)
  return lambda: model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
