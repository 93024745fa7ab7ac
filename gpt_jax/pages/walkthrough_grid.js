// A picture of numbers, one cell for each: the cursor and the pointer tell a cell's value, its formula, and light up
// the cells that it came from.
const grids = new Map();  // key → grid
const told = document.getElementById("told");
let palette = null;

function colours() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const full = hex.length === 3 ? [...hex].map((c) => c + c).join("") : hex;
    return [0, 2, 4].map((i) => parseInt(full.slice(i, i + 2), 16));
  };
  return { low: rgb("--low"), high: rgb("--high"), zero: rgb("--cell"), hidden: rgb("--hidden") };
}

class Grid {
  // arm, key, label, values, offset, rows, cols; shown: how many rows are; hides(i, j): whether a mask hides the cell;
  // rowName, colName, formula, from: functions of the cell; pick(i, j): what a click does; width, cell: pixels.
  constructor(options) {
    Object.assign(this, { offset: 0, shown: options.rows, hides: () => false, from: () => [], pick: null }, options);
    this.row = 0;
    this.col = 0;
    this.draw();
    const moved = "Arrow keys move between cells, Enter chooses one.";
    const says = `${this.label}, ${this.shown} rows, ${this.cols} columns. ${moved}`;
    this.light = make("div", { class: "light", "aria-hidden": "true" });
    this.here = make("div", { class: "here", "aria-hidden": "true" });
    this.cells = make("div", {
      class: "cells", tabindex: this.small ? -1 : 0, role: "application", "aria-label": says,
      onpointermove: (event) => this.point(event), onpointerleave: () => this.leave(),
      onclick: (event) => { this.point(event); this.choose(); }, onkeydown: (event) => this.press(event),
      onfocus: () => this.show(), onblur: () => this.leave(),
    }, this.canvas, this.here, this.light);
    this.cells.style.width = `${this.width}px`;
    this.cells.style.height = `${this.height}px`;
    this.element = make("figure", { class: "grid" }, make("figcaption", {}, this.caption ?? this.label), this.cells);
    this.element.style.width = `${this.width}px`;
    if (state.depth !== "picture" && !this.small) {
      this.element.append(make("p", { class: "range" }, `${written(this.least)} to ${written(this.most)}`));
    }
    grids.set(this.key, this);
    this.place();
  }

  // Marks the row of the token that is followed through the page.
  place() {
    this.here.style.top = `${100 * queryOf(this.arm) / this.rows}%`;
    this.here.style.height = `${100 / this.rows}%`;
  }

  value(i, j) { return this.values[this.offset + i * this.cols + j]; }

  draw() {
    palette ??= colours();
    const { rows, cols, shown } = this;
    this.canvas = make("canvas", { width: cols, height: rows, "aria-hidden": "true" });
    const context = this.canvas.getContext("2d"), image = context.createImageData(cols, rows);
    let least = Infinity, most = -Infinity;
    for (let i = 0; i < shown; i++) {
      for (let j = 0; j < cols; j++) {
        const x = this.value(i, j);
        if (x > MASKED && !this.hides(i, j)) { if (x < least) least = x; if (x > most) most = x; }
      }
    }
    this.least = least;
    this.most = most;
    const size = Math.max(Math.abs(least), Math.abs(most)) || 1;
    for (let i = 0; i < shown; i++) {
      for (let j = 0; j < cols; j++) {
        const x = this.value(i, j), at = 4 * (i * cols + j), isHidden = this.hides(i, j) || x <= MASKED;
        const share = isHidden ? 0 : Math.min(1, Math.abs(x) / size) ** 0.7;
        const end = x < 0 ? palette.low : palette.high, start = isHidden ? palette.hidden : palette.zero;
        for (let c = 0; c < 3; c++) image.data[at + c] = start[c] + share * (end[c] - start[c]);
        image.data[at + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    this.cell ??= Math.max(3, Math.min(14, Math.floor((this.width < 200 ? 224 : 320) / rows)));
    this.height = Math.round(this.cell * rows);
  }

  point(event) {
    const box = this.cells.getBoundingClientRect();
    const within = (x, n) => Math.max(0, Math.min(n - 1, Math.floor(x * n)));
    this.row = within((event.clientY - box.top) / box.height, this.rows);
    this.col = within((event.clientX - box.left) / box.width, this.cols);
    this.show();
  }

  press(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      this.row = Math.max(0, Math.min(this.shown - 1, this.row + step[0]));
      this.col = Math.max(0, Math.min(this.cols - 1, this.col + step[1]));
      this.show();
    } else if (event.key === "Enter" || event.key === " ") this.choose();
    else return;
    event.preventDefault();
  }

  choose() { if (this.pick !== null && this.row < this.shown) this.pick(this.row, this.col); }

  show() {
    Grid.clear();
    if (this.row >= this.shown) { this.leave(); return; }
    const [i, j] = [this.row, this.col], x = this.value(i, j);
    const name = `${this.label} [${this.rowName(i)}, ${this.colName(j)}]`;
    told.replaceChildren(
      make("strong", {}, `${written(x)} `), make("span", {}, name), make("span", { class: "how" }, this.formula(i, j)));
    told.dataset.value = x;
    told.hidden = false;
    this.mark("cursor", i, j);
    for (const { key, row = null, col = null } of this.from(i, j)) grids.get(key)?.mark("lit", row, col);
  }

  leave() { Grid.clear(); told.hidden = true; }

  mark(kind, row, col) {
    const box = make("div", { class: kind });
    const [top, high] = row === null ? [0, 1] : [row / this.rows, 1 / this.rows];
    const [left, wide] = col === null ? [0, 1] : [col / this.cols, 1 / this.cols];
    Object.assign(box.style, {
      top: `${100 * top}%`, height: `${100 * high}%`, left: `${100 * left}%`, width: `${100 * wide}%`,
    });
    this.light.append(box);
  }

  static clear() { for (const grid of grids.values()) grid.light.replaceChildren(); }
}
