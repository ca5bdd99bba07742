"""The pictures of a run and of a study, drawn without a display.

One palette for strata, one for methods, both from Okabe and Ito's colors that
color-blind readers tell apart. Every function writes one PNG and makes its
folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import io
import itertools
import os
import pathlib

from jaxtyping import Float, Int
import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np
from scipy import stats

from rcm_jax import anatomy
from rcm_jax.evaluation import paper_results, reliability
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation import scores as scores_lib
from tfds_rcm import disk

METHOD_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE = {
  "font.size": 9,
  "axes.titlesize": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#E4E4E4",
  "grid.linewidth": 0.6,
  "legend.frameon": False,
  "lines.linewidth": 1.6,
  "figure.dpi": 160,
}

_Path = str | os.PathLike


def training_curves(curves: Mapping[str, Sequence[float]], path: _Path) -> None:
  """Draws one model's curves by epoch: accuracies in a panel of their own."""
  panels = [[], []]
  for name in curves:
    panels["accuracy" in name].append(name)
  panels = [names for names in panels if names]
  with _figure(path, 4.2 * len(panels), 3.0) as figure:
    for axes, names in zip(_row(figure, len(panels)), panels):
      for name, color in zip(names, METHOD_COLORS):
        _curve(axes, np.asarray(curves[name])[None], color, name.capitalize())
      axes.set(xlabel="Epoch", ylabel="Accuracy" if "accuracy" in names[0] else "Loss")
      axes.legend()


def by_dataset(methods: Mapping[str, Mapping[str, Sequence[float]]], path: _Path) -> None:
  """Draws what methods reach on several datasets: a dot each, a bar at their mean.

  Args:
    methods: name → measure → value by dataset; all have the same measures.
    path: PNG.
  """
  measures = list(next(iter(methods.values())))
  with _figure(path, 3.6 * len(measures), 0.8 + 0.24 * len(methods)) as figure:
    for place, (axes, measure) in enumerate(zip(_row(figure, len(measures)), measures)):
      for row, values in enumerate(methods.values()):
        found = np.asarray(values[measure])
        axes.plot(found, np.full(len(found), row), "o", ms=3.5, alpha=0.6, color=METHOD_COLORS[0])
        axes.plot(found.mean(), row, "|", ms=11, mew=1.8, color=METHOD_COLORS[1])
      axes.set(title=measure, ylim=(len(methods) - 0.5, -0.5))
      axes.set_yticks(range(len(methods)), methods if not place else [""] * len(methods))


def head_training(
  names: Sequence[str],
  loss: Sequence[Sequence[float]],
  validation_accuracy: Sequence[Sequence[float]],
  path: _Path,
) -> None:
  """Draws sequence heads' curves, `[M][epochs]`; members of one name by mean and range."""
  with _figure(path, 8.4, 3.2) as figure:
    left, right = _row(figure, 2)
    for i, name in enumerate(dict.fromkeys(names)):
      members = [j for j, other in enumerate(names) if other == name]
      color = METHOD_COLORS[i % len(METHOD_COLORS)]
      label = paper_results.display_name(name)
      _curve(left, np.asarray(loss)[members], color, label)
      _curve(right, np.asarray(validation_accuracy)[members], color, label)
    left.set(xlabel="Epoch", ylabel="Training loss", yscale="log")
    left.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    left.yaxis.set_minor_formatter(mpl.ticker.FormatStrFormatter("%g"))
    right.set(xlabel="Epoch", ylabel="Validation accuracy")
    right.legend(loc="lower right")


