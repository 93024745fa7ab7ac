// Panels of attention: queries, keys and values, the maps of all heads, dot products, and what heads write.
const MAPS = { scores: "attention/scores", logits: "attention/logits" };
const STAGES = { scores: "Scores", logits: "After the mask", weights: "Weights" };

// The name of the map that is shown: a mixer without scores has its effective attention alone.
function mapOf(layer) {
  if (layer.weights === null) return null;
  return layer.values[MAPS[state.stage]] ? MAPS[state.stage] : layer.weights;
}

// Heads in frames, one frame for each head of keys.
function frames(layer, content) {
  const groups = new Map();
  layer.keys_of.forEach((k, h) => groups.set(k, [...(groups.get(k) ?? []), h]));
  return make("div", { class: "frames" }, ...[...groups].map(([k, heads]) => make(
    "div", { class: `frame k${k % 6}` },
    make("p", { class: "frame-name" }, layer.kv_heads === 1 ? "the keys of all heads" : `keys ${k}`),
    make("div", { class: "row" }, ...heads.map(content)))));
}

function panelProjections(arm, a, width) {
  const layer = layerOf(arm), h = headOf(layer), k = layer.keys_of[h], q = layer.queries_of[h];
  const w = fit(width, 260), norm = normOf(layer) ?? "input";
  const of = (name, label, head, formula, from) => layer.values[name]
    ? vectors(arm, a, name, label, w, { layer, head, formula: () => formula, from }) : null;
  const fromNorm = (i) => [{ name: norm, row: i }];
  const turned = layer.rules.position.startsWith("Rotation");
  const both = state.depth !== "picture" && turned;
  const source = layer.keys_from === null ? "" : `, layer ${layer.keys_from}'s`;
  const pictures = [
    both ? of("attention/queries_unrotated", `Query of head ${h}, unrotated`, q, "norm × the query kernel", fromNorm) : null,
    of("attention/queries", `Query of head ${h}`, q, turned ? "the query, turned by its position" : "norm × the query kernel",
      (i, j) => [...fromNorm(i), { name: "attention/queries_unrotated", row: i, col: j }]),
    both ? of("attention/keys_unrotated", `Keys ${k}, unrotated`, k, "norm × the key kernel", fromNorm) : null,
    of("attention/latents", "Latents", null, "norm × the latent kernel, normed", fromNorm),
    of("attention/keys", `Keys ${k}${source}`, k, turned ? "the key, turned by its position" : "norm × the key kernel",
      (i, j) => [...fromNorm(i), { name: "attention/keys_unrotated", row: i, col: j }]),
    of("attention/values", `Values ${k}${source}`, k, "norm × the value kernel", fromNorm),
    of("attention/log_decay", `Log decay of head ${h}`, h, "how much of the past is kept", fromNorm),
    of("attention/betas", `Write strength of head ${h}`, h, "a sigmoid of the input", fromNorm),
  ];
  const share = frames(layer, (each) => make("button", {
    type: "button", class: "head", "aria-pressed": String(each === h), onclick: () => choose({ head: each }),
  }, `head ${each}`));
  return [make("p", { class: "formula" }, `${layer.rules.kind}. ${layer.rules.about} ${layer.rules.position}`),
    share, shown(pictures), numbers(arm, pictures),
    ...["queries", "keys", "values"].filter((n) => layer.values[`attention/${n}`]).flatMap((n) => facts(
      `blocks/${layer.index}/attention/${n}`, tensor(layer.values[`attention/${n}`]).values,
      layer.values[`attention/${n}`].shape))];
}

function cameFrom(layer, name, i, j) {
  if (name === "attention/scores") return [{ name: "attention/queries", row: i }, { name: "attention/keys", row: j }];
  if (name === "attention/logits") return [{ name: "attention/queries", row: i }, { name: "attention/keys", row: j }];
  return name === layer.weights ? [{ name: "map", row: i }, { name: "attention/values", row: j }] : [];
}

function mapGrid(arm, a, layer, name, h, cell, isSmall) {
  const { values, shape } = tensor(layer.values[name]), T = shape[1], n = lengthOf(arm), { rules } = layer;
  const formula = { "attention/scores": rules.score, "attention/logits": rules.logit }[name] ?? rules.weight;
  const logits = layer.values["attention/logits"] ? tensor(layer.values["attention/logits"]).values : null;
  return new Grid({
    arm, key: isSmall ? `${a}/small/${h}` : `${a}/map`, small: isSmall, label: `${name.slice(10)} of head ${h}`,
    caption: isSmall ? `head ${h}` : undefined, values, offset: h * T * T, rows: T, cols: T, shown: n,
    width: Math.round(cell * T), cell,
    hides: (i, j) => j >= n || (logits !== null && name !== "attention/scores" && logits[(h * T + i) * T + j] <= MASKED)
      || (logits === null && j > i),
    rowName: (i) => named(arm, i), colName: (j) => named(arm, j),
    formula: () => formula,
    from: (i, j) => cameFrom(layer, name, i, j).map((part) => ({ ...part, key: `${a}/${part.name}` })),
    pick: (i, j) => choose({ query: i, pair: j, head: h }),
  });
}

