// The picture: slices fetched ahead, decoded near the one in view; contrast, zoom, scale bar.
const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

class Viewer {
  constructor(onMove) {
    this.stage = $("stage");
    this.canvas = $("canvas");
    this.onMove = onMove; // asked to show another slice
    this.url = () => "";
    this.count = 0;
    this.slice = 0;
    this.blobs = new Map(); // slice → {blob, low, high}
    this.pictures = new Map(); // slice → ImageBitmap, a few around the one in view
    this.zoom = 1;
    this.x = this.y = 0; // where the picture's middle lies, in pictures from the stage's middle
    this.generation = 0;
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  open(url, shown) {
    this.generation += 1;
    this.url = url;
    this.shown = shown;
    this.count = shown.count;
    this.blobs.clear();
    for (const picture of this.pictures.values()) picture.close();
    this.pictures.clear();
    this.resetZoom();
    $("fault").hidden = true;
    this.clear();
    this.fetchAround();
  }

  show(slice) {
    this.slice = slice;
    this.draw();
    this.fetchAround();
  }

  // One slice after another, nearest to the one in view first; the first is asked for at once.
  async fetchAround() {
    if (this.fetching === this.generation) return;
    const generation = (this.fetching = this.generation);
    while (generation === this.generation) {
      const missing = this.nearest().filter((t) => !this.blobs.has(t)).slice(0, 3);
      if (!missing.length) break;
      const loaded = await Promise.all(missing.map((t) => this.load(t, generation)));
      if (!loaded.every(Boolean)) break;
    }
    if (this.fetching === generation) this.fetching = null;
  }

  nearest() {
    const order = Array.from({ length: this.count }, (_, t) => t);
    // What lies ahead, deeper, is wanted sooner than what lies behind.
    const distance = (t) => (t >= this.slice ? t - this.slice : 1.6 * (this.slice - t));
    return order.sort((a, b) => distance(a) - distance(b));
  }

  async load(t, generation) {
    try {
      const reply = await fetch(this.url(t));
      if (generation !== this.generation) return false;
      if (!reply.ok) throw new Error((await reply.json()).error);
      const [low, high] = reply.headers.get("x-gray-levels").split(",").map(Number);
      const blob = await reply.blob();
      if (generation !== this.generation) return false;
      this.blobs.set(t, { blob, low, high });
      if (t === this.slice) this.draw();
      return true;
    } catch (error) {
      if (generation === this.generation) {
        $("fault").textContent = error instanceof TypeError ? "The server does not answer." : error.message;
        $("fault").hidden = false;
        setTimeout(() => this.fetchAround(), 1500);
      }
      return false;
    }
  }

  async draw() {
    const wanted = this.slice;
    const stored = this.blobs.get(wanted);
    if (!stored) {
      this.clear();
      return;
    }
    $("fault").hidden = true;
    if (!this.pictures.has(wanted)) {
      const generation = this.generation;
      const picture = await createImageBitmap(stored.blob);
      if (generation !== this.generation) return;
      this.pictures.set(wanted, picture);
      for (const t of this.pictures.keys()) {
        if (Math.abs(t - this.slice) > 8) {
          this.pictures.get(t).close();
          this.pictures.delete(t);
        }
      }
      if (wanted !== this.slice) return;
    }
    const picture = this.pictures.get(wanted);
    const box = this.stage.getBoundingClientRect();
    const dots = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(box.width * dots), Math.round(box.height * dots)];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const context = this.canvas.getContext("2d");
    const scale = this.fit(picture, box) * this.zoom * dots;
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = scale < 4;
    context.imageSmoothingQuality = "high";
    const [w, h] = [picture.width * scale, picture.height * scale];
    context.drawImage(picture, width / 2 + (this.x - 0.5) * w, height / 2 + (this.y - 0.5) * h, w, h);
    this.drawScale(scale / dots);
    this.stage.dataset.drawn = wanted;
  }

  // No picture under another one's name: while a slice is not there yet, none is shown.
  clear() {
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.stage.dataset.drawn = "";
  }

  fit(picture, box) {
    return Math.min(box.width / picture.width, box.height / picture.height);
  }

  drawScale(pixels) {
    const um = this.shown.pixel_um;
    $("scale").hidden = !um;
    if (!um) return;
    const perUm = pixels / um;
    const length = [1000, 500, 200, 100, 50, 20, 10, 5].find((l) => l * perUm < 140) || 2;
    $("scale").style.width = `${length * perUm}px`;
    $("scale").textContent = `${length} µm`;
  }

