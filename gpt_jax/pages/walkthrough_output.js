// The softmax, the cache and the logit lens.
const TOP_K = [1, 2, 3, 5, 10, 20, 50, 100, Infinity];
const orders = new Map();  // arm and step → places in descending order of their logits, which no temperature changes

function orderOf(arm, a) {
  const key = `${a}/${state.step}`;
  if (!orders.has(key)) {
    const { values, shape: [, K] } = tensor(arm.predictions.steps), own = values.subarray(state.step * K, (state.step + 1) * K);
    const order = Uint32Array.from(own.keys());
    if (arm.predictions.step_ids === null) order.sort((x, y) => own[y] - own[x] || x - y);
    orders.set(key, { own, order });
  }
  return orders.get(key);
}

// The distribution after temperature, top-k and top-p, by place in `order`; `kept` places have any probability.
function distribution({ own, order }, temperature, k, p) {
  const most = own[order[0]], count = Math.min(order.length, temperature === 0 ? 1 : k);
  const weights = new Float64Array(count);
  let sum = 0;
  for (let i = 0; i < count; i++) sum += weights[i] = temperature === 0 ? 1 : Math.exp((own[order[i]] - most) / temperature);
  let kept = count;
  if (p < 1) {
    for (let i = 0, mass = 0; i < count; i++) if ((mass += weights[i] / sum) >= p) { kept = i + 1; break; }
    sum = weights.subarray(0, kept).reduce((total, x) => total + x, 0);
  }
  let entropy = 0;
  for (let i = 0; i < kept; i++) if ((weights[i] /= sum) > 0) entropy -= weights[i] * Math.log(weights[i]);
  return { weights: weights.subarray(0, kept), entropy };
}

function panelSoftmax(arm, a) {
  const found = orderOf(arm, a), ids = tensor(arm.predictions.step_ids), K = found.own.length;
  const idOf = (place) => ids ? ids.values[state.step * K + place] : place;
  const { weights, entropy } = distribution(found, state.temperature, TOP_K[state.topK], state.topP);
  const rows = state.depth === "picture" ? 8 : 16, next = arm.tokens[lengthOf(arm)]?.id;
  const bars = Array.from({ length: Math.min(rows, K) }, (_, i) => {
    const id = idOf(found.order[i]), p = i < weights.length ? weights[i] : 0;
    const fill = make("span", { class: "fill" });
    fill.style.width = `${100 * p}%`;
    const row = make("li", { class: p === 0 ? "out" : "" }, make("span", { class: "who" }, quoted(nameOf(arm, id))),
      make("span", { class: "track" }, fill), make("span", { class: "much" }, percent(p)));
    if (state.depth !== "picture") row.append(make("span", { class: "logit" }, written(found.own[found.order[i]])));
    if (id === next) row.append(make("small", { class: "taken" }, "appended next"));
    row.dataset.id = id;
    row.dataset.p = p;
    row.dataset.logit = found.own[found.order[i]];
    return row;
  });
  const about = `${weights.length.toLocaleString("en")} tokens can be drawn; entropy ${written(entropy)} nats.`;
  const shape = arm.predictions.steps.shape;
  return [make("p", { class: "after" }, "After ", quoted(arm.tokens[lengthOf(arm) - 1].text), ":"),
    make("ol", { class: "bars" }, ...bars), make("p", { class: "note" }, about),
    ...(state.depth === "picture" ? [] : [make("p", { class: "formula" }, "p = exp(logit / temperature) / Σ exp(logit / temperature)")]),
    ...facts("logits", found.own, [shape[1]])];
}

const KINDS = {
  slots: () => "one slot for each token", ring: (entry) => `a ring of ${entry.slots} slots, the oldest is overwritten`,
  state: () => "a state, which does not grow",
};

const sumOf = (entries, get) => entries.reduce((sum, entry) => sum + get(entry), 0);

// The bytes that one token takes in one layer, at most, of all arms: areas of pictures of caches are in proportion.
const widest = Math.max(1, ...arms.flatMap((arm) => arm.layers.map(({ index }) => sumOf(
  arm.cache.filter((entry) => entry.layer === index && entry.kind !== "state"), (entry) => entry.most / entry.slots))));
const SLOT = { width: 9, gap: 2, height: 26 };