// q·k multiplied out, element by element.
function product(arm, layer, h, i, j) {
  const [q, k] = ["queries", "keys"].map((name) => tensor(layer.values[`attention/${name}`]));
  const [T, D] = q.shape.slice(1), qs = (layer.queries_of[h] * T + i) * D, ks = (layer.keys_of[h] * T + j) * D;
  const terms = Array.from({ length: D }, (_, d) => [q.values[qs + d], k.values[ks + d]]);
  const sum = terms.reduce((total, [x, y]) => total + x * y, 0);
  const factor = tensor(layer.factor).values[h * T + i], at = (h * T + i) * T + j;
  const read = (name) => layer.values[name] ? tensor(layer.values[name]).values[at] : null;
  const steps = [`Σ q·k = ${written(sum)}`, `× ${written(factor)} = score ${written(read("attention/scores"))}`,
    `logit ${written(read("attention/logits"))}`, `weight ${written(read(layer.weights))}`];
  const parts = [make("p", { class: "sum" }, steps.join("  →  "))];
  parts[0].dataset.sum = sum;
  parts[0].dataset.score = sum * factor;
  const order = state.depth === "picture" ? [...terms.keys()].sort((x, y) =>
    Math.abs(terms[y][0] * terms[y][1]) - Math.abs(terms[x][0] * terms[x][1])).slice(0, 6) : [...terms.keys()];
  const rows = order.map((d) => [String(d), written(terms[d][0]), written(terms[d][1]), written(terms[d][0] * terms[d][1])]);
  parts.push(table(["element", "q", "k", "q · k"], rows, "The dot product"));
  if (order.length < D) parts.push(make("p", { class: "note" }, `The ${order.length} largest of ${D} products.`));
  return parts;
}

function panelAttention(arm, a, width) {
  const layer = layerOf(arm), name = mapOf(layer), h = headOf(layer), { rules } = layer;
  if (name === null) return [make("p", { class: "note" }, "This layer has no weights between tokens that can be read off.")];
  const T = layer.values[name].shape[1], n = layer.keys_of.length, i = queryOf(arm);
  const cell = Math.min(18, Math.min(width, 440) / T), small = Math.max(1, Math.min(6, Math.min(110, width / 3 - 26) / T));
  const big = mapGrid(arm, a, layer, name, h, cell, false);
  const minis = n > 1 ? frames(layer, (each) => {
    const grid = mapGrid(arm, a, layer, name, each, small, true);
    grid.element.classList.toggle("chosen", each === h);
    return grid.element;
  }) : null;
  big.cells.dataset.map = name;
  const j = Math.min(state.pair ?? i, lengthOf(arm) - 1);
  const parts = [
    make("p", { class: "formula" }, name === "attention/scores" ? rules.score : name === "attention/logits"
      ? `${rules.logit}. ${rules.mask}` : rules.weight), minis,
    make("div", { class: "row" }, big.element, make("div", { class: "detail" },
      make("h3", {}, `${named(arm, i)} looks at ${named(arm, j)}`),
      ...(layer.factor ? product(arm, layer, h, i, j) : [make("p", { class: "sum" },
        `weight ${written(tensor(layer.values[name]).values[(h * T + i) * T + j])}`)])))];
  if (state.depth !== "picture") parts.push(rowOf(arm, layer, h, i));
  return [...parts, ...facts(`blocks/${layer.index}/${name}`, tensor(layer.values[name]).values, layer.values[name].shape)];
}

// All keys of the chosen query, with each stage's number.
function rowOf(arm, layer, h, i) {
  const names = ["attention/scores", "attention/logits", layer.weights].filter((name) => layer.values[name]);
  const T = layer.values[layer.weights].shape[1], keys = Array.from({ length: lengthOf(arm) }, (_, j) => j);
  const rows = keys.map((j) => [named(arm, j), ...names.map((name) => written(tensor(layer.values[name]).values[(h * T + i) * T + j]))]);
  const sum = keys.reduce((total, j) => total + tensor(layer.values[layer.weights]).values[(h * T + i) * T + j], 0);
  return make("details", {}, make("summary", {}, `The row of ${named(arm, i)}: its weights sum to ${written(sum)}`),
    table(["key", ...names.map((name) => name.slice(10))], rows, `The row of ${named(arm, i)}`));
}

function panelMixed(arm, a, width) {
  const layer = layerOf(arm), h = headOf(layer), w = fit(width, 290), { channels } = layer;
  const pictures = [
    layer.values["attention/heads"] ? vectors(arm, a, "attention/heads", `Output of head ${h}`, w, {
      layer, head: h, formula: () => layer.rules.output,
      from: (i, j) => [{ name: "map", row: i }, { name: "attention/values", col: j }] }) : null,
    layer.values["attention/gate"] ? vectors(arm, a, "attention/gate", `Gate of head ${h}`, w, {
      layer, head: h, formula: () => "multiplies the head's output" }) : null,
    layer.values["attention/output/by_head"] ? vectors(arm, a, "attention/output/by_head", `Head ${h} writes`, w, {
      layer, head: h, channels, formula: () => "the head's output × its rows of the output kernel",
      from: (i) => [{ name: "attention/heads", row: i }] }) : null,
    vectors(arm, a, "attention_change", "All heads write", w, {
      layer, channels, formula: () => "the sum over heads",
      from: (i, j) => [{ name: "attention/output/by_head", row: i, col: j }] }),
    vectors(arm, a, "attention_residual", "The residual stream", w, {
      layer, channels, formula: () => "what came in + what all heads write",
      from: (i, j) => [{ name: "input", row: i, col: j }, { name: "attention_change", row: i, col: j }] }),
  ];
  return [shown(pictures), numbers(arm, pictures), ...facts(`blocks/${layer.index}/attention_residual`,
    tensor(layer.values.attention_residual).values, layer.values.attention_residual.shape)];
}
