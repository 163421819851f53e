/* ---------- Dials: features that were scored by what they do to the model's output ---------- */

const DIAL = 2;
const VERDICTS = ["no dial", "weak dial", "dial"];
const UNSCORED = -1;

/* Of all features, from columns of those that were scored. */
function takeDials({ feature, verdict, score, dose }) {
  const { n } = world;
  Object.assign(world, {
    scored: feature.length,
    verdict: new Int8Array(n).fill(UNSCORED),
    score: new Float64Array(n).fill(NaN),
    dose: new Float64Array(n).fill(NaN),
  });
  feature.forEach((f, i) => {
    world.verdict[f] = verdict[i];
    world.score[f] = score[i] ?? NaN;
    world.dose[f] = dose[i] ?? NaN;
  });
}

const isDial = (feature) => world.verdict[feature] === DIAL;
const verdictOf = (feature) => VERDICTS[world.verdict[feature]];
/* The recommended dose in multiples of the highest activation; null where there is none. */
const doseOf = (feature) => (world.dose[feature] > 0 ? world.dose[feature] : null);
/* Recommended doses are often less than a quarter of the highest activation. */
const dialStep = (feature) => (known(doseOf(feature)) ? 0.05 : 0.25);

function randomOnes() {
  const n = world.manifest.n_nulls;
  return known(n) ? `${count(n)} random directions and ${count(n)} random features` : "random directions and random features";
}

/* How many dials there are, and how many features would pass for one if none did anything. */
function dialFact() {
  const { n_scored, n_dials, n_nulls } = world.manifest;
  const why = `A dial makes the tokens it promotes at least twice as likely, and raises them more than any of ${randomOnes()} at equal cost.`;
  const scored = `of ${count(n_scored)} scored`;
  if (!known(n_nulls)) return fact("Dials", count(n_dials), scored, why);
  const lucky = n_scored / (2 * n_nulls + 1);
  const chance = `about ${lucky < 1 ? short(Number(lucky.toPrecision(1))) : count(lucky)}`;
  const passing = `A feature that does nothing would raise its tokens more than all of them once in ${count(2 * n_nulls + 1)} times: ${chance} of ${count(n_scored)}, dials and weak dials together.`;
  return fact("Dials", count(n_dials), `${scored}, ${chance} by chance`, `${why} ${passing}`);
}

/* ---------- What one feature does to the output ---------- */

function drawEffect(feature, dial) {
  const { without_dials: why } = world.manifest;
  $("effect").hidden = !world.scored && !why;
  if ($("effect").hidden) return;
  $("effect-body").replaceChildren(
    h("p", { class: "verdict" }, ...verdictSentence(feature)),
    ...(dial ? [effectFacts(dial), effectNote(dial), effectTable(dial), inputNote(dial)] : []),
  );
}

function verdictSentence(feature) {
  if (!world.scored) return [h("b", {}, "Not scored. "), visible(world.manifest.without_dials)];
  if (world.verdict[feature] === UNSCORED)
    return [h("b", {}, "Not scored. "), `It is not among the ${count(world.scored)} features that were scored.`];
  const what = [
    `At equal cost some random direction or random feature raises the tokens it promotes as much.`,
    `At equal cost it raises the tokens it promotes more than any of ${randomOnes()}, but makes them less than twice as likely.`,
    `At equal cost it raises the tokens it promotes more than any of ${randomOnes()}, and makes them at least twice as likely.`,
  ];
  const name = ["This is no dial. ", "This is a weak dial. ", "This is a dial. "][world.verdict[feature]];
  return [h("b", {}, name), what[world.verdict[feature]]];
}

/* A change of a log-probability as a factor. */
const times = (nats) => `${short(Number(Math.exp(nats).toPrecision(3)))} ×`;

const effectFacts = (dial) =>
  h(
    "dl",
    { class: "facts" },
    fact("Recommended dose", ...(known(dial.dial_strength) ? [`${short(dial.dial_strength)} ×`, "its strongest activation"] : ["none"])),
    fact("Its effect", times(dial.dial_score), `as likely; by chance ${times(dial.dial_score_null)} at most, p = ${short(dial.dial_score_p)}`),
    fact("Its cost", `${short(dial.dial_kl)} nats`, `a token, cross-entropy ${signed(dial.dial_delta_ce)}`),
  );

const effectNote = (dial) =>
  h(
    "p",
    { class: "note" },
    `The effect is how much likelier it becomes that one of its promoted tokens comes next: ${signed(dial.dial_score)} nats. `,
    `The output score, of the likeliest of them alone, changes by ${signed(dial.dial_rise)}, by chance by ${signed(dial.dial_rise_null)} at most. `,
    "The cost is the KL from the model left alone on neutral text; each random direction and feature was turned up as far as costs as much.",
  );

const MEASURES = [
  ["output_score", "Output score", "of its likeliest promoted token, 0 to 1", short],
  ["token_shift", "Token shift", "log-probability of its promoted tokens, nats", signed],
  ["confidence_change", "Confidence", "change of the highest probability of a next token", signed],
  ["delta_ce", "Cross-entropy", "rise on neutral text, nats a token", signed],
  ["kl", "KL", "from the model left alone there, nats a token", short],
];
const CHANCE = [
  ["direction", "random directions"],
  ["feature", "random features"],
];

/* The five figures at the stated dose, each beside what chance gives. */
function effectTable(dial) {
  const row = ([key, name, what, write]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name, h("small", {}, what)),
      h("td", {}, h("b", {}, write(dial[key]))),
      CHANCE.flatMap(([kind, of]) => [
        h("td", { class: "first", "data-of": of }, write(dial[`${key}_${kind}_mean`])),
        h("td", { "data-of": "z" }, fixed(1)(dial[`${key}_${kind}_z`]).replace("-", "−")),
        h("td", { "data-of": "p" }, short(dial[`${key}_${kind}_p`])),
      ]),
    );
  const groups = CHANCE.map(([, of]) => h("th", { class: "first", colspan: 3, scope: "colgroup" }, of));
  const heads = CHANCE.flatMap(() => ["mean", "z", "p"].map((name) => h("th", { scope: "col" }, name)));
  return h(
    "figure",
    { class: "measures" },
    h(
      "figcaption",
      {},
      "At the stated dose",
      h(
        "small",
        {},
        `One norm for all features, here ${short(dial.stated_strength)} × its strongest activation. `,
        "z: how many standard deviations above the mean of the random ones; p: the share of them, itself counted, that reach as much.",
      ),
    ),
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, h("td"), h("th", { scope: "col" }, "feature"), groups), h("tr", {}, h("td"), h("td"), heads)),
      h("tbody", {}, MEASURES.map(row)),
    ),
  );
}

const inputNote = (dial) =>
  h(
    "p",
    { class: "note" },
    "Input score: it fires most on a token that it promotes in ",
    h("b", {}, percent(dial.input_score)),
    ` of its strongest contexts; with the promoted tokens of random features that is ${percent(dial.input_score_feature_mean)} on average.`,
  );