def boundary_error_histograms(
  predictions: Sequence[predictions_lib.StackPrediction], path: _Path
) -> None:
  """Draws Figure 2: errors of each boundary on test stacks, best method on top.

  Bars count stacks, the line is their kernel density, each tick below is one stack, the red
  line marks no error. Seeds are pooled. Errors are those after median-then-max, predicted minus
  true depth; what lies beyond the axis is counted at its end.
  """
  errors = _errors_by_method(predictions)
  methods = sorted(errors, key=lambda method: _mean_error(errors[method]))
  pooled = np.concatenate([e for pair in errors.values() for e in pair])
  edges = _error_bins(pooled, predictions)
  titles = _boundary_titles(predictions[0].strata)
  with _figure(path, 3.8 * len(titles), 0.9 + 0.85 * len(methods)) as figure:
    grid = figure.subplots(len(methods), len(titles), sharex=True, squeeze=False)
    for i, method in enumerate(methods):
      color = METHOD_COLORS[i % len(METHOD_COLORS)]
      for axes, error in zip(grid[i], errors[method]):
        _error_histogram(axes, error, edges, color)
      grid[i, 0].set_ylabel(
        paper_results.display_name(method), rotation=0, ha="right", va="center", labelpad=6
      )
    for axes, name in zip(grid[0], titles):
      axes.set_title(name)
    for axes in grid[-1]:
      axes.set(xlim=(edges[0], edges[-1]), xlabel="Error, µm (positive: too deep)")
      axes.spines["bottom"].set(visible=True, position=("outward", 9))
      axes.tick_params(bottom=True, labelbottom=True)


def strata_ribbon(
  predictions: Sequence[predictions_lib.StackPrediction], path: _Path, stacks: int = 4
) -> None:
  """Draws truth, prediction and probabilities by depth for a few test stacks.

  Of the most accurate method's first seed it takes stacks spread evenly over the ranking from
  worst to best, so that neither luck nor failure is hidden.
  """
  tested = [p for p in predictions if p.split == "test"]
  accuracy: dict[tuple[str, int], list] = {}
  for p in tested:
    accuracy.setdefault((p.method, p.seed), []).append(np.mean(p.predicted == p.labels))
  best = max(accuracy, key=lambda run: np.mean(accuracy[run]))
  shown = [p for p in tested if (p.method, p.seed) == best]
  shown.sort(key=lambda p: np.mean(p.predicted == p.labels))
  picks = np.unique(np.linspace(0, len(shown) - 1, stacks).round().astype(int))
  with _figure(path, 1.2 + 2.2 * len(picks), 5.0) as figure:
    groups = figure.subfigures(1, len(picks), squeeze=False)[0]
    for i, (group, pick) in enumerate(zip(groups, picks)):
      _ribbon(group, shown[pick], first=i == 0)
    strata = shown[0].strata
    named = zip(strata.colors, strata.headings.values())
    handles = [mpl.patches.Patch(color=color, label=name) for color, name in named]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(strata))
    figure.suptitle(f"{paper_results.display_name(best[0])}, from the worst test stack to the best")


def toeplitz_weights(taps: Mapping[int, Float[np.ndarray, "seeds K"]], path: _Path) -> None:
  """Draws learned Toeplitz weights by offset: mean over seeds, and each seed as a dot.

  A line shows what the paper's authors published, where they did.

  Args:
    taps: half-width D → weights of each seed, K = 2 D + 1, shallow to deep.
    path: of the PNG.
  """
  widths = sorted(taps)
  columns = min(len(widths), 3)
  rows = -(-len(widths) // columns)
  with _figure(path, 2.9 * columns + 0.3, 2.3 * rows + 0.2) as figure:
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row").ravel()
    for axes, half_width in zip(grid, widths):
      weights = np.asarray(taps[half_width])
      offsets = np.arange(-half_width, half_width + 1)
      axes.bar(offsets, weights.mean(0), width=0.75, color=METHOD_COLORS[0], alpha=0.75)
      for seed in weights:
        axes.plot(offsets, seed, "o", ms=2.4, color="#222222", alpha=0.6)
      if half_width in paper_results.TOEPLITZ_WEIGHTS:
        published = paper_results.TOEPLITZ_WEIGHTS[half_width]
        axes.plot(
          offsets, published, color="#D55E00", lw=1.2, marker="_", ms=8, label="paper, read off"
        )
        axes.legend(frameon=False, fontsize="x-small")
      axes.set_xlim(-half_width - 0.6, half_width + 0.6)
      axes.axvline(0, color="#999999", lw=0.8, ls=":")
      axes.set(title=f"D = {half_width}", xlabel="Offset, slices (deeper →)", ylim=(0, None))
      axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=7))
      axes.grid(axis="x", visible=False)
    for axes in grid[::columns]:
      axes.set_ylabel("Weight")
    for axes in grid[len(widths) :]:
      axes.set_visible(False)


