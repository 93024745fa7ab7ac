// Small parts: the data, elements, numbers.
const arms = JSON.parse(document.getElementById("walk").textContent);
const state = {  // what is chosen; a query or a pair of null follows the newest token
  depth: "picture", layer: 0, head: 0, step: 0, query: null, pair: null, stage: "weights", temperature: 1, topK: 8, topP: 1,
};
const many = arms.length > 1;

function decode(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// The array of a record, decoded when it is first asked for; null stays null.
function tensor(record) {
  if (record === null || record === undefined) return null;
  if (record.values === undefined) {
    const { buffer } = decode(record.data);
    record.values = record.type === "i4" ? new Int32Array(buffer) : new Float32Array(buffer);
    delete record.data;
  }
  return record;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const MASKED = -1e29;  // below: a key that the mask hides

function written(x) {
  if (x <= MASKED) return "−∞";
  const size = Math.abs(x);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? x.toExponential(2) : String(Number(x.toPrecision(4)));
  return text.replaceAll("-", "−");
}

const percent = (p) => p === 0 ? "0%" : p < 0.0001 ? "< 0.01%" : `${(100 * p).toFixed(p < 0.1 ? 2 : 1)}%`;
const bytes = (n) => `${n.toLocaleString("en")} ${n === 1 ? "byte" : "bytes"}`;

// A token's text, whose direction can't turn that of the page.
const quoted = (text) => make("bdi", { class: "piece" }, text);
const named = (arm, i) => `${arm.first + i} “${arm.tokens[i].text}”`;
const nameOf = (arm, id) => arm.texts[id] ?? `#${id}`;

function table(heads, rows, label) {
  const line = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, tag === "th" ? { scope: "col" } : {}, cell)));
  const body = make("tbody", {}, ...rows.map((row) => line("td", row)));
  const inside = make("table", { class: "numbers" }, make("thead", {}, line("th", heads)), body);
  return make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, inside);
}
