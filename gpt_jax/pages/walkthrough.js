// The page: what is chosen, the controls, and which panels a choice redraws.
const PANELS = {
  tokens: panelTokens, embedding: panelEmbedding, norm: panelNorm, projections: panelProjections,
  attention: panelAttention, mixed: panelMixed, mlp: panelMlp, softmax: panelSoftmax, loop: panelLoop, lens: panelLens,
};
const EVERY = Object.keys(PANELS), LAYER = ["norm", "projections", "attention", "mixed", "mlp"];
const STEPS = Math.min(...arms.map((arm) => arm.new));
const at = (id) => document.getElementById(id);

function redraw(names) {
  const x = scrollX, y = scrollY;
  for (const name of names) {
    const panel = document.querySelector(`[data-panel="${name}"]`);
    const focused = panel.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") ?? document.activeElement.textContent : null;
    const width = Math.max(200, (panel.clientWidth - (many && panel.clientWidth >= 900 ? 32 : 0)) / (many && panel.clientWidth >= 900 ? 2 : 1) - 2);
    panel.classList.toggle("side-by-side", many);
    panel.replaceChildren(...arms.map((arm, a) => make("div", { class: "lane" },
      many ? make("p", { class: "arm-label" }, arm.name) : null, ...PANELS[name](arm, a, width).filter((part) => part !== null))));
    if (focused !== null) {
      const same = [...panel.querySelectorAll("button, [tabindex]")].find((part) => (part.getAttribute("aria-label") ?? part.textContent) === focused);
      same?.focus({ preventScroll: true });
    }
  }
  if (scrollX !== x || scrollY !== y) scrollTo(x, y);
}

// Changes what is chosen, and redraws what shows it.
function choose(change) {
  const before = { ...state };
  Object.assign(state, change);
  const changed = (...names) => names.some((name) => state[name] !== before[name]);
  if (change.query !== undefined && change.pair === undefined && changed("query")) state.pair = null;
  let names = [];
  if (changed("depth", "step")) names = EVERY;
  else if (changed("layer")) names = LAYER;
  else {
    if (changed("query")) names.push("tokens", ...(state.depth === "picture" ? ["embedding"] : ["embedding", "norm", "projections", "mixed", "mlp"]));
    if (changed("head")) names.push("projections", "mixed");
    if (changed("query", "pair", "head", "stage")) names.push("attention");
    if (changed("temperature", "topK", "topP")) names.push("softmax");
  }
  redraw([...new Set(names)]);
  controls();
}

function controls() {
  document.body.dataset.depth = state.depth;
  at("step").textContent = STEPS ? `${state.step} of ${STEPS} new tokens` : "no new tokens";
  for (const [id, isOff] of [["first", state.step === 0], ["back", state.step === 0], ["forward", state.step === STEPS], ["play", STEPS === 0]]) {
    at(id).disabled = isOff;
  }
  at("play").textContent = timer === null ? "▶" : "❚❚";
  at("play").setAttribute("aria-label", timer === null ? "Play" : "Pause");
  at("layer").value = state.layer;
  for (const grid of grids.values()) grid.place();
  at("temperature-is").textContent = state.temperature === 0 ? "0: always the likeliest" : state.temperature.toFixed(2);
  at("top-k-is").textContent = TOP_K[state.topK] === Infinity ? "all" : TOP_K[state.topK];
  at("top-p-is").textContent = state.topP === 1 ? "all" : state.topP.toFixed(2);
  const longest = arms.reduce((best, arm) => lengthOf(arm) > lengthOf(best) ? arm : best), most = lengthOf(longest);
  fill("query", Array.from({ length: most }, (_, i) => named(longest, i)), queryOf(longest));
  const layer = arms.map(layerOf).reduce((best, each) => each.keys_of.length > best.keys_of.length ? each : best);
  fill("head", Array.from({ length: layer.keys_of.length }, (_, h) => String(h)), headOf(layer));
}

function fill(id, texts, chosen) {
  if (at(id).options.length !== texts.length || at(id).options[texts.length - 1]?.text !== texts.at(-1)) {
    at(id).replaceChildren(...texts.map((text, i) => make("option", { value: i }, text)));
  }
  at(id).value = chosen;
}

let timer = null;
function stop() { clearInterval(timer); timer = null; }
function play() {
  if (timer !== null) { stop(); controls(); return; }
  if (state.step === STEPS) choose({ step: 0 });
  timer = setInterval(() => {
    if (state.step + 1 >= STEPS) stop();
    choose({ step: Math.min(state.step + 1, STEPS), query: null, pair: null });
  }, 900);
  controls();
}
function step(change) { stop(); choose({ step: Math.max(0, Math.min(STEPS, change)), query: null, pair: null }); }

at("first").addEventListener("click", () => step(0));
at("back").addEventListener("click", () => step(state.step - 1));
at("forward").addEventListener("click", () => step(state.step + 1));
at("play").addEventListener("click", play);
for (const name of ["depth", "stage"]) {
  at(name).addEventListener("change", (event) => choose({ [name]: event.target.value }));
}
for (const name of ["layer", "head", "query"]) {
  at(name).addEventListener("change", (event) => choose({ [name]: Number(event.target.value) }));
}
for (const [id, name] of [["temperature", "temperature"], ["top-k", "topK"], ["top-p", "topP"]]) {
  at(id).addEventListener("input", (event) => choose({ [name]: Number(event.target.value) }));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { palette = null; redraw(EVERY); });
let breadth = innerWidth;
addEventListener("resize", () => { if (innerWidth !== breadth) { breadth = innerWidth; redraw(EVERY); } });

const deepest = arms.reduce((best, arm) => arm.layers.length > best.layers.length ? arm : best);
fill("layer", deepest.layers.map((layer) => String(layer.index)), 0);
redraw(EVERY);
controls();