// What one layer keeps: a box for each slot, the newest token's marked, and one for all states.
function held(arm, own) {
  const n = arm.first + lengthOf(arm), grown = own.filter((entry) => entry.kind !== "state");
  const size = sumOf(own.filter((entry) => entry.kind === "state"), (entry) => entry.bytes[state.step]);
  const boxes = [];
  if (grown.length) {
    const { kind, slots } = grown[0], there = kind === "ring" ? Math.min(n, slots) : n, drawn = Math.min(there, 64);
    const newest = Math.min(kind === "ring" ? (n - 1) % slots : there - 1, drawn - 1);
    const share = sumOf(grown, (entry) => entry.bytes[state.step]) / there / widest;
    for (let i = 0; i < drawn; i++) {
      const box = make("span", { class: `slot ${kind}${i === newest ? " newest" : ""}` });
      box.style.height = `${Math.max(4, SLOT.height * share)}px`;
      boxes.push(box);
    }
  }
  if (size) {
    const box = make("span", { class: "slot state" });
    box.style.width = `${Math.max(3, size / widest * (SLOT.width + SLOT.gap))}px`;
    boxes.push(box);
  }
  return make("div", { class: "held", "aria-hidden": "true" }, ...boxes);
}

function panelLoop(arm) {
  const entries = arm.cache, total = entries.reduce((sum, entry) => sum + entry.bytes[state.step], 0);
  const most = entries.reduce((sum, entry) => sum + entry.most, 0), layers = [...new Set(entries.map((entry) => entry.layer))];
  const shownLayers = layers.length > 8 ? arm.layers.map((layer) => layer.index) : Array.from({ length: Number(arm.facts.layers) }, (_, i) => i);
  const text = arm.tokens.slice(0, lengthOf(arm)).map((token, i) => make("bdi", {
    class: i >= arm.tokens.length - arm.new ? i === lengthOf(arm) - 1 && state.step > 0 ? "piece last" : "piece new" : "piece" }, token.text));
  const rows = shownLayers.map((index) => {
    const own = entries.filter((entry) => entry.layer === index);
    const size = own.reduce((sum, entry) => sum + entry.bytes[state.step], 0);
    const label = make("p", { class: "kept" }, make("strong", {}, `Layer ${index} `),
      own.length ? `${own.map((entry) => entry.name.replaceAll("_", " ")).join(", ")}: ${bytes(size)}`
        : "keeps nothing: it reads what an earlier layer keeps");
    const detail = state.depth === "picture" || !own.length ? null : make("p", { class: "note" }, own.map((entry) =>
      `${entry.name} [${entry.shape.join(", ")}] ${bytes(entry.bytes[state.step])}, ${KINDS[entry.kind](entry)}`).join("; "));
    return make("li", {}, label, own.length ? held(arm, own) : null, detail);
  });
  const sum = make("p", { class: "sum" }, `Cache: ${bytes(total)} for ${arm.first + lengthOf(arm)} tokens; `
    + `${bytes(most)} for a full context of ${arm.context_length.toLocaleString("en")}.`);
  sum.dataset.bytes = total;
  return [make("p", { class: "text-so-far" }, ...text), sum, make("ol", { class: "cache" }, ...rows)];
}

function panelLens(arm) {
  const ids = tensor(arm.lens.ids), logs = tensor(arm.lens.log_probabilities), [N, T, top] = ids.shape;
  const n = lengthOf(arm), start = state.depth === "picture" ? Math.max(0, n - 8) : 0, many = state.depth === "tensors" ? top : 1;
  const columns = Array.from({ length: n - start }, (_, i) => start + i);
  const rows = Array.from({ length: N }, (_, l) => {
    const cells = columns.map((t) => {
      const cell = make("td"), at = (l * T + t) * top;
      for (let r = 0; r < many; r++) {
        const p = Math.exp(logs.values[at + r]);
        if (r === 0) cell.style.setProperty("--share", `${Math.round(45 * p)}%`);
        cell.append(make("span", { class: "guess" }, quoted(nameOf(arm, ids.values[at + r]))),
          state.depth === "picture" ? "" : make("small", {}, percent(p)));
      }
      return cell;
    });
    return make("tr", {}, make("th", { scope: "row" }, l === 0 ? "embedding" : `layer ${l - 1}`), ...cells);
  });
  const head = make("tr", {}, make("th", { scope: "col" }, "after"), ...columns.map((t) =>
    make("th", { scope: "col" }, quoted(arm.tokens[t].text))));
  const inside = make("table", { class: "lens" }, make("thead", {}, head), make("tbody", {}, ...rows));
  return [make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Logit lens" }, inside)];
}
