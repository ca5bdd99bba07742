// The reader's answers: kept here, saved at once, one stack at a time.
const REASONS = ["Out of focus or moved", "No contact, bubble", "Too shallow, no junction in reach", "Saturated or too dark",
  "Hair, scar or other structure", "Slices missing or in disorder"];
const KEYS = [
  ["↑ ↓ ← →", "one slice"], ["Page ↑ ↓", "five slices"], ["Home End", "first, last slice"],
  ["C E J D", "corneum, epidermis, DEJ, dermis begins at the slice in view; slice by slice: this slice is it, and go one deeper"],
  ["Shift J D", "stratum is not reached in this stack"], ["Enter", "done, next unlabelled stack"],
  ["N", "next unlabelled stack"], ["B", "back to the stack before"], ["U", "undo (or Ctrl Z)"],
  ["S", "slice by slice, on and off"], ["X", "cannot be read"], ["T", "note; Esc leaves it"],
  ["P", "model’s answer (that you saw it is noted)"], ["A", "auto contrast"], ["+ − 0", "zoom, reset picture"],
  ["L", "light or dark room"], ["? H", "these keys"],
];
const LETTERS = ["C", "E", "J", "D"];
const STATES = { new: "not labelled yet", draft: "begun", done: "done", unreadable: "cannot be read" };
const windowName = Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");

const app = {
  count: 0, slice: 0, number: -1, answer: { starts: [0, null, null], labels: null, state: "draft", reason: "", note: "" },
  strips: [], strata: ["stratum_corneum", "epidermis", "dej", "dermis"], movable: [1, 2], brush: null,
  history: [], saving: null, going: null, waiting: null, task: null, overview: null,

  depthText: (t) => (app.task.depth_um ? `${round(app.task.depth_um[t])}\u00a0µm` : `${t}`),
  startText(i) {
    const start = app.answer.starts[i];
    if (start === null) return "not set yet";
    if (start >= app.count) return "not in this stack";
    return app.task.depth_um ? `${app.depthText(start)} (slice ${start})` : `slice ${start}`;
  },
  move(t) {
    app.slice = clamp(t, 0, Math.max(0, app.count - 1));
    viewer.show(app.slice);
    render();
  },
  // A boundary that is set across another takes it along; it can be undone. One that is dragged across and
  // back leaves it where it was.
  start(i, t, save) {
    const starts = (save ? app.answer : app.before ?? app.answer).starts.slice();
    starts[i] = t;
    for (let j = 0; j < starts.length; j += 1) {
      if (t === null || starts[j] === null) continue;
      if (j < i && starts[j] > t) starts[j] = t;
      if (j > i && starts[j] < t) starts[j] = t;
    }
    app.edit({ starts });
    if (t !== null && !save) app.slice = clamp(t, 0, app.count - 1);
    if (t !== null) viewer.show(app.slice);
    render();
    if (save) app.commit();
  },
  paint(t, label = app.brush) {
    const labels = app.answer.labels.slice();
    // A fast hand skips slices: those between are painted too.
    const from = app.painted ?? t;
    for (let k = Math.min(from, t); k <= Math.max(from, t); k += 1) labels[k] = label;
    app.painted = t;
    app.edit({ labels });
  },
  // What is being dragged is one step of the history.
  edit(change) {
    if (app.going) return; // the next stack is about to come, and was not seen yet
    app.before ??= app.answer;
    const edited = { ...app.answer, reason: "", ...change };
    // An answer that was done stays so while every slice has a label.
    const whole = app.answer.state === "done" && !strataOf(edited, app.count).includes(NOT_LABELLED);
    app.answer = { ...edited, state: change.state ?? (whole ? "done" : "draft") };
    ask("");
  },
  commit() {
    app.painted = undefined;
    if (!app.before) return app.saving;
    app.history.push(app.before);
    app.before = undefined;
    render();
    return save();
  },
};

const round = (um) => (Math.abs(um) < 100 ? Math.round(10 * um) / 10 : Math.round(um));
const viewer = new Viewer((t) => app.move(t));
const bar = new Bar(app);

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ ...body, window: windowName }),
  };
  const reply = await fetch(path, options);
  const values = await reply.json();
  if (!reply.ok && reply.status !== 409) throw Object.assign(new Error(values.error), { status: reply.status });
  return { conflict: reply.status === 409, ...values };
}

// Saving: one request at a time, the newest answer next; an answer that could not be saved is kept and tried again.
function save() {
  app.waiting = { number: app.number, task: app.task, answer: app.answer };
  tell("saving…");
  app.saving ??= drain().finally(() => (app.saving = null));
  return app.saving;
}