  setZoom(zoom, fx = 0, fy = 0) {
    const before = this.zoom;
    this.zoom = clamp(zoom, 1, 16);
    // The point at (fx, fy), in pixels from the stage's middle, stays where it is.
    const picture = { width: this.shown.width, height: this.shown.height };
    const fit = this.fit(picture, this.stage.getBoundingClientRect());
    const [w, h] = [picture.width * fit, picture.height * fit];
    this.x = fx / (w * this.zoom) + (this.x - fx / (w * before));
    this.y = fy / (h * this.zoom) + (this.y - fy / (h * before));
    this.keepInside();
    $("zoom").textContent = `${Math.round(100 * this.zoom)} %`;
    this.stage.classList.toggle("zoomed", this.zoom > 1);
    this.draw();
  }

  resetZoom() {
    this.zoom = 1;
    this.x = this.y = 0;
    $("zoom").textContent = "100 %";
    this.stage.classList.remove("zoomed");
  }

  keepInside() {
    const room = (this.zoom - 1) / (2 * this.zoom);
    this.x = clamp(this.x, -room, room);
    this.y = clamp(this.y, -room, room);
  }

  pan(dx, dy) {
    const fit = this.fit(this.shown, this.stage.getBoundingClientRect()) * this.zoom;
    this.x += dx / (this.shown.width * fit);
    this.y += dy / (this.shown.height * fit);
    this.keepInside();
    this.draw();
  }

  setContrast() {
    const brightness = 2 ** Number($("brightness").value);
    const contrast = 2 ** Number($("contrast").value);
    this.canvas.style.filter = brightness === 1 && contrast === 1 ? "" : `brightness(${brightness}) contrast(${contrast})`;
  }

  // Gray levels low … high become black … white: contrast(c) after brightness(b) maps x to c(bx − ½) + ½.
  autoContrast() {
    const stored = this.blobs.get(this.slice);
    if (!stored) return;
    const [low, high] = [stored.low / 255, Math.max(stored.high, stored.low + 8) / 255];
    const contrast = 1 + (2 * low) / (high - low);
    const brightness = 1 / ((high - low) * contrast);
    $("contrast").value = Math.log2(contrast);
    $("brightness").value = Math.log2(brightness);
    this.setContrast();
  }

  resetPicture() {
    $("contrast").value = $("brightness").value = 0;
    this.setContrast();
    this.resetZoom();
    this.draw();
  }

  listen() {
    let rolled = 0;
    this.stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.stage.getBoundingClientRect();
      if (event.ctrlKey) {
        const [fx, fy] = [event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2];
        this.setZoom(this.zoom * 2 ** (-event.deltaY / 200), fx, fy);
        return;
      }
      // A notch of a mouse is a slice; a touchpad sends many small steps.
      rolled += event.deltaMode === 0 ? event.deltaY : 40 * event.deltaY;
      const steps = Math.trunc(rolled / 40);
      rolled -= 40 * steps;
      if (steps) this.onMove(this.slice + clamp(steps, -3, 3));
    }, { passive: false });
    const fingers = new Map();
    let start = null;
    this.stage.addEventListener("pointerdown", (event) => {
      this.stage.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, event);
      start = { zoom: this.zoom, spread: this.spread(fingers), moved: 0 };
    });
    this.stage.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      fingers.set(event.pointerId, event);
      if (fingers.size === 2) {
        this.setZoom((start.zoom * this.spread(fingers)) / start.spread);
      } else if (this.zoom > 1) {
        this.pan(event.clientX - last.clientX, event.clientY - last.clientY);
      } else if (event.pointerType === "touch") {
        start.moved += event.clientY - last.clientY;
        const steps = Math.trunc(start.moved / 14);
        start.moved -= 14 * steps;
        if (steps) this.onMove(this.slice + steps);
      }
    });
    for (const name of ["pointerup", "pointercancel"]) {
      this.stage.addEventListener(name, (event) => {
        fingers.delete(event.pointerId);
        if (start) start = { zoom: this.zoom, spread: this.spread(fingers), moved: 0 };
      });
    }
    this.stage.addEventListener("dblclick", () => this.setZoom(this.zoom > 1 ? 1 : 2));
    $("brightness").addEventListener("input", () => this.setContrast());
    $("contrast").addEventListener("input", () => this.setContrast());
    $("auto").addEventListener("click", () => this.autoContrast());
    $("reset").addEventListener("click", () => this.resetPicture());
    $("zoom-in").addEventListener("click", () => this.setZoom(this.zoom * 1.5));
    $("zoom-out").addEventListener("click", () => this.setZoom(this.zoom / 1.5));
  }

  spread(fingers) {
    const [a, b] = fingers.values();
    return b ? Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1 : 1;
  }
}
