/* ---------- What steering was compared with, and what was measured ---------- */

/* Hue and meaning of each arm; its title comes with the data. */
const ARMS = {
  feature: ["var(--accent)", "The feature’s direction is added to the layer at every token."],
  unsteered: ["var(--muted)", "The model left alone."],
  prompt: ["var(--ink)", "The topic is asked for in words, and nothing inside the model is changed."],
  difference_of_means: [
    "var(--c0)",
    "A direction that needs no dictionary: the mean of the layer where the feature fires, minus its mean elsewhere.",
  ],
  wrong_sign: ["var(--c3)", "The feature’s direction is taken away instead of added, at the same strength."],
  random_direction: [
    "var(--c1)",
    "A direction drawn at random, as long as the feature’s: what it achieves is owed to pushing at all.",
  ],
  random_feature: [
    "var(--c4)",
    "Another feature of the same dictionary, drawn at random: what it achieves any feature would.",
  ],
  reconstruction: [
    "var(--c5)",
    "The layer is replaced by what the dictionary makes of it, with no feature changed: the price of the dictionary alone.",
  ],
};
const armHue = (direction) => ARMS[direction]?.[0] ?? "var(--muted)";

/* Key, heading, writing and meaning of each figure, the text’s own last: perplexity alone would praise a loop. */
const MEASURES = [
  [
    "shift",
    "Shift",
    signed,
    "Change, against the unsteered model, of the log-probability that the next token is one of the feature’s ten promoted tokens, after the reporting prompts; nats.",
  ],
  [
    "gain",
    "Gain",
    signed,
    "How far cross-entropy falls on held-out contexts of the feature, minus how far it falls on equally long other text; nats a token.",
  ],
  [
    "round_trip",
    "Round trip",
    percent,
    "Highest activation of the feature on the text that was written, read by the unsteered model, as a share of its largest activation.",
  ],
  [
    "kl",
    "Cost (KL)",
    short,
    "How far next-token probabilities on neutral text move away from the unsteered model’s: Kullback–Leibler divergence; nats a token. Lower is better.",
  ],
  ["delta_ce", "ΔCE", signed, "Rise of cross-entropy on that neutral text; nats a token. Lower is better."],
  [
    "perplexity",
    "Perplexity",
    short,
    "Of the text that was written, under the unsteered model. Lower is better, unless the text repeats itself: read it together with the next two.",
  ],
  [
    "distinct_2",
    "Distinct\u20112",
    short,
    "Share of pairs of neighbouring tokens in the text that are different; 1 where none comes twice.",
  ],
  [
    "longest_repeat",
    "Longest repeat",
    short,
    "How many tokens the longest stretch has that the text says twice.",
  ],
];
const measureOf = (key) => MEASURES.find(([name]) => name === key);
const EFFECTS = ["round_trip", "shift", "gain"];

/* ---------- Means and their intervals ---------- */

const middle = (value) => (typeof value === "number" ? value : (value?.mean ?? null));
const endsOf = (value) => (known(value?.low) && known(value?.high) ? [value.low, value.high] : null);
/* Two digits, and no more than the width of the interval makes sense of. */
function rangeOf(value, write) {
  const ends = endsOf(value);
  if (!ends) return "";
  const width = ends[1] - ends[0];
  const decimals = width > 0 ? Math.max(0, 1 - Math.floor(Math.log10(width))) : 100;
  const rough = (end) => Number(Number(end.toPrecision(2)).toFixed(Math.min(100, decimals)));
  return `[${ends.map((end) => write(rough(end))).join(", ")}]`;
}
const estimate = (value, write) => [write(middle(value)), rangeOf(value, write)].filter(Boolean).join(" ");

const signedPercent = (share) => `${share > 0 ? "+" : share < 0 ? "−" : ""}${percent(Math.abs(share))}`;

/* A mean with its interval in small; a figure that is not there says why, if that is known. */
function estimateCell(value, write, why) {
  if (!known(middle(value))) return h("td", { title: why }, "–");
  const range = rangeOf(value, write);
  return h("td", {}, write(middle(value)), range ? h("small", { class: "range" }, range) : null);
}

/* Buttons, one of which is pressed, and below them what it stands for. */
function switcher(label, names, draw, first = 0) {
  const shown = h("div");
  const choose = (i) => {
    buttons.forEach((button, j) => button.setAttribute("aria-pressed", i === j));
    shown.replaceChildren(draw(i));
  };
  const buttons = names.map((name, i) => h("button", { type: "button", onclick: () => choose(i) }, name));
  if (names.length) choose(first);
  return [h("div", { class: "prompts", role: "group", "aria-label": label }, buttons), shown];
}

const captioned = (title, small, chart) =>
  h("figure", {}, h("figcaption", {}, title, h("small", {}, small)), chart);

/* ---------- Effect against cost ---------- */

const costAxis = (max_cost) => ({
  root: true,
  from: 0,
  mark: max_cost,
  limit: known(max_cost) ? `bound ${short(max_cost)}` : null,
});

/* A picture of series whose points have a cost as x and `key` as y. */
function effectChart(title, key, series, max_cost, height) {
  const [, name, format, meaning] = measureOf(key);
  const chart = h("div");
  plot(chart, {
    title: `${title}: ${name} against cost`,
    height,
    zero: true,
    x: { ...costAxis(max_cost), label: "cost: KL on neutral text, nats a token" },
    y: { format, pad: 0.1 },
    series,
  });
  const small = `${meaning} Bars: 95% intervals. The cost is drawn as its square root.`;
  return captioned(`${name} against cost`, small, chart);
}

