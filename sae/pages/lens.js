const data = JSON.parse($("data").textContent);
const HUES = { "Logit lens": "var(--c1)", "Tuned lens": "var(--c0)", "Mean stream": "var(--c5)" };

/* ---------- The grid ---------- */

const drawGrid = lensGrid($("grid"), $("scroll"));
let shown = data.kinds[0];

function drawShown() {
  drawGrid(data.tokens, shown);
  $("explained").textContent =
    shown.title === "Logit lens"
      ? "Each row is the residual stream after a block, handed straight to the model's own final norm and head. The top row is the model itself."
      : "Each row is the stream after a block, mapped by a fitted affine map to where it would be after the last block, then handed to the model's own final norm and head. The maps were fitted to text: special tokens and attention sinks, such as the first token, are none. The top row is the model itself.";
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
  drawShown();
}
$("kinds").append(...buttons);
drawShown();
drawHere();
drawJudged();
