/* ---------- A feature that was steered with ---------- */

const dose = (strength) => `${signed(strength)}×`;
const titleOf = (direction) =>
  report.steering.summary.arms.find((arm) => arm.direction === direction)?.title ??
  direction.replaceAll("_", " ");
const operatingOf = (entry, direction) =>
  entry.measurements.find((one) => one.direction === direction && one.operating);

/* What was measured, by direction, weak doses first. */
const armsOf = (entry) =>
  [...Map.groupBy(entry.measurements, (one) => one.direction)].map(([direction, found]) => [
    direction,
    found.toSorted((a, b) => (a.strength ?? 0) - (b.strength ?? 0)),
  ]);

/* Drawn in this order the feature lies above its baselines, but for the wrong sign, which is a point of its curve. */
const ON_TOP = ["feature", "wrong_sign"];
const layersOf = (entry) => armsOf(entry).toSorted(([a], [b]) => ON_TOP.indexOf(a) - ON_TOP.indexOf(b));

const doseTip = (one) => [
  titleOf(one.direction),
  known(one.strength)
    ? `strength ${dose(one.strength)}${one.operating ? ", its operating dose" : ""}`
    : "no strength",
  ...figureLines(one),
];

/* What has no strength is a dashed line across them all. */
function strengthSeries(entry, key) {
  const strengths = entry.measurements.map((one) => one.strength).filter(known);
  const ends = [Math.min(...strengths), Math.max(...strengths)];
  return layersOf(entry).map(([direction, found]) => {
    const level = found.every((one) => !known(one.strength));
    const spread = level ? ends.map((strength) => ({ ...found[0], strength })) : found;
    const points = spread.map((one) => {
      const strong = direction === "feature" && one.operating;
      return {
        x: one.strength,
        y: middle(one[key]),
        ys: level ? null : endsOf(one[key]),
        strong,
        label: strong ? "operating dose" : null,
        tip: () => doseTip(level ? found[0] : one),
      };
    });
    return { hue: armHue(direction), points, dots: !level, dashed: level };
  });
}

function strengthChart(entry, key, question, small, y) {
  const chart = h("div");
  const x = { label: "strength (× largest activation)", format: signed };
  const title = `${measureOf(key)[1]} by strength`;
  plot(chart, { title, height: 300, x, y, zero: true, series: strengthSeries(entry, key) });
  return captioned(question, small, chart);
}

/* Each arm a curve over its doses: the feature’s dots say their dose, a baseline’s operating point its name. */
function curveChart(entry, key) {
  const series = layersOf(entry).map(([direction, found]) => {
    const own = direction === "feature";
    const point = found.find((one) => one.operating) ?? found.at(-1);
    const label = (one) => {
      if (own) return `${dose(one.strength)}${one.operating ? " operating dose" : ""}`;
      return one === point ? titleOf(direction) : null;
    };
    const points = found.map((one) => ({
      ...effectPoint(one, key),
      label: label(one),
      name: `${one.strength}`,
      strong: own && one.operating,
      lead: !own,
      tip: () => doseTip(one),
    }));
    return { hue: armHue(direction), points, dots: true, faint: !own, tinted: true };
  });
  return effectChart(`Feature ${entry.feature}`, key, series, entry.max_cost, 400);
}

function drawCharts(entry) {
  const names = EFFECTS.map((key) => measureOf(key)[1]);
  const bound = { root: true, from: 0, mark: entry.max_cost, limit: `bound ${short(entry.max_cost)}` };
  const shift = "shift, nats: change in log-probability of the tokens above";
  const cost = "KL on neutral text, nats a token, drawn as its square root; lower is better";
  const byStrength = h(
    "div",
    { class: "pair" },
    strengthChart(entry, "shift", "Does it bring its tokens up?", shift, { format: signed }),
    strengthChart(entry, "kl", "What does it cost?", cost, bound),
  );
  const curves = switcher("Effect", names, (i) => curveChart(entry, EFFECTS[i]), EFFECTS.indexOf("shift"));
  return [byStrength, ...curves];
}

/* ---------- Its figures and checks ---------- */

const roughly = when((value) => short(Number(value.toPrecision(2))));

/* Doses and what they do; a shift stands beside what chance gives. */
function drawFacts(entry) {
  const { null: chance, curve } = entry;
  const at = operatingOf(entry, "feature");
  const ofCurve = (name, key, write, small) =>
    known(curve?.[key])
      ? [name, write(curve[key]), small, null]
      : [name, "–", "", "The doses that were measured do not tell."];
  const rank =
    "Of the shift at the operating dose. z: standard deviations above their mean; " +
    "p: share of them, itself included, that reach as far.";
  const against = (what, z, p) =>
    chance
      ? [`Against ${count(chance.n)} random ${what}`, `z ${short(z)}`, `p ${roughly(p)}`, rank]
      : [`Against random ${what}`, "–", "", entry.told];
  const facts = [
    ["Operating dose", known(entry.operating_strength) ? dose(entry.operating_strength) : "–", "", entry.told],
    at
      ? ["Shift there", signed(middle(at.shift)), rangeOf(at.shift, signed), measureOf("shift")[3]]
      : ["Shift there", "–", "", entry.told],
    against("directions", chance?.direction_z, chance?.direction_p),
    against("features", chance?.feature_z, chance?.feature_p),
    ofCurve("Monotonicity", "monotonicity", short, "1: every stronger dose shifts more"),
    ofCurve("Dose of half the effect", "half_effect_strength", dose, ""),
    ofCurve("Dose that breaks the text", "break_strength", dose, ""),
  ];
  return h(
    "dl",
    { class: "facts" },
    facts.map(([name, value, small, why]) =>
      h(
        "div",
        {},
        h("dt", {}, name),
        h("dd", { title: why }, value, small ? h("small", {}, small) : null),
      ),
    ),
  );
}

