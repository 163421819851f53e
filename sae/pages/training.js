/* ---------- Training ---------- */

const CURVES = [
  ["losses/mse_loss", "Squared error", "log scale", { log: true }],
  ["losses/l1_loss", "L1 loss", "log scale", { log: true }],
  ["metrics/l0", "L0", "active features per token, log scale", { log: true }],
  ["metrics/explained_variance", "Explained variance", "from 0 up", { floor: 0 }],
  [
    "reconstruction_quality/explained_variance",
    "Explained variance, held out",
    "on text that is not trained on, from 0 up",
    { floor: 0 },
  ],
  ["sparsity/l0", "L0, held out", "on text that is not trained on, log scale", { log: true }],
  ["sparsity/dead_features", "Dead features", "silent for the last stretch of training", { from: 0 }],
  ["sparsity/below_1e-5", "Rare features", "active on less than 1 token in 100,000", { from: 0 }],
  ["metrics/mean_log10_feature_sparsity", "Mean density", "mean over features of log10 of the share", {}],
];

function drawTraining(curves) {
  if (!reveal("training", curves)) return;
  $("legend").append(...curves.map(([id]) => h("li", { "--hue": hueOf(id) }, id)));
  for (const [key, title, why, y] of CURVES) {
    const series = curves.map(([id, points]) => ({
      hue: hueOf(id),
      points: points
        .filter((point) => known(point[key]))
        .map((point) => ({
          x: point.step,
          y: point[key],
          tip: () => [id, `step ${count(point.step)}`, `${title.toLowerCase()} ${short(point[key])}`],
        })),
    }));
    // A figure that was taken once is in the table, and no curve.
    if (!series.some(({ points }) => points.length > 1)) continue;
    const host = h("div");
    $("multiples").append(h("figure", {}, h("figcaption", {}, title, h("small", {}, why)), host));
    plot(host, { title, height: 210, x: { pad: 0.01, format: count }, y, series });
  }
}

const hueOf = (id) => hues.get(id) || "var(--muted)";

/* In the order of the table. */
function trainingCurves() {
  const order = [...hues.keys()];
  return Object.entries(read("curves"))
    .filter(([, points]) => points.length)
    .sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
}

/* ---------- How often features fire ---------- */

const DENSITIES = "plots/feature_density_line_chart";
const share = (log) => percent(10 ** log);

function drawDensities(curves) {
  const measured = dictionaries.filter((entry) => entry.density_histogram?.counts.some((value) => value > 0));
  const lines = curves.find(([id]) => id === chosen?.id)?.[1] ?? [];
  const over = lines.filter((line) => line[DENSITIES]?.counts.some((value) => value > 0));
  if (!reveal("density", [...measured, ...over])) return;
  $("densities").parentElement.hidden = !measured.length;
  $("strip").parentElement.hidden = over.length < 2;
  if (measured.length) drawDensityLines(measured);
  if (over.length > 1) responsive($("strip"), (width) => densityStrip(width, over));
  $("density-legend").hidden = measured.length < 2;
  $("density-legend").append(
    ...measured.map((entry) => h("li", { "--hue": hueOf(entry.id) }, entry.id)),
  );
}

function drawDensityLines(measured) {
  const series = measured.map((entry) => {
    const { log10_edges: edges, counts } = entry.density_histogram;
    return {
      hue: hueOf(entry.id),
      points: counts.map((value, i) => ({
        x: (edges[i] + edges[i + 1]) / 2,
        y: value / entry.d_sae,
        tip: () => [entry.id, `${count(value)} features`, `fire on ${share(edges[i])} to ${share(edges[i + 1])} of tokens`],
      })),
    };
  });
  const x = { label: "share of tokens (log)", format: share, pad: 0.01, whole: true };
  const y = { from: 0, format: percent };
  plot($("densities"), { title: "Features by firing frequency", height: 300, x, y, series });
}

/* Each column a moment of the training, each row a frequency, the shade how many features. */
function densityStrip(width, lines) {
  const frame = { left: 58, right: width - 10, top: 12, bottom: 254 };
  const { log10_edges: edges } = lines[0][DENSITIES];
  const steps = lines.map((line) => line.step);
  const from = (i) => (i ? (steps[i - 1] + steps[i]) / 2 : steps[0] - (steps[1] - steps[0]) / 2);
  const to = (i) => (i + 1 < steps.length ? from(i + 1) : 2 * steps[i] - from(i));
  const last = steps.length - 1;
  const x = makeScale({ domain: [from(0), to(last)] }, [], frame.left, frame.right, width < 480 ? 3 : 6);
  const y = makeScale({ domain: [edges[0], edges[edges.length - 1]] }, [], frame.bottom, frame.top, 6);
  const most = Math.max(...lines.flatMap((line) => line[DENSITIES].counts));
  const cells = lines.flatMap((line, i) =>
    line[DENSITIES].counts.flatMap((value, j) =>
      value > 0
        ? [
            svg("rect", {
              class: "cell",
              x: x.at(from(i)),
              width: x.at(to(i)) - x.at(from(i)),
              y: y.at(edges[j + 1]),
              height: y.at(edges[j]) - y.at(edges[j + 1]),
              "fill-opacity": (0.06 + 0.94 * Math.sqrt(value / most)).toFixed(3),
              onpointermove: (event) =>
                showTip(event.clientX, event.clientY, `step ${count(line.step)}`, `${count(value)} features`, `fire on ${share(edges[j])} to ${share(edges[j + 1])} of tokens`),
              onpointerleave: hideTip,
            }),
          ]
        : [],
    ),
  );
  const axes = drawAxes(
    x,
    { ...y, ticks: y.ticks.filter(Number.isInteger) },
    { x: { format: count, label: "step" }, y: { format: share } },
    frame,
  );
  return svg(
    "svg",
    { width, height: 300, role: "img", "aria-label": "Firing frequency over training" },
    axes.filter(Boolean),
    cells,
  );
}