def attention_maps(maps: Mapping[str, Float[np.ndarray, "n n"]], path: _Path) -> None:
  """Draws attention maps of one stack side by side (Figure 4): row n is where slice n looks."""
  columns = min(len(maps), 4)
  rows = -(-len(maps) // columns)
  with _figure(path, 3.2 * columns + 0.2, 2.9 * rows) as figure:
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(maps) :]:
      axes.set_visible(False)
    for axes, (name, weights) in zip(grid, maps.items()):
      image = axes.imshow(weights, cmap="magma", vmin=0, interpolation="nearest")
      axes.set(title=name, xlabel="Slice attended to", ylabel="Slice classified")
      axes.grid(visible=False)
      bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
      bar.outline.set_visible(False)


def reliability_diagram(
  classified: Mapping[str, tuple[Float[np.ndarray, "n C"], Int[np.ndarray, "n"]]], path: _Path
) -> None:
  """Draws accuracy against confidence, in bins of equally many slices.

  Args:
    classified: name → probabilities and true strata of slices.
    path: of the PNG.
  """
  with _figure(path, 4.4, 4.4) as figure:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.9, ls="--")
    lowest = []
    for (name, (probabilities, labels)), color in zip(classified.items(), METHOD_COLORS):
      confidence, accuracy, _ = reliability.reliability(probabilities, labels)
      error = reliability.expected_calibration_error(probabilities, labels)
      label = f"{name} (ECE {100 * error:.1f} %)"
      axes.plot(confidence, accuracy, "o-", ms=4, color=color, label=label)
      lowest.append(accuracy.min())
    low = 1 / min((p.shape[1] for p, _ in classified.values()), default=2)
    axes.set(xlim=(low, 1.01), ylim=(min(low, *lowest) - 0.01, 1.01), aspect="equal")
    axes.set(xlabel="Confidence", ylabel="Accuracy")
    axes.legend(loc="upper left")


def by_count(
  panels: Mapping[str, Mapping[str, Sequence[tuple[int, float, float, float]]]],
  counted: str,
  path: _Path,
) -> None:
  """Draws figures against a count, a panel each; a line's only point at 0 is drawn through all counts.

  Args:
    panels: label of the axis → name of a line → (count, value, ends of its interval, or NaN).
    counted: what is counted.
    path: of the PNG.
  """
  with _figure(path, 3.4 * len(panels), 3.0) as figure:
    for axes, (label, lines) in zip(_row(figure, len(panels)), panels.items()):
      for (name, points), color in zip(lines.items(), METHOD_COLORS):
        count, value, low, high = np.array(points, float).T
        if count.tolist() == [0]:
          axes.axhline(value[0], color=color, ls="--", label=name)
          continue
        reach = np.nan_to_num(np.maximum([value - low, high - value], 0))
        axes.errorbar(count, value, reach, color=color, marker="o", ms=4, capsize=2, label=name)
      axes.set(xlabel=counted, ylabel=label)
    known = axes.get_legend_handles_labels()
    figure.legend(*known, loc="outside upper center", ncols=len(known[1]))


@contextlib.contextmanager
def _figure(path, width, height):
  with mpl.rc_context(_STYLE):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    data = io.BytesIO()
    figure.savefig(data, format="png")
    disk.write_whole(pathlib.Path(path), data.getvalue())


def _row(figure, count):
  return figure.subplots(1, count, squeeze=False)[0]


def _curve(axes, values, color, label):
  epochs = np.arange(1, values.shape[1] + 1)
  axes.plot(epochs, values.mean(0), color=color, label=label)
  if len(values) > 1:
    axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.18, lw=0)


def _boundary_titles(strata: anatomy.Strata) -> list[str]:
  words = [word if word == "DEJ" else word.lower() for word in strata.headings.values()]
  pairs = (f"{above}-{below} boundary" for above, below in itertools.pairwise(words))
  return [f"{pair[0].upper()}{pair[1:]}" for pair in pairs]


