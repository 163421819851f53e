/* ---------- The figures of a dictionary ---------- */

const METRICS = [
  ["l0", "L0", fixed(1), "Mean over tokens of the number of features above zero."],
  [
    "explained_variance",
    "Expl. variance",
    fixed(3),
    "1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², where x is an activation, x̂ its reconstruction and x̄ the mean.",
  ],
  [
    "ce_loss_score",
    "CE score",
    fixed(3),
    "(CE ablated − CE with SAE) / (CE ablated − CE without SAE), the layer replaced by zeros when ablated. 1 means that the model predicts as well as before.",
  ],
  [
    "ce_loss_score_mean_ablation",
    "CE score (mean abl.)",
    fixed(3),
    "The CE score with the layer replaced by its mean instead of zeros: the stricter of the two.",
  ],
  [
    "kl_div_score",
    "KL score",
    fixed(3),
    "1 − KL(original ‖ with SAE) / KL(original ‖ ablated), over next-token distributions.",
  ],
  ["dead_fraction", "Dead", percent, "Share of features that never fired on the tokens measured."],
  ["mse", "Squared error", short, "Mean over tokens of ‖x − x̂‖², in the model’s own units."],
  ["cossim", "Cosine", fixed(3), "Mean over tokens of the cosine between x and x̂."],
  ["l2_ratio", "L2 ratio", fixed(3), "Mean over tokens of ‖x̂‖ / ‖x‖. Below 1: the reconstruction shrinks."],
  [
    "ce_loss_without_sae",
    "CE without",
    fixed(3),
    "Next-token cross-entropy of the untouched model, in nats.",
  ],
  ["ce_loss_with_sae", "CE with", fixed(3), "The same with the layer replaced by its reconstruction."],
  ["ce_loss_with_ablation", "CE ablated", fixed(3), "The same with the layer replaced by zeros."],
  ["series", "Trained as", when(String), "Architecture, and what else parts the dictionaries into series."],
  ["k", "k", count, "Features kept on a token (TopK), or on average over a batch (BatchTopK)."],
  ["target_l0", "Target L0", short, "L0 that the training was to reach by moving its own penalty."],
  [
    "l1_coefficient",
    "L1 weight",
    short,
    "λ in the training loss: squared error + λ · Σ fⱼ‖W_dec,j‖. Larger asks for fewer active features.",
  ],
  [
    "l0_coefficient",
    "L0 weight",
    short,
    "λ in the training loss: squared error + λ · penalty on the number of active features.",
  ],
  ["d_sae", "Features", count, "Number of features (latents) in the dictionary, dead ones included."],
  ["lr", "Learning rate", short, "At its peak."],
  ["seed", "Seed", when(String), "Of the weights to begin with."],
  ["n_rows", "Tokens measured", count, "Held-out tokens behind these figures."],
  ["training_tokens", "Tokens trained on", count, "Activations seen in training, repeats included."],
  ["training_seconds", "Training time", duration, "Wall-clock time of the training."],
];
/* One that no dictionary has says nothing. */
const metricsHere = () => METRICS.filter(([key]) => dictionaries.some((entry) => known(entry[key])));

/* ---------- The front ---------- */

const PANELS = [
  ["explained_variance", "Explained variance", "share of the activations’ variance kept", { pad: 0.16 }],
  ["ce_loss_score", "CE loss score", "share of the layer’s effect on next-token loss kept", { pad: 0.16 }],
  ["dead_fraction", "Dead features", "share of the features that never fired", { from: 0, format: percent }],
];

/* A series' line: L0 and figure, mean over what differs in its seed alone. */
function meanLine(points) {
  const groups = Map.groupBy(points, (point) => point.name);
  const mean = (group, axis) => group.reduce((sum, point) => sum + point[axis], 0) / group.length;
  return [...groups.values()]
    .map((group) => ({ x: mean(group, "x"), y: mean(group, "y") }))
    .sort((a, b) => a.x - b.x);
}

