/* ---------- The figures of a dictionary ---------- */

/* Figures and settings come with the data, as `sae/metrics.py` and `sae/figures.py` describe them. */
const writer = (form) => {
  if (form.endsWith("%")) return percent;
  if (form.endsWith("f")) return fixed(Number(form.slice(1, -1)));
  return { ",": count, d: when(String) }[form] ?? short;
};

/* What is neither a figure nor a setting. */
const ABOUT = [
  ["n_rows", "Tokens measured", count, "Held-out tokens behind these figures."],
  ["training_seconds", "Training time", duration, "Wall-clock time of the training."],
];
const SERIES = [
  "series",
  "Trained as",
  when(String),
  "Architecture, and what else parts the dictionaries into series.",
];

/* Key, heading, writing and explanation; one that no dictionary has says nothing. */
function columnsHere() {
  const figures = (report.metrics ?? []).map((one) => [
    one.key,
    one.short || one.title,
    writer(one.form),
    `${one.title}, ${one.meaning}: ${one.formula}. ${sentence(one.scale)}`,
  ]);
  const settings = (report.settings ?? []).map((one) => [one.key, one.title, writer(one.form), one.meaning]);
  const all = [...figures, SERIES, ...settings, ...ABOUT];
  return all.filter(([key]) => dictionaries.some((e) => known(e[key]) || e.not_measurable?.[key]));
}

const shownIn = (place) => (report.metrics ?? []).filter(({ where }) => where.includes(place));
const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

/* ---------- Sparsity against fidelity ---------- */

/* A series' line: L0 and figure, mean over what differs in its seed alone. */
function meanLine(points) {
  const groups = Map.groupBy(points, (point) => point.name);
  const mean = (group, axis) => group.reduce((sum, point) => sum + point[axis], 0) / group.length;
  return [...groups.values()]
    .map((group) => ({ x: mean(group, "x"), y: mean(group, "y") }))
    .sort((a, b) => a.x - b.x);
}

function paretoPoint(entry, metric, onlit) {
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
      ...shownIn("picture")
        .filter(({ key }) => known(entry[key]))
        .map(({ key, title, form }) => `${title} ${writer(form)(entry[key])}`),
    ],
    onlit,
  };
}

function drawPareto() {
  if (!reveal("pareto", dictionaries)) return;
  const rows = new Map();
  if (dictionaries.length > 1) drawPanels(rows);
  $("pareto-intro").hidden = dictionaries.length < 2;
  const compared = chosen && dictionaries.length > 1;
  if (families.length > 1)
    $("families").append(...families.map((family) => h("li", { "--hue": familyHue(family) }, family)));
  if (compared) {
    const role = marked === chosen ? "recommended" : "this dictionary";
    $("families").append(h("li", { class: "ring" }, `${role}: ${marked.id}`));
    $("criterion").append(h("b", {}, `Recommended: ${chosen.id}. `), criterionOf(report.chosen));
  }
  $("families").hidden = $("criterion").hidden = !compared;
  // On disk the report stands two folders above an atlas; a server has it elsewhere.
  if ($("to-report")) $("to-report").hidden = !compared || location.protocol !== "file:";
  drawTable(rows);
  $("formulas").append(
    ...columnsHere().flatMap(([, name, , formula]) => [h("dt", {}, name), h("dd", {}, formula)]),
  );
}

function drawPanels(rows) {
  // What only ids tell apart would be a heap of names.
  const named = dictionaries.filter((entry) => entry.label === entry.id).length <= 6;
  for (const { key, title, meaning, form, higher_is_better } of shownIn("picture")) {
    const measured = dictionaries.filter((entry) => known(entry[key]) && entry.l0 > 0);
    if (!measured.length) continue;
    const host = h("div");
    $("pareto-panels").append(h("figure", {}, h("figcaption", {}, title, h("small", {}, meaning)), host));
    const series = families.map((family) => {
      const points = measured
        .filter((entry) => entry.series === family)
        .map((entry) => paretoPoint(entry, key, (lit) => rows.get(entry.id)?.classList.toggle("lit", lit)));
      for (const point of points) if (!named && !point.strong) point.label = "";
      const look = { hue: familyHue(family), dots: true, faint: true, tinted: families.length > 1 };
      return { ...look, points, line: meanLine(points.filter(({ name }) => name !== "")) };
    });
    const x = { log: true, label: "L0: active features per token (log)", pad: 0.12, mark: report.max_l0 };
    // The best of what should be low is zero, and how far from that they are is what counts.
    const y = {
      ...(higher_is_better === false ? { from: 0 } : { pad: 0.16 }),
      ...(form.endsWith("%") ? { format: percent } : {}),
    };
    plot(host, { title: `${title} over L0`, height: 340, x, y, series });
  }
}

const criterionOf = ({ criterion = "" }) => criterion.charAt(0).toUpperCase() + criterion.slice(1);

const badges = (entry) =>
  [
    [report.current, "this dictionary"],
    [chosen?.id, "recommended"],
  ]
    .filter(([id]) => id === entry.id)
    .map(([, text]) => h("span", { class: "badge" }, text));

/* A figure, or that there is none and why. */
function figureCell(entry, key, write) {
  const why = entry.not_measurable?.[key];
  return why ? h("td", { title: sentence(why) }, "not measurable") : h("td", {}, write(entry[key]));
}

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
          atlasOf(entry) ? h("a", { href: atlasOf(entry), title: "Its atlas" }, entry.id) : entry.id,
          dictionaries.length > 1 ? badges(entry) : null,
        ),
        columnsHere().map(([key, , write]) => figureCell(entry, key, write)),
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
        columnsHere().map(([, name, , formula]) => h("th", { scope: "col", title: formula }, name)),
      ),
    ),
    h("tbody", {}, ...rows.values()),
  );
}