def _errors_by_method(predictions):
  runs: dict[tuple[str, int], list] = {}
  for p in predictions:
    if p.split == "test":
      runs.setdefault((p.method, p.seed), []).append(p)
  pooled: dict[str, list] = {}
  for (method, _), stacks in runs.items():
    pooled.setdefault(method, []).append(scores_lib.score(stacks))
  return {
    method: tuple(
      np.concatenate([s.error_um[s.counted[:, b], scores_lib.PAPER_RULE, b] for s in runs])
      for b in range(runs[0].counted.shape[1])
    )
    for method, runs in pooled.items()
  }


def _mean_error(by_boundary):
  means = [np.abs(error).mean() for error in by_boundary if len(error)]
  return np.mean(means) if means else np.inf


def _error_bins(errors, predictions):
  """Edges of bins that are whole steps wide, as errors are, with one centered on no error."""
  steps = [np.diff(p.depth_um) for p in predictions if len(p.depth_um) > 1]
  step = float(np.median(np.concatenate(steps))) if steps else 1.0
  widest = np.quantile(np.abs(errors), 0.98) / step if len(errors) else 0.0
  width = max(1, np.ceil(widest / 20))
  half = max(5, np.ceil(widest / width))
  return step * width * (np.arange(-half, half + 2) - 0.5)


def _error_histogram(axes, error, edges, color):
  width = edges[1] - edges[0]
  clipped = np.clip(error, edges[0] + width / 2, edges[-1] - width / 2)
  axes.hist(clipped, bins=edges, color=color, alpha=0.35)
  if len(np.unique(error)) > 2:
    x = np.linspace(edges[0], edges[-1], 400)
    density = stats.gaussian_kde(error)(x) * len(error) * width
    axes.plot(x, density, color=color, lw=1.4)
  axes.axvline(0, color="#CC0000", lw=1.0)
  below = axes.get_xaxis_transform()
  style = {
    "color": "black",
    "ms": 5,
    "mew": 0.5,
    "clip_on": False,
    "in_layout": False,
    "transform": below,
  }
  axes.plot(clipped, np.full(len(clipped), -0.07), "|", **style)
  text = f"MAE {np.abs(error).mean():.1f} µm" if len(error) else "no such boundary"
  axes.text(0.99, 0.92, text, transform=axes.transAxes, ha="right", va="top", fontsize=8)
  axes.set_yticks([])
  axes.spines["left"].set_visible(False)
  axes.spines["bottom"].set_visible(False)
  axes.tick_params(bottom=False)
  axes.grid(axis="y", visible=False)


def _ribbon(group, prediction, first):
  depth = prediction.depth_um
  half = np.diff(depth) / 2 if len(depth) > 1 else np.full(1, 0.5)
  between = depth[:-1] + half[: len(depth) - 1]
  edges = np.concatenate([depth[:1] - half[:1], between, depth[-1:] + half[-1:]])
  true, found, probability = group.subplots(
    1, 3, sharey=True, width_ratios=(1, 1, 2.6), gridspec_kw={"wspace": 0.02}
  )
  both = (true, prediction.labels, "True"), (found, prediction.predicted, "Pred.")
  for axes, strata, name in both:
    for stratum, color in enumerate(prediction.strata.colors):
      here = np.flatnonzero(strata == stratum)
      axes.barh(edges[here], 1, np.diff(edges)[here], align="edge", color=color, lw=0)
    axes.set(xticks=[], xlim=(0, 1), xlabel=name)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
  outline = np.repeat(edges, 2)[1:-1]
  heights = np.repeat(np.cumsum(prediction.probabilities, axis=1), 2, axis=0)
  below = np.zeros(len(outline))
  for top, color in zip(heights.T, prediction.strata.colors):
    probability.fill_betweenx(outline, below, top, color=color, lw=0)
    below = top
  probability.set(xlim=(0, 1), xlabel="Probability", xticks=[0, 0.5, 1], ylim=(edges[-1], edges[0]))
  probability.set_xticklabels(["0", "½", "1"])
  probability.grid(visible=False)
  probability.spines["left"].set_visible(False)
  for axes in (found, probability):
    axes.tick_params(axis="y", left=False)
  accuracy = np.mean(prediction.labels == prediction.predicted)
  group.suptitle(f"{prediction.stack_id}: {100 * accuracy:.0f} %", fontsize=9)
  if first:
    true.set_ylabel("Depth, µm")