function frontPoint(entry, metric, onlit) {
  const strong = entry === marked && dictionaries.length > 1;
  return {
    x: entry.l0,
    y: entry[metric],
    hue: hues.get(entry.id),
    strong,
    name: entry.label === entry.id ? "" : entry.label,
    label: entry.label,
    tip: () => [
      entry.id,
      `L0 ${fixed(1)(entry.l0)}`,
      ...PANELS.filter(([key]) => known(entry[key])).map(
        ([key, title]) => `${title.toLowerCase()} ${key === "dead_fraction" ? percent(entry[key]) : fixed(3)(entry[key])}`,
      ),
    ],
    onlit,
  };
}

function drawFront() {
  if (!reveal("front", dictionaries)) return;
  const rows = new Map();
  if (dictionaries.length > 1) drawPanels(rows);
  $("front-intro").hidden = dictionaries.length < 2;
  const compared = chosen && dictionaries.length > 1;
  if (families.length > 1)
    $("families").append(...families.map((family) => h("li", { "--hue": familyHue(family) }, family)));
  if (compared) {
    const role = marked === chosen ? "recommended" : "this dictionary";
    $("families").append(h("li", { class: "ring" }, `${role}: ${marked.id}`));
    $("rule").append(h("b", {}, `Recommended: ${chosen.id}. `), ruleOf(report.chosen));
  }
  $("families").hidden = $("rule").hidden = !compared;
  drawTable(rows);
  $("formulas").append(
    ...metricsHere().flatMap(([, name, , formula]) => [h("dt", {}, name), h("dd", {}, formula)]),
  );
}

function drawPanels(rows) {
  // What only ids tell apart would be a heap of names.
  const named = dictionaries.filter((entry) => entry.label === entry.id).length <= 6;
  for (const [metric, title, why, y] of PANELS) {
    const measured = dictionaries.filter((entry) => known(entry[metric]) && entry.l0 > 0);
    if (!measured.length) continue;
    const host = h("div");
    $("front-panels").append(h("figure", {}, h("figcaption", {}, title, h("small", {}, why)), host));
    const series = families.map((family) => {
      const points = measured
        .filter((entry) => entry.series === family)
        .map((entry) => frontPoint(entry, metric, (lit) => rows.get(entry.id)?.classList.toggle("lit", lit)));
      for (const point of points) if (!named && !point.strong) point.label = "";
      const look = { hue: familyHue(family), dots: true, faint: true, tinted: families.length > 1 };
      return { ...look, points, line: meanLine(points.filter(({ name }) => name !== "")) };
    });
    const x = { log: true, label: "L0: active features per token (log)", pad: 0.12, mark: report.max_l0 };
    plot(host, { title: `${title} over L0`, height: 340, x, y, series });
  }
}

const ruleOf = ({ rule = "" }) => rule.charAt(0).toUpperCase() + rule.slice(1);

const badges = (entry) =>
  [
    [report.current, "this dictionary"],
    [chosen?.id, "recommended"],
  ]
    .filter(([id]) => id === entry.id)
    .map(([, text]) => h("span", { class: "badge" }, text));

function drawTable(rows) {
  for (const entry of dictionaries) {
    rows.set(
      entry.id,
      h(
        "tr",
        { class: entry === marked ? "chosen" : null, "--hue": hues.get(entry.id) },
        h(
          "th",
          { scope: "row" },
          entry.id,
          dictionaries.length > 1 ? badges(entry) : null,
        ),
        metricsHere().map(([key, , write]) => h("td", {}, write(entry[key]))),
      ),
    );
  }
  $("dictionaries").append(
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "Dictionary"),
        metricsHere().map(([, name, , formula]) => h("th", { scope: "col", title: formula }, name)),
      ),
    ),
    h("tbody", {}, ...rows.values()),
  );
}
