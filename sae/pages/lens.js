const data = JSON.parse($("data").textContent);
const HUES = { "Logit lens": "var(--c1)", "Tuned lens": "var(--c0)", "Mean stream": "var(--c5)" };

/* ---------- The grid ---------- */

function cellTip(layer, place, [top, kl, rank, logProbability, own]) {
  const said = top.map(([token, p]) => `${(100 * p).toFixed(1).padStart(5, "\u2007")}%  ${quote(token)}`);
  const model =
    rank === 1
      ? "what the model itself predicts is first here"
      : `the model's own ${quote(own)}: rank ${count(rank)}, ${percent(Math.exp(logProbability))}`;
  return [`${layer.name}, after ${quote(data.tokens[place])}`, ...said, `KL ${short(kl)} nats`, model];
}
const quote = (token) => `“\u2068${visible(token)}\u2069”`;

function cell(layer, place) {
  const found = layer.cells[place];
  const [[token, p]] = found[0];
  return h(
    "td",
    {
      class: found[2] === 1 ? "same" : null,
      "--p": p.toFixed(3),
      tabindex: place === 0 && layer === shown.layers.at(-1) ? 0 : -1,
      "aria-label": cellTip(layer, place, found).join(", "),
      "data-place": `${shown.layers.indexOf(layer)} ${place}`,
    },
    tokenLabel(token),
  );
}

let shown = data.kinds[0];

function drawGrid() {
  const names = (title) => h("tr", {}, h("th", { scope: "row" }, title), data.tokens.map((token) => h("th", { scope: "col" }, tokenLabel(token))));
  const line = (layer) =>
    h("tr", {}, h("th", { scope: "row" }, layer.name), layer.cells.map((_, place) => cell(layer, place)));
  $("grid").replaceChildren(
    h("thead", {}, names("after")),
    h("tbody", {}, shown.layers.toReversed().map(line)),
    h("tfoot", {}, names("after")),
  );
  $("grid").setAttribute("aria-label", `${shown.title}: likeliest next token by layer and position`);
  $("explained").textContent =
    shown.title === "Logit lens"
      ? "Each row is the residual stream after a block, handed straight to the model's own final norm and head. The top row is the model itself."
      : "Each row is the stream after a block, mapped by a fitted affine map to where it would be after the last block, then handed to the model's own final norm and head. The maps were fitted to text: special tokens and attention sinks, such as the first token, are none. The top row is the model itself.";
}

function gridTip({ target }) {
  const at = target.closest?.("[data-place]");
  if (!at) return;
  const [layer, place] = at.dataset.place.split(" ").map(Number);
  const box = at.getBoundingClientRect();
  const found = shown.layers[layer];
  showTip(box.left, box.top, ...cellTip(found, place, found.cells[place]));
}

/* One tab stop for the grid; the arrow keys go on from cell to cell. */
function gridKeys(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
  const at = event.target.closest?.("[data-place]");
  if (!step || !at) return;
  event.preventDefault();
  const [layer, place] = at.dataset.place.split(" ").map((n, i) => Number(n) + step[i]);
  const next = $("grid").querySelector(`[data-place="${layer} ${place}"]`);
  if (!next) return;
  at.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/* ---------- The charts ---------- */

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function drawLines(host, legend, series, title, y) {
  $(legend).append(...series.map((entry) => h("li", { "--hue": entry.hue, class: entry.dashed ? "dashed" : null }, entry.name)));
  plot($(host), {
    title,
    height: 280,
    x: { label: "layer", whole: true },
    y,
    series,
  });
}

function lineOf(title, points) {
  return { name: title, hue: HUES[title], dots: points.length < 12, points };
}

function drawHere() {
  const series = data.kinds.map(({ title, layers }) =>
    lineOf(
      title,
      layers.map(({ name, layer, cells }) => {
        const y = mean(cells.map(([, kl]) => kl));
        return { x: layer, y, tip: () => [`${title}, ${name}`, `KL ${short(y)} nats`] };
      }),
    ),
  );
  drawLines("here", "here-legend", series, "KL by layer on this text", { from: 0, root: true });
}

function interval({ mean: middle, low, high }) {
  return { y: middle, ys: known(low) ? [low, high] : [] };
}

function drawJudged() {
  if (!reveal("judged", data.judged)) return;
  const { layers, floor, n_held_out_rows: n } = data.judged;
  $("judged-rows").textContent = `mean over ${count(n)} tokens the maps were not fitted to, with 95% intervals`;
  const told = (title, layer, { kl, agreement }) => {
    const ends = known(kl.low) ? ` [${short(kl.low)}, ${short(kl.high)}]` : "";
    const tip = [`${title}, ${layer < 0 ? "embedding" : `block ${layer}`}`, `KL ${short(kl.mean)}${ends} nats`, `the model's own first token in ${percent(agreement)}`];
    return { x: layer, ...interval(kl), tip: () => tip };
  };
  const series = ["logit", "tuned"].map((kind) => {
    const title = kind === "logit" ? "Logit lens" : "Tuned lens";
    return lineOf(title, layers.map((one) => told(title, one.layer, one[kind])));
  });
  const constant = layers.map((one) => ({ ...told("Mean stream", one.layer, floor), ys: [] }));
  series.push({ ...lineOf("Mean stream", constant), dashed: true, dots: false });
  drawLines("held-out", "judged-legend", series, "KL by layer on held-out text", { from: 0 });
}

$("model").textContent = data.model;
$("headline").textContent = data.headline;
$("text").textContent = data.text;
const buttons = data.kinds.map((kind) =>
  h("button", { type: "button", "aria-pressed": kind === shown, onclick: () => choose(kind) }, kind.title),
);
function choose(kind) {
  shown = kind;
  buttons.forEach((button, i) => button.setAttribute("aria-pressed", data.kinds[i] === kind));
  drawGrid();
}
$("kinds").append(...buttons);
drawGrid();
for (const name of ["pointerover", "click", "focusin"]) $("grid").addEventListener(name, gridTip);
for (const name of ["pointerout", "focusout"]) $("grid").addEventListener(name, hideTip);
$("scroll").addEventListener("scroll", hideTip, { passive: true });
$("grid").addEventListener("keydown", gridKeys);
drawHere();
drawJudged();
