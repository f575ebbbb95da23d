// A picture whose cells can be asked: by pointer, finger, or the arrow keys.

// Canvases beyond this are refused by phones.
const MOST_PIXELS = 8e6;
const STEPS = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", Home: "home", End: "end",
};

/** An element with attributes, properties as `textContent`, and children. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter(Boolean));
  return made;
}

/** Numbers 0 to 1 to `[r, g, b]`, along the colours of a variable of the style sheet. */
export function scaleOf(name) {
  const stops = style(name).split(/\s+/).map(rgb);
  return (share) => {
    const place = Math.min(1, Math.max(0, share || 0)) * (stops.length - 1);
    const left = Math.min(stops.length - 2, Math.floor(place));
    return stops[left].map((low, i) => low + (place - left) * (stops[left + 1][i] - low));
  };
}

export function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function rgb(hex) {
  const digits = hex.length === 4 ? [...hex.slice(1)].map((each) => each + each) : hex.slice(1).match(/../g);
  return digits.map((each) => parseInt(each, 16));
}

export const css = ([r, g, b]) => `rgb(${Math.round(r)} ${Math.round(g)} ${Math.round(b)})`;

/** A bar of a scale, with what stands at its ends. */
export function legend(scale, low, high) {
  const bar = element("canvas", { width: 144, height: 1, "aria-hidden": "true" });
  const paint = () => {
    const colour = scaleOf(scale);
    const context = bar.getContext("2d");
    for (let x = 0; x < bar.width; x++) {
      context.fillStyle = css(colour(x / (bar.width - 1)));
      context.fillRect(x, 0, 1, 1);
    }
  };
  return { node: element("span", { className: "legend" }, low, bar, high), paint };
}

/** All pictures that are shown: painted again where the width or the colours change. */
export class Charts {
  #painted = [];
  #titles = new Set();

  constructor(place) {
    new ResizeObserver(() => this.paint()).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  clear() {
    this.#painted = [];
    this.#titles.clear();
  }

  paint() {
    for (const paint of this.#painted) paint();
  }

  /**
   * A figure. `layout(width)` gives `{ width, height, paint(context), at(x, y), box(cell), step }`:
   * which cell is at a place (or -1), where it stands, and which is next to it.
   */
  figure({ title, note, label, key, layout, describe }) {
    // What a figure means is said once, and how all are read.
    const isNew = !this.#titles.has(title);
    const isFirst = !this.#titles.size;
    this.#titles.add(title);
    const canvas = element("canvas", { tabIndex: 0, role: "img", "aria-label": `${title}. ${label}` });
    const cursor = element("div", { className: "cursor", hidden: true });
    const plot = element("div", { className: "plot" }, canvas, cursor);
    const hint = isFirst ? "Point at it, or use the arrow keys, to read values." : "";
    const readout = element("output", { className: "readout", textContent: hint });
    let shape = null;
    let cell = -1;

    const point = (next) => {
      cell = next;
      cursor.hidden = cell < 0;
      readout.classList.toggle("live", cell >= 0);
      readout.textContent = cell < 0 ? hint : describe(cell);
      if (cell < 0) return;
      const [left, top, width, height] = shape.box(cell);
      Object.assign(cursor.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
    };
    canvas.addEventListener("pointermove", (event) => point(shape.at(event.offsetX, event.offsetY)));
    canvas.addEventListener("pointerdown", (event) => point(shape.at(event.offsetX, event.offsetY)));
    canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(-1); });
    canvas.addEventListener("blur", () => point(-1));
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in STEPS) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      point(cell < 0 ? 0 : shape.step(cell, STEPS[event.key]));
    });

    const paint = () => {
      key?.paint();
      const width = Math.floor(plot.clientWidth);
      if (!width) return;
      shape = layout(width);
      const ratio = Math.min(devicePixelRatio, Math.sqrt(MOST_PIXELS / (shape.width * shape.height)));
      canvas.width = Math.round(shape.width * ratio);
      canvas.height = Math.round(shape.height * ratio);
      Object.assign(canvas.style, { width: `${shape.width}px`, height: `${shape.height}px` });
      const context = canvas.getContext("2d");
      context.scale(canvas.width / shape.width, canvas.height / shape.height);
      shape.paint(context);
      point(-1);
    };
    this.#painted.push(paint);
    const caption = element("figcaption", {}, element("h3", { textContent: title }), key?.node,
      isNew && element("p", { textContent: note }));
    return element("figure", {}, caption, plot, readout);
  }
}

/** The next cell of rows of `columns`, of `count` in all. */
export function inGrid(cell, step, columns, count) {
  const row = cell - cell % columns;
  const next = {
    left: cell - 1, right: cell + 1, up: cell - columns, down: cell + columns,
    home: row, end: Math.min(row + columns, count) - 1,
  }[step];
  return next < 0 || next >= count ? cell : next;
}