/* Cost and effect of figures as a point. */
const effectPoint = (figures, key) => ({
  x: middle(figures.kl),
  xs: endsOf(figures.kl),
  y: middle(figures[key]),
  ys: endsOf(figures[key]),
});

/* What a tip says of figures: all that were measured, perplexity never alone. */
const figureLines = (figures) =>
  MEASURES.filter(([key]) => known(middle(figures[key]))).map(
    ([key, name, write]) => `${name}: ${estimate(figures[key], write)}`,
  );

function drawArmsPicture({ arms, max_cost, measure }) {
  const draw = (i) => {
    const series = arms.map(({ direction, title, figures }) => ({
      hue: armHue(direction),
      dots: true,
      tinted: true,
      points: [
        {
          ...effectPoint(figures, EFFECTS[i]),
          label: title,
          strong: direction === "feature",
          lead: true,
          tip: () => [title, "at its operating point", ...figureLines(figures)],
        },
      ],
    }));
    return effectChart("All arms", EFFECTS[i], series, max_cost, 420);
  };
  const names = EFFECTS.map((key) => measureOf(key)[1]);
  return switcher("Effect", names, draw, Math.max(0, EFFECTS.indexOf(measure)));
}

/* ---------- The table of arms ---------- */

/* On how many features steering beats a baseline, and by how much in the mean. */
function comparisonCell(comparison, write) {
  if (!comparison) return h("td", {});
  const { wins, losses, undecided, difference } = comparison;
  return h(
    "td",
    { class: "versus" },
    `beats it on ${wins}, loses on ${losses}`,
    h("small", { class: "range" }, `${undecided} cannot be told apart`),
    h("small", { class: "range" }, `difference ${estimate(difference, write)}`),
  );
}

function drawArmsTable({ arms, comparison, measure }) {
  const [, name, write] = measureOf(measure);
  const versus = (direction) => comparison.find(({ baseline }) => baseline === direction);
  // A difference has a sign, whatever it is a difference of.
  const gap = write === percent ? signedPercent : signed;
  const head = (text, title, kind) => h("th", { scope: "col", title, class: kind }, text);
  const row = ({ direction, title, n_features, figures }) =>
    h(
      "tr",
      { class: direction === "feature" ? "chosen" : null, "--hue": armHue(direction) },
      h(
        "th",
        { scope: "row", title: ARMS[direction]?.[1] },
        visible(title),
        h("small", { class: "range" }, `${count(n_features)} feature${n_features === 1 ? "" : "s"}`),
      ),
      comparisonCell(versus(direction), gap),
      MEASURES.map(([key, , form]) =>
        estimateCell(figures[key], form, "Not measured for this arm at its operating point."),
      ),
    );
  return h(
    "table",
    { id: "steering-arms" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        head("At its operating point"),
        head(
          "Steering against it",
          `On how many features it has more or less of “${name}”, as far as 95% intervals can tell, and the mean difference.`,
          "versus",
        ),
        MEASURES.map(([, text, , meaning]) => head(text, meaning)),
      ),
    ),
    h("tbody", {}, arms.map(row)),
  );
}

/* A table whose columns are whatever figures its arms have. */
function drawVocabulary({ arms }) {
  const keys = [...new Set(arms.flatMap(({ figures }) => Object.keys(figures)))];
  const heading = (key) => visible(key).replaceAll("_", " ");
  return h(
    "table",
    { id: "steering-vocabulary" },
    h(
      "thead",
      {},
      h("tr", {}, ["Arm", ...keys].map((key) => h("th", { scope: "col" }, heading(key)))),
    ),
    h(
      "tbody",
      {},
      arms.map(({ title, figures }) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, visible(title)),
          keys.map((key) => estimateCell(figures[key], short, "Not measured for this arm.")),
        ),
      ),
    ),
  );
}

/* Those left out of picture and table, since no dose of theirs keeps to the bound. */
function withoutPoint({ n_without_operating_point: n, n_features, max_cost }) {
  if (!n) return null;
  const [has, rest] =
    n === 1
      ? ["has", "and is left out here; its own part below says why."]
      : ["have", "and are left out here; their own parts below say why."];
  const bound = `at a cost of at most ${short(max_cost)}`;
  return `${count(n)} of ${count(n_features)} features ${has} no operating point ${bound} ${rest}`;
}

function drawSteering() {
  const found = report.steering;
  if (!reveal("steering", found?.features)) return;
  const { summary, features, vocabulary } = found;
  const meanings = [
    ...summary.arms.map(({ direction, title }) => [title, ARMS[direction]?.[1]]),
    ...MEASURES.map(([, name, , meaning]) => [name, meaning]),
  ];
  $("steering-headline").append(visible(summary.headline));
  $("steering-read-back").append(visible(summary.read_back));
  $("steering-bound").append(`${short(summary.max_cost)} nats a token`);
  $("steering-missing").append(withoutPoint(summary) ?? "");
  $("steering-picture").append(...drawArmsPicture(summary));
  $("steering-table").append(drawArmsTable(summary));
  $("steering-meanings").append(
    ...meanings
      .filter(([, meaning]) => meaning)
      .flatMap(([name, meaning]) => [h("dt", {}, visible(name)), h("dd", {}, meaning)]),
  );
  const criterion = visible(features[0].criterion ?? "");
  $("steering-criterion").append(h("b", {}, "How the features were chosen. "), criterion);
  $("steered").append(...features.map(drawSteered));
  if (reveal("vocabulary", vocabulary?.arms)) $("vocabulary-table").append(drawVocabulary(vocabulary));
}
