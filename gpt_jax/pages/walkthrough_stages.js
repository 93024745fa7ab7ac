// Panels of one arm: tokens, embedding, norms, and the MLP; pictures of vectors.
const layerOf = (arm) => arm.layers[Math.min(state.layer, arm.layers.length - 1)];
const headOf = (layer) => Math.min(state.head, layer.keys_of.length - 1);
const lengthOf = (arm) => arm.tokens.length - arm.new + state.step;  // tokens that are there at this step
const queryOf = (arm) => Math.min(state.query ?? Infinity, lengthOf(arm) - 1);

// What a researcher wants to know of a value: its name, shape, statistics, and the call that reads it.
function facts(name, values, shape) {
  if (state.depth !== "tensors") return [];
  let sum = 0, square = 0, least = Infinity, most = -Infinity, count = 0;
  for (const x of values) {
    if (x <= MASKED) continue;
    sum += x; square += x * x; count += 1;
    if (x < least) least = x;
    if (x > most) most = x;
  }
  const mean = sum / count;
  const text = `${name} [${shape.join(", ")}]  min ${written(least)}  max ${written(most)}  mean ${written(mean)}  `
    + `std ${written(Math.sqrt(Math.max(0, square / count - mean * mean)))}\nread(model, params, tokens, "${name}")`;
  return [make("pre", { class: "facts-of" }, text)];
}

// A picture of vectors, one row for each token. `name` is that of the tap, within the layer if there is one.
function vectors(arm, a, name, label, width, { layer = null, head = null, channels = null, formula, from } = {}) {
  const record = tensor(layer === null ? name.split("/").reduce((at, part) => at[part], arm) : layer.values[name]);
  if (!record) return null;
  const shape = record.shape, cols = shape.length === (head === null ? 1 : 2) ? 1 : shape[shape.length - 1];
  const rows = shape[head === null ? 0 : 1];
  const cell = Math.max(1, Math.min(14, width / cols));
  return new Grid({
    arm, key: `${a}/${name}`, label, values: record.values, offset: (head ?? 0) * rows * cols, rows, cols,
    shown: lengthOf(arm), width: Math.max(48, Math.round(cell * cols)),
    rowName: (i) => named(arm, i), colName: (j) => `element ${channels ? channels[j] : j}`,
    formula: formula ?? (() => ""),
    from: (i, j) => (from ? from(i, j) : []).map((part) => ({ ...part, key: `${a}/${part.name}` })),
    pick: (i) => choose({ query: i }),
  });
}

// The width of pictures that stand in a row: `wanted`, or half of a narrow column.
function fit(width, wanted) { return Math.min(wanted, width < 700 ? (width - 24) / 2 : width); }

function shown(pictures) { return make("div", { class: "row" }, ...pictures.filter(Boolean).map((g) => g.element)); }

// The values of the chosen token's row, of each picture that there is.
function numbers(arm, pictures) {
  if (state.depth === "picture") return null;
  const i = queryOf(arm), there = pictures.filter(Boolean), most = 16;
  const rows = there.map((g) => [g.label, ...Array.from({ length: most }, (_, j) => j < g.cols ? written(g.value(i, j)) : "")]);
  return table([named(arm, i), ...Array.from({ length: most }, (_, j) => String(j))], rows, `Numbers of ${named(arm, i)}`);
}

function panelTokens(arm) {
  const chips = arm.tokens.slice(0, lengthOf(arm)).map((token, i) => make("button", {
    type: "button", class: `token t${i % 4}${i >= arm.tokens.length - arm.new ? " new" : ""}`,
    "aria-pressed": String(i === queryOf(arm)), onclick: () => choose({ query: i }),
  }, quoted(token.text), make("small", {}, String(token.id))));
  const parts = [make("div", { class: "tokens" }, ...chips)], token = arm.tokens[queryOf(arm)];
  if (state.depth !== "picture") {
    const hex = token.bytes.map((b) => b.toString(16).padStart(2, "0").toUpperCase()).join(" ");
    parts.push(make("p", {}, quoted(token.text), ` has the number ${token.id} and ${bytes(token.bytes.length)}: ${hex}`));
    if (token.merges !== null && token.merges.length > 1) {
      parts.push(make("ol", { class: "merges" }, ...token.merges.map((step) =>
        make("li", {}, ...step.map((piece) => make("span", { class: "token" }, quoted(piece)))))));
    } else {
      const why = token.merges === null ? "This tokenizer does not say how it found the piece." : "Nothing was merged for it.";
      parts.push(make("p", { class: "note" }, why));
    }
  }
  if (state.depth === "tensors") {
    const ids = arm.tokens.slice(0, lengthOf(arm)).map((each) => each.id).join(", ");
    parts.push(make("pre", {}, `tokens = jnp.array([[${ids}]])`));
  }
  return parts;
}