const VERDICTS = new Map([
  [true, ["✓", "holds", "holds"]],
  [false, ["✗", "does not hold", "fails"]],
  [null, ["–", "not measurable", "unknown"]],
]);

function drawChecks(checks) {
  return h(
    "ul",
    { class: "checks" },
    checks.map(({ title, shift, kept, holds, told }) => {
      const [mark, verdict, kind] = VERDICTS.get(holds ?? null);
      const figures = [
        known(middle(shift)) ? `shift ${estimate(shift, signed)}` : null,
        known(kept) ? `${percent(kept)} of the shift is kept` : null,
      ].filter(Boolean);
      return h(
        "li",
        { class: kind },
        h("span", { class: "verdict", "aria-hidden": "true" }, mark),
        h("b", {}, visible(title)),
        `: ${verdict}. ${visible(told ?? "")}`,
        figures.length ? h("small", {}, figures.join(" · ")) : null,
      );
    }),
  );
}

/* ---------- What it wrote ---------- */

/* The text after its prompt, the feature's own tokens marked. */
function writing(sample, words) {
  if (!sample) return ["–"];
  const given = sample.text.startsWith(sample.prompt) ? sample.prompt : "";
  const rest = visible(sample.text.slice(given.length));
  const parts = words ? rest.split(words) : [rest];
  // In its own direction, whatever stands before it.
  return h(
    "bdi",
    {},
    h("span", { class: "given" }, visible(sample.prompt)),
    parts.map((part, i) => (i % 2 ? h("mark", {}, part) : part)),
  );
}

function tokenPattern(tokens) {
  const words = tokens.map((token) => token.trim()).filter((word) => /^[\p{L}\p{N}][\p{L}\p{N}\p{M}]+$/u.test(word));
  return words.length ? new RegExp(`(?<![\\p{L}\\p{N}])(${words.join("|")})(?![\\p{L}\\p{N}])`, "giu") : null;
}

/* The feature's doses, then each baseline at its operating point. */
function doseRows(entry, samples, words) {
  const of = (direction, strength) =>
    samples.find((one) => one.direction === direction && one.strength === strength);
  const strengths = samples.filter((one) => one.direction === "feature").map((one) => one.strength);
  const most = Math.max(...strengths.map(Math.abs), 1e-9);
  const rows = strengths
    .sort((a, b) => a - b)
    .flatMap((strength) => {
      const kind = strength ? "" : "base";
      const tint = `color-mix(in srgb, ${strength > 0 ? "var(--accent)" : "var(--c1)"} ${30 + (70 * Math.abs(strength)) / most}%, transparent)`;
      const operating = strength === entry.operating_strength ? h("small", {}, "operating dose") : null;
      return [
        h("p", { class: `dose ${kind}`, "--tint": strength ? tint : null }, strength ? dose(strength) : "0", operating),
        h("p", { class: kind || null }, strength ? null : h("b", {}, "Unsteered. "), writing(of("feature", strength), words)),
      ];
    });
  const others = armsOf(entry).filter(([direction]) => direction !== "feature");
  const baselines = others.flatMap(([direction, found]) => {
    const { strength } = found.find((one) => one.operating) ?? {};
    const sample = of(direction, strength ?? null);
    return [
      h(
        "p",
        { class: "dose", "--tint": armHue(direction) },
        visible(titleOf(direction)),
        known(strength) ? h("small", {}, dose(strength)) : null,
      ),
      h("p", { title: sample ? null : "No text was written here." }, writing(sample, words)),
    ];
  });
  const head = ["Strength", titleOf("feature")].map((text) => h("p", { class: "head" }, visible(text)));
  return h("div", { class: "doses" }, head, rows, baselines);
}

function drawSteered(entry) {
  const samples = entry.samples || [];
  const prompts = [...new Set(samples.map((sample) => sample.prompt))];
  const words = tokenPattern(entry.top_tokens || []);
  const written = (i) =>
    doseRows(
      entry,
      samples.filter((sample) => sample.prompt === prompts[i]),
      words,
    );
  const name = `Feature ${entry.feature}`;
  return h(
    "article",
    { class: "steer" },
    h(
      "div",
      { class: "title" },
      h("h3", {}, atlasOf(chosen) ? h("a", { href: `${atlasOf(chosen)}#f=${entry.feature}` }, name) : name),
      h("span", { class: "steps" }, `largest activation ${short(entry.max_activation)}`),
    ),
    h("p", { class: "chips" }, (entry.top_tokens || []).map(tokenLabel)),
    h("p", { class: "told" }, visible(entry.told ?? "")),
    drawFacts(entry),
    h(
      "ul",
      { class: "legend" },
      armsOf(entry).map(([direction, found]) =>
        h(
          "li",
          { "--hue": armHue(direction), class: known(found[0].strength) ? null : "dashed" },
          visible(titleOf(direction)),
        ),
      ),
    ),
    drawCharts(entry),
    h("h4", {}, "Does it hold elsewhere?"),
    drawChecks(entry.checks || []),
    switcher(
      "Prompt",
      prompts.map((prompt) => `“${visible(prompt)} …”`),
      written,
    ),
  );
}