async function drain() {
  while (app.waiting) {
    const job = app.waiting;
    app.waiting = null;
    try {
      const values = await call(`task/${job.number}/answer`, { revision: job.task.revision, answer: job.answer });
      if (values.conflict) {
        if (job.task === app.task) conflict(values);
        else tell(`Stack ${job.number + 1} was changed in another window: look at it again`, true);
        return;
      }
      job.task.revision = values.revision;
      job.task.predictions = values.predictions;
      app.overview.states[job.number] = values.state;
      if (!app.waiting) tell("saved");
    } catch (error) {
      app.waiting ??= job;
      if (error.status === 422) {
        app.waiting = null;
        tell(error.message, true);
        return;
      }
      tell(error.status ? error.message : "Not saved: the server does not answer", true);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  render();
}

function tell(text, bad = false) {
  $("saved").textContent = text;
  $("saved").dataset.bad = bad;
}

function ask(text) {
  $("ask").hidden = !text;
  $("ask").textContent = text;
  app.asked = Boolean(text);
}

function conflict(values) {
  app.theirs = values;
  const said = (answer) => {
    if (answer.state === "unreadable") return `cannot be read: ${answer.reason}`;
    if (answer.labels) return "slice by slice";
    return app.movable.map((i) => `${NAMES[app.strata[i + 1]]} ${answer.starts[i] === null ? "not set"
      : answer.starts[i] >= app.count ? "not reached" : `from slice ${answer.starts[i]}`}`).join(", ");
  };
  const lines = [["here", said(app.answer)], ["other window", said(values.answer)]];
  $("conflict-answers").replaceChildren(...lines.flat().map((text, i) => element(i % 2 ? "span" : "b", text)));
  tell("not saved", true);
  if (!$("conflict").open) $("conflict").showModal();
}

function element(kind, text, properties = {}) {
  const made = document.createElement(kind);
  made.textContent = text;
  return Object.assign(made, properties);
}

async function load(number, keepSlice = false) {
  show(number, await call(`task/${number}`), keepSlice);
}

function show(number, task, keepSlice) {
  const again = number === app.number;
  Object.assign(app, {
    task, number, count: task.count, answer: task.answer, before: undefined, painted: undefined,
    history: again ? app.history : [], brush: again ? app.brush : null,
  });
  app.overview.states[number] = task.state;
  if (!again) viewer.open((t) => `task/${number}/slice/${t}`, task);
  app.strips = task.others.map((other) => ({ ...other }));
  showPrediction(task.prediction);
  ask("");
  $("note").value = task.answer.note;
  $("slider").max = task.count - 1;
  tell(task.revision ? "saved" : "");
  history.replaceState(null, "", `#${number + 1}`);
  app.move(keepSlice && again ? app.slice : 0);
  $("stage").focus({ preventScroll: true });
}

async function refresh() {
  const { number } = app;
  const { revision } = app.task;
  const task = await call(`task/${number}`);
  const untouched = number === app.number && revision === app.task.revision && !app.saving && !app.waiting && !app.before;
  if (untouched && task.revision !== revision) show(number, task, true);
}

function showPrediction(prediction) {
  $("model").hidden = !prediction;
  if (!prediction) return;
  app.strips = [...app.strips.filter((strip) => strip.name !== "model"), { name: "model", labels: prediction.labels }];
  const names = {
    stratum_corneum_epidermis: "Corneum – epidermis", epidermis_dej: "Epidermis – DEJ", dej_dermis: "DEJ – dermis",
  };
  const table = document.createElement("table");
  for (const boundary of prediction.boundaries) {
    const row = table.insertRow();
    row.insertCell().textContent = names[boundary.name] ?? boundary.name;
    row.insertCell().textContent = boundary.depth_um === null ? "not in this stack" : `${round(boundary.depth_um)} µm`;
    const range = boundary.low_um === null || boundary.high_um === null;
    row.insertCell().textContent = range ? "" : `${round(boundary.low_um)} – ${round(boundary.high_um)}`;
  }
  const lines = prediction.warnings.map((text) => element("p", text));
  $("model").replaceChildren(element("b", `Model: ${prediction.method}`), table, ...lines);
}

function render() {
  const { answer, count, overview } = app;
  if (!app.task) return;
  const finished = overview.states.filter((state) => state === "done" || state === "unreadable").length;
  $("title").textContent = `Stack ${app.number + 1} of ${overview.states.length}`;
  $("done").max = overview.states.length;
  $("done").value = finished;
  $("progress").textContent = `${finished} done, ${overview.states.length - finished} to go`;
  const touched = answer.note || answer.labels || app.movable.some((i) => answer.starts[i] !== null);
  const state = answer.state === "draft" && !touched ? "new" : answer.state;
  $("state").textContent = answer.state === "unreadable" ? `cannot be read: ${answer.reason}` : STATES[state];
  $("state").dataset.state = state;
  const label = strataOf(answer, count)[app.slice];
  const depth = app.task.depth_um ? ` · ${app.depthText(app.slice)}` : "";
  $("stage").setAttribute("aria-label", `slice ${app.slice}${depth}`);
  $("where").textContent = `slice ${app.slice} of 0–${count - 1}${depth}`;
  $("label-here").textContent = label < 0 ? "undecided" : NAMES[app.strata[label]];
  $("label-here").dataset.stratum = label;
  $("label-here").style.background = label < 0 ? "" : `var(--s${label})`;
  $("slider").value = app.slice;
  $("slider").setAttribute("aria-valuetext", $("where").textContent);
  $("free").checked = Boolean(answer.labels);
  $("undo").disabled = !app.history.length;
  $("finish").firstChild.textContent = answer.state === "draft" ? "Done, next " : "Next unlabelled ";
  $("predict").hidden = !app.task.can_predict || Boolean(app.task.prediction);
  renderStrata();
  bar.draw();
}

function renderStrata() {
  const { answer } = app;
  const shown = app.overview.corneum ? [0, 1, 2, 3] : [1, 2, 3];
  const kept = document.activeElement?.dataset.act;
  $("strata").replaceChildren(...shown.map((stratum) => {
    const row = element("div", "", { className: "stratum-row" });
    const swatch = document.createElement("i");
    swatch.style.background = `var(--s${stratum})`;
    const name = element("b", `${NAMES[app.strata[stratum]]} `);
    if (answer.labels || app.movable.includes(stratum - 1)) name.append(element("kbd", LETTERS[stratum]));
    const value = element("span", "", { className: "value" });
    const buttons = element("div", "", { className: "buttons" });
    const add = (text, label, pressed, act) => {
      const button = element("button", text, { type: "button", onclick: act });
      button.setAttribute("aria-label", label);
      if (pressed !== null) button.setAttribute("aria-pressed", pressed);
      button.dataset.act = label;
      buttons.append(button);
    };
    const full = NAMES[app.strata[stratum]];
    if (answer.labels) {
      const slices = answer.labels.filter((label) => label === stratum).length;
      value.textContent = `${slices} slice${slices === 1 ? "" : "s"}`;
      add("Paint", `paint ${full}`, app.brush === stratum, () => label(stratum, false));
    } else if (app.movable.includes(stratum - 1)) {
      const i = stratum - 1;
      value.textContent = answer.starts[i] === null ? "not set yet" : `from ${app.startText(i)}`;
      if (answer.starts[i] >= app.count) value.textContent = "not in this stack";
      value.dataset.set = answer.starts[i] !== null;
      add("Here", `${full} begins at this slice`, null, () => label(stratum, false));
      add("None", `${full} is not in this stack`, null, () => app.start(i, app.count, true));
    } else value.textContent = "above the DEJ";
    if (!app.movable.includes(stratum - 1) && stratum === 0) value.textContent = "above the epidermis";
    row.append(swatch, name, value, buttons);
    return row;
  }));
  if (kept) $("strata").querySelector(`[data-act="${CSS.escape(kept)}"]`)?.focus();
}

// A stratum's key: its boundary lies here, or, slice by slice, this slice is it.
function label(stratum, none) {
  if (app.answer.labels) {
    app.brush = stratum;
    app.painted = undefined;
    app.paint(app.slice, stratum);
    app.commit();
    app.move(app.slice + 1);
  } else if (app.movable.includes(stratum - 1)) {
    app.start(stratum - 1, none ? app.count : app.slice, true);
  }
}

function toggleFree() {
  const strata = strataOf(app.answer, app.count);
  if (!app.answer.labels) {
    app.edit({ labels: strata });
  } else {
    const told = strata.filter((s) => s >= 0);
    if (told.some((s, t) => t && s < told[t - 1]) && !app.asked) {
      ask("These labels do not follow the order. Once more to keep the boundaries only.");
      render();
      return;
    }
    const whole = !strata.includes(NOT_LABELLED);
    const first = (s) => {
      const t = strata.findIndex((other) => other >= s);
      return t >= 0 ? t : whole ? app.count : null;
    };
    const starts = [1, 2, 3].map(first);
    if (!app.overview.corneum) starts[0] = 0;
    app.edit({ labels: null, starts });
  }
  app.brush = null;
  app.commit();
}

async function finish() {
  const { number } = app;
  if (app.answer.state !== "draft") return goNext();
  const strata = strataOf(app.answer, app.count);
  const open = strata.indexOf(NOT_LABELLED);
  if (open >= 0) {
    const missing = app.movable.filter((i) => app.answer.starts[i] === null).map((i) => NAMES[app.strata[i + 1]]);
    ask(app.answer.labels ? `Slice ${open} has no label yet.`
      : `Where does ${missing.join(", and where ")} begin? If it is not in this stack, press Shift and its key, or None.`);
    if (app.answer.labels) app.move(open);
    return;
  }
  app.edit({ state: "done" });
  await app.commit();
  if (app.number === number && app.overview.states[number] === "done") await goNext();
}

// One way at a time: a second Enter does not leave a stack that was not seen.
function going(way) {
  app.going ??= way().finally(() => (app.going = null));
  return app.going;
}

const goNext = () => going(async () => {
  await app.saving;
  if ($("conflict").open) return;
  const values = await call("overview");
  app.overview = values;
  const { states } = values;
  const order = states.map((_, k) => (app.number + 1 + k) % states.length);
  const open = order.find((k) => k !== app.number && (states[k] === "new" || states[k] === "draft"));
  if (open !== undefined) return load(open);
  render();
  const here = ["new", "draft"].includes(states[app.number]);
  ask(here ? "This is the last stack that is left." : "All stacks are done. Thank you.");
});

const go = (number) => going(async () => {
  await app.saving;
  if (!$("conflict").open) await load(clamp(number, 0, app.overview.states.length - 1));
});

function undo() {
  if (!app.history.length || app.going) return;
  const note = app.answer.note;
  app.answer = { ...app.history.pop(), note };
  ask("");
  render();
  save();
}

async function predict() {
  if (!app.task.can_predict || app.task.prediction) return;
  await app.saving;
  try {
    const values = await call(`task/${app.number}/prediction`, {});
    app.task.prediction = values.prediction;
    app.task.predictions = values.predictions;
    showPrediction(values.prediction);
    render();
  } catch (error) {
    tell(error.message, true);
  }
}

function askReason() {
  $("reasons").replaceChildren(...REASONS.map((text) => {
    const line = document.createElement("label");
    line.append(Object.assign(document.createElement("input"), { type: "radio", name: "why", value: text }), text);
    return line;
  }));
  $("reason").value = "";
  $("unreadable-save").disabled = true;
  $("unreadable").showModal();
}

const chosenReason = () => $("reason").value.trim() || document.querySelector("#reasons input:checked")?.value || "";

async function saveUnreadable() {
  const reason = chosenReason();
  if (!reason) return;
  $("unreadable").close();
  app.edit({ state: "unreadable", reason });
  await app.commit();
  if (app.overview.states[app.number] === "unreadable") await goNext();
}

let noteTimer = null;
function noteChanged(now) {
  clearTimeout(noteTimer);
  const store = () => {
    const note = $("note").value.trim();
    if (note === app.answer.note) return;
    app.answer = { ...app.answer, note };
    render();
    save();
  };
  if (now) store();
  else noteTimer = setTimeout(store, 500);
}

const rooms = ["auto", "dark", "light"];
const darkSystem = matchMedia("(prefers-color-scheme: dark)");
let room = localStorage.getItem("room") ?? "auto";
function setRoom() {
  const dark = room === "dark" || (room === "auto" && darkSystem.matches);
  document.documentElement.dataset.room = dark ? "dark" : "light";
  $("theme").setAttribute("aria-label", `Room: ${room === "auto" ? "as the system" : room}`);
  $("theme").textContent = { auto: "◐", dark: "☾", light: "☀" }[room];
  render();
}
function nextRoom() {
  const dark = document.documentElement.dataset.room === "dark";
  // The first press always changes what is seen.
  room = room === "auto" ? (dark ? "light" : "dark") : rooms[(rooms.indexOf(room) + 1) % rooms.length];
  localStorage.setItem("room", room);
  setRoom();
}

const PLAIN_KEYS = {
  ArrowUp: () => app.move(app.slice - 1), ArrowLeft: () => app.move(app.slice - 1),
  ArrowDown: () => app.move(app.slice + 1), ArrowRight: () => app.move(app.slice + 1),
  PageUp: () => app.move(app.slice - 5), PageDown: () => app.move(app.slice + 5),
  Home: () => app.move(0), End: () => app.move(app.count - 1),
  Enter: finish, n: goNext, b: () => go(app.number - 1), u: undo, s: toggleFree, x: askReason, p: predict,
  t: () => $("note").focus(), a: () => viewer.autoContrast(), 0: () => viewer.resetPicture(),
  "+": () => viewer.setZoom(viewer.zoom * 1.5), "=": () => viewer.setZoom(viewer.zoom * 1.5),
  "-": () => viewer.setZoom(viewer.zoom / 1.5), l: nextRoom, "?": () => $("help").showModal(), h: () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || !app.task) return;
  const target = event.target;
  if (target === $("note")) {
    if (event.key === "Escape") $("stage").focus();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  // A focused button's own Enter, a focused slider's own arrows stay theirs.
  if (key === "Enter" && target.closest("button")) return;
  if (target.matches("input[type=range]") && target !== $("slider") && key.startsWith("Arrow")) return;
  const stratum = LETTERS.indexOf(key.toUpperCase());
  const act = stratum >= 0 && key.length === 1 ? () => label(stratum, event.shiftKey) : PLAIN_KEYS[key];
  if (!act) return;
  event.preventDefault();
  act();
});

// A pointer leaves no focus behind: Enter and arrows mean the stack again. Tab and Space keep theirs.
function refocus(event) {
  if (event.target.closest("main, header") && event.target.closest("button, input:not([type=text]), .bar, .tray")) {
    setTimeout(() => document.querySelector("dialog[open]") || $("stage").focus({ preventScroll: true }));
  }
}

function listen() {
  window.addEventListener("pointerup", refocus);
  const clicks = {
    up: () => app.move(app.slice - 1), down: () => app.move(app.slice + 1), finish, undo, next: goNext,
    back: () => go(app.number - 1), predict, theme: nextRoom, "help-open": () => $("help").showModal(),
    "unreadable-open": askReason, "unreadable-cancel": () => $("unreadable").close(), "unreadable-save": saveUnreadable,
  };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  $("slider").addEventListener("input", () => app.move(Number($("slider").value)));
  $("free").addEventListener("change", toggleFree);
  $("note").addEventListener("input", () => noteChanged(false));
  $("note").addEventListener("blur", () => noteChanged(true));
  $("unreadable").addEventListener("input", () => ($("unreadable-save").disabled = !chosenReason()));
  $("unreadable").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("input")) saveUnreadable();
  });
  $("conflict").addEventListener("cancel", (event) => event.preventDefault());
  $("take-theirs").addEventListener("click", async () => {
    $("conflict").close();
    app.waiting = null;
    app.history = [];
    await load(app.number, true);
  });
  $("keep-mine").addEventListener("click", () => {
    $("conflict").close();
    app.task.revision = app.theirs.revision;
    save();
  });
  $("keys").replaceChildren(...KEYS.flatMap(([keys, what]) => {
    const cell = document.createElement("span");
    cell.append(...keys.split(" ").map((key) => element("kbd", key)));
    return [cell, element("span", what)];
  }));
  darkSystem.addEventListener("change", setRoom);
  window.addEventListener("beforeunload", (event) => {
    if (app.waiting || app.saving) event.preventDefault();
  });
  // Whoever comes back to this window sees what another one may have changed.
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && app.task) refresh().catch(() => {});
  });
  window.addEventListener("hashchange", openAddressed);
}

async function openAddressed() {
  const where = decodeURIComponent(location.hash.slice(1));
  if (where.startsWith("stack=")) {
    const found = await call(`find?stack=${encodeURIComponent(where.slice(6))}`).catch(() => null);
    if (found) return go(found.number);
    tell("That stack is not among yours", true);
  }
  if (/^\d+$/.test(where)) return Number(where) - 1 === app.number ? null : go(Number(where) - 1);
  const open = app.overview.states.findIndex((state) => state === "new" || state === "draft");
  return go(Math.max(0, open));
}

async function begin() {
  setRoom();
  listen();
  app.overview = await call("overview");
  app.strata = app.overview.strata;
  app.movable = app.overview.corneum ? [0, 1, 2] : [1, 2];
  $("reader").textContent = app.overview.adjudicating ? `${app.overview.reader} (deciding)` : app.overview.reader;
  document.title = `Label stacks – ${app.overview.reader}`;
  await openAddressed();
}

begin().catch((error) => {
  $("fault").textContent = error.message;
  $("fault").hidden = false;
});