function panelEmbedding(arm, a, width) {
  const own = arm.embedding, w = fit(width, 400), channels = arm.layers[0].channels;
  const pictures = [
    vectors(arm, a, "embedding/rows", "Rows of the table", w, { channels, formula: (i) => `table[${arm.tokens[i].id}]` }),
    vectors(arm, a, "embedding/positions", "Rows of positions", w, {
      channels, formula: (i) => `positions[${arm.first + i}]` }),
    vectors(arm, a, "embedding/output", "Into the first layer", w, {
      channels, formula: () => own.positions ? "row + position" : "the row, scaled and normed where the model does so",
      from: (i, j) => ["rows", "positions"].map((part) => ({ name: `embedding/${part}`, row: i, col: j })) }),
  ];
  const i = queryOf(arm), near = tensor(own.neighbours), cosines = tensor(own.cosines), n = near.shape[1];
  const others = Array.from({ length: n }, (_, j) => [near.values[i * n + j], cosines.values[i * n + j]])
    .filter(([id]) => id !== arm.tokens[i].id).slice(0, 6);
  const list = others.map(([id, c]) => make("li", {}, quoted(nameOf(arm, id)), make("small", {}, ` ${written(c)}`)));
  return [shown(pictures), numbers(arm, pictures),
    make("p", { class: "near" }, "Nearest to ", quoted(arm.tokens[i].text), " by the cosine of their rows:"),
    make("ul", { class: "neighbours" }, ...list),
    ...facts("embedding", tensor(own.output).values, tensor(own.output).shape)];
}

// The norm on the input of attention; null where it has none.
const isPost = (layer) => layer.rules.residual.startsWith("norm(");
const normOf = (layer) => isPost(layer) ? null
  : ["attention_norm/output", "norm/output"].find((name) => layer.values[name]) ?? null;
const NORM = (x) => `${x} brought to one size, times a learned scale`;

function panelNorm(arm, a, width) {
  const layer = layerOf(arm), w = fit(width, 400), { channels } = layer;
  const name = normOf(layer);
  const before = arm.layers.indexOf(layer) === 0 && layer.index === 0 ? "the embedding" : `layer ${layer.index - 1}'s output`;
  const pictures = [
    vectors(arm, a, "input", `Into layer ${layer.index}`, w, { layer, channels, formula: () => before }),
    name ? vectors(arm, a, name, "After the norm", w, {
      layer, channels, formula: () => NORM("the row"), from: (i) => [{ name: "input", row: i }] }) : null,
  ];
  const about = [make("p", { class: "formula" }, `Residual stream: ${layer.rules.residual}`)];
  if (!name) about.push(make("p", { class: "note" }, "In this arrangement attention reads the stream itself."));
  return [...about, shown(pictures), numbers(arm, pictures),
    ...(name ? facts(`blocks/${layer.index}/${name}`, tensor(layer.values[name]).values, layer.values[name].shape) : [])];
}

function panelMlp(arm, a, width) {
  const layer = layerOf(arm), w = fit(width, 290), { channels } = layer;
  if (layer.rules.mlp === null) return [make("p", { class: "note" }, "This layer has no MLP.")];
  const isGated = layer.values["mlp/gate"] !== undefined;
  const of = (name, label, formula, from, own = true) =>
    layer.values[name] ? vectors(arm, a, name, label, w, { layer, channels: own ? channels : null, formula, from }) : null;
  const pictures = [
    isPost(layer) ? null : of("mlp_norm/output", "After the norm", () => NORM("the row"), (i) => [{ name: "attention_residual", row: i }]),
    of("mlp/hidden", "Hidden units", () => isGated ? "activation(gate) · up" : "activation(up)",
      (i, j) => [{ name: "mlp/up", row: i, col: j }, { name: "mlp/gate", row: i, col: j },
        { name: "mlp_norm/output", row: i }], false),
    of("mlp_change", "What is added", () => "hidden × the down kernel", (i) => [{ name: "mlp/hidden", row: i }]),
    of("output", `Out of layer ${layer.index}`, () => "the residual stream + what is added",
      (i, j) => [{ name: "attention_residual", row: i, col: j }, { name: "mlp_change", row: i, col: j }]),
  ];
  if (state.depth === "tensors") {
    pictures.splice(1, 0, of("mlp/up", "Up", () => "norm × the up kernel", (i) => [{ name: "mlp_norm/output", row: i }], false),
      of("mlp/gate", "Gate", () => "norm × the gate kernel", (i) => [{ name: "mlp_norm/output", row: i }], false));
  }
  return [make("p", { class: "formula" }, layer.rules.mlp), shown(pictures), numbers(arm, pictures),
    ...facts(`blocks/${layer.index}/mlp/hidden`, tensor(layer.values["mlp/hidden"]).values, layer.values["mlp/hidden"].shape)];
}
