// The strata by depth: the reader's own strip with its boundaries, and others' beside it.
const NAMES = { stratum_corneum: "Corneum", epidermis: "Epidermis", dej: "DEJ", dermis: "Dermis" };
const NOT_LABELLED = -1;

// As `answers.Answer.strata`: nothing between two boundaries is certain while one of them is undecided.
function strataOf(answer, count) {
  if (answer.labels) return answer.labels;
  return Array.from({ length: count }, (_, t) => {
    let [label, decided] = [0, true];
    for (let i = 0; i < answer.starts.length; i += 1) {
      const start = answer.starts[i];
      if (start === null) decided = false;
      else if (t >= start) [label, decided] = [i + 1, true];
      else break;
    }
    return decided ? label : NOT_LABELLED;
  });
}

class Bar {
  // `app` has: count, slice, answer, strips, depthText(t), move(t), start(i, t, save), paint(t), brush
  constructor(app) {
    this.app = app;
    this.bar = $("bar");
    this.handles = [];
    this.listen();
  }

  draw() {
    const { app } = this;
    const strips = [...app.strips, { name: "yours", labels: strataOf(app.answer, app.count), own: true }];
    const held = this.focused();
    this.bar.replaceChildren();
    $("heads").replaceChildren();
    for (const strip of strips) {
      const head = document.createElement("span");
      head.textContent = strip.name;
      head.classList.toggle("own", Boolean(strip.own));
      if (app.strips.length) $("heads").append(head);
      this.bar.append(this.strip(strip));
    }
    this.ticks();
    const cursor = document.createElement("div");
    cursor.className = "cursor";
    cursor.style.top = `${(100 * app.slice) / app.count}%`;
    cursor.style.height = `${100 / app.count}%`;
    this.bar.append(cursor);
    $("tray").replaceChildren();
    if (!app.answer.labels) app.movable.forEach((i) => this.handle(i));
    if (held !== null) document.querySelector(`.handle[data-i="${held}"]`)?.focus();
  }

  focused() {
    return document.activeElement?.classList.contains("handle") ? document.activeElement.dataset.i : null;
  }

  strip(strip) {
    const box = document.createElement("div");
    box.className = `strip${strip.own ? " own" : ""}`;
    box.classList.toggle("brush", Boolean(strip.own && this.app.answer.labels));
    const canvas = document.createElement("canvas");
    const rows = 6; // of pixels a slice, for the hatching
    canvas.width = 24;
    canvas.height = rows * this.app.count;
    const context = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colors = [0, 1, 2, 3].map((i) => style.getPropertyValue(`--s${i}`));
    strip.labels.forEach((label, t) => {
      context.fillStyle = label >= 0 ? colors[label] : style.getPropertyValue("--hatch");
      context.fillRect(0, rows * t, canvas.width, rows);
      if (strip.own && this.app.answer.labels) {
        context.fillStyle = "#0003";
        context.fillRect(0, rows * t, canvas.width, 1);
      }
    });
    box.append(canvas);
    return box;
  }

  ticks() {
    const { app } = this;
    const height = this.bar.clientHeight || 400;
    const step = [1, 2, 5, 10, 20, 50, 100].find((s) => (s * height) / app.count >= 26) || 200;
    for (let t = 0; t < app.count; t += step) {
      const tick = document.createElement("div");
      tick.className = "tick";
      tick.style.top = `${(100 * (t + 0.5)) / app.count}%`;
      tick.textContent = app.depthText(t);
      this.bar.append(tick);
    }
  }

  handle(i) {
    const { app } = this;
    const start = app.answer.starts[i];
    const name = NAMES[app.strata[i + 1]];
    const button = document.createElement("button");
    button.type = "button";
    button.className = "handle";
    button.dataset.i = i;
    button.textContent = name;
    button.setAttribute("role", "slider");
    button.setAttribute("aria-orientation", "vertical");
    button.setAttribute("aria-label", `${name} begins at slice`);
    button.setAttribute("aria-valuemin", 0);
    button.setAttribute("aria-valuemax", app.count);
    button.setAttribute("aria-valuenow", start ?? app.count);
    button.setAttribute("aria-valuetext", app.startText(i));
    if (start === null) {
      button.classList.add("unset");
      button.textContent = `↑ ${name}`;
      button.title = `Drag ${name} to where it begins`;
      $("tray").append(button);
      return;
    }
    const line = document.createElement("div");
    line.className = "line";
    line.style.top = button.style.top = `${(100 * start) / app.count}%`;
    button.style.background = `var(--s${i + 1})`;
    // Handles at one place stand above each other.
    const same = app.movable.filter((j) => app.answer.starts[j] === start);
    const rank = same.indexOf(i);
    const unset = app.movable.filter((j) => app.answer.starts[j] === null).length;
    if (start >= app.count) button.style.marginTop = `${-38 * (unset + same.length - 1 - rank)}px`;
    else if (same.length > 1) button.style.marginTop = `${36 * rank}px`;
    button.classList.toggle("low", start >= app.count);
    button.classList.toggle("high", start === 0);
    this.bar.append(line, button);
  }

  sliceAt(clientY) {
    const box = this.bar.getBoundingClientRect();
    return ((clientY - box.y) / box.height) * this.app.count;
  }

  listen() {
    const down = (event) => {
      const handle = event.target.closest(".handle");
      event.preventDefault();
      if (handle) this.dragged = Number(handle.dataset.i);
      else if (!this.bar.contains(event.target)) return;
      else this.scrub = true;
      this.pointer = event.pointerId;
      this.bar.setPointerCapture(event.pointerId); // the handle itself is drawn anew at every step
      this.moved = false;
      if (this.scrub) drag(event);
    };
    const drag = (event) => {
      if (event.pointerId !== this.pointer) return;
      const at = this.sliceAt(event.clientY);
      if (this.dragged !== undefined) {
        // A boundary snaps to the nearest gap between slices; at the bottom the stratum is not reached.
        this.moved = true;
        this.app.start(this.dragged, clamp(Math.round(at), 0, this.app.count), false);
      } else if (this.scrub) {
        const t = clamp(Math.floor(at), 0, this.app.count - 1);
        if (this.app.answer.labels && this.app.brush !== null) this.app.paint(t);
        this.app.move(t);
      }
    };
    const up = (event) => {
      if (event.pointerId !== this.pointer) return;
      const painted = this.scrub && this.app.answer.labels && this.app.brush !== null;
      const set = this.dragged !== undefined && this.moved;
      this.dragged = this.pointer = undefined;
      this.scrub = false;
      if (set || painted) this.app.commit();
    };
    for (const place of [this.bar, $("tray")]) place.addEventListener("pointerdown", down);
    window.addEventListener("pointermove", drag);
    window.addEventListener("pointerup", up);
    window.addEventListener("pointercancel", up);
    this.bar.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.app.move(this.app.slice + Math.sign(event.deltaY));
    }, { passive: false });
    for (const place of [this.bar, $("tray")]) place.addEventListener("keydown", (event) => {
      const handle = event.target.closest(".handle");
      const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -5, PageDown: 5 }[event.key];
      if (!handle || !step) return;
      event.preventDefault();
      event.stopPropagation();
      const i = Number(handle.dataset.i);
      const now = this.app.answer.starts[i] ?? this.app.slice - step;
      this.app.start(i, clamp(now + step, 0, this.app.count), true);
    });
    new ResizeObserver(() => this.app.count && this.draw()).observe($("stage"));
  }
}
