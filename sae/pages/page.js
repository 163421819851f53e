/* ---------- Data ---------- */

const read = (id) => JSON.parse(document.getElementById(`data-${id}`).textContent);
takeReport(read("report"));

/* ---------- Overview ---------- */

/* What the run did, as far as the report knows. */
function lede(cache) {
  const several = dictionaries.length !== 1 ? "s" : "";
  const numbers = [`the ${count(report.d_in)} numbers at `, h("code", {}, report.hook_name)];
  const autoencoders = `${count(dictionaries.length)} sparse autoencoder${several} to rewrite them as a few active features out of thousands.`;
  const held = cache.n_held_out_rows ?? dictionaries[0]?.n_rows;
  const quality = known(held)
    ? ` ${count(held)} tokens were held out; quality is measured on text that training never saw.`
    : "";
  if (!dictionaries.length) return ["This run looks at ", ...numbers, "."];
  if (!known(cache.n_tokens)) return ["This run took ", ...numbers, ` and trained ${autoencoders}${quality}`];
  return [
    `This run read ${count(cache.n_tokens)} tokens of ${cache.data ?? "text"} through the model, kept `,
    ...numbers,
    ` for each, and trained ${autoencoders}${quality}`,
  ];
}

function drawOverview() {
  const cache = report.cache || {};
  const model = report.model_name.split("/").pop();
  const layer = /blocks\.(\d+)\./.exec(report.hook_name);
  $("headline").append(`What ${layer ? `layer ${layer[1]}` : report.hook_name} of ${model} is made of`);
  $("lede").append(...lede(cache));
  const spent = Object.values(report.timings || {}).reduce((sum, seconds) => sum + (seconds || 0), 0);
  const figures = [
    [
      "Tokens harvested",
      count(cache.n_tokens),
      "",
      `${count(cache.n_sequences)} sequences of ${count(cache.context_size)} tokens, ${bytes(cache.bytes)} of ${cache.dtype ?? "activations"}.`,
    ],
    ["Harvest speed", count(cache.tokens_per_second), "tokens/s", "Through the model and onto disk."],
    [
      "Dictionaries trained",
      known(cache.n_tokens) ? count(dictionaries.length) : "–",
      "",
      "The same data, each with a different taste for sparsity.",
    ],
    ["Total time", spent ? fixed(1)(spent / 60) : "–", "minutes", "From raw text to this page."],
    ...shownIn("tile").map(({ key, title, form, meaning }) => [
      title,
      writer(form)(chosen?.[key]),
      "",
      sentence(meaning),
    ]),
  ];
  const tiles = figures.filter(([, value]) => value !== "–");
  $("tiles").hidden = !tiles.length;
  $("tiles").append(
    ...tiles.map(([name, value, unit, why]) =>
      h(
        "div",
        {},
        h("dt", {}, name),
        h("dd", { class: "value" }, value, unit ? h("small", {}, unit) : null),
        h("dd", { class: "why" }, why),
      ),
    ),
  );
}

/* ---------- Steering ---------- */

const DIRECTIONS = [
  ["feature", "This feature", "var(--accent)"],
  ["random", "Random direction", "var(--c1)"],
  ["prompt", "Prompt", "var(--ink)"],
];

function steeringSeries(entry, metric, write) {
  const strengths = entry.measurements.map((point) => point.strength).filter(known);
  const ends = [Math.min(...strengths), Math.max(...strengths)];
  return DIRECTIONS.map(([direction, name, hue]) => {
    const found = entry.measurements
      .filter((point) => point.direction === direction)
      .sort((a, b) => (a.strength ?? 0) - (b.strength ?? 0));
    const spread =
      direction === "prompt"
        ? found.slice(0, 1).flatMap((point) => ends.map((strength) => ({ ...point, strength })))
        : found;
    const points = spread.map((point) => ({
      x: point.strength,
      y: point[metric],
      tip: () => [
        name,
        direction === "prompt" ? "no steering" : `strength ${signed(point.strength)}×`,
        write(point[metric]),
      ],
    }));
    return { hue, points, dots: direction !== "prompt", dashed: direction === "prompt" };
  });
}

function steeringCharts(entry) {
  const [shift, perplexity] = [h("div"), h("div")];
  const strengths = [...new Set(entry.measurements.map((point) => point.strength).filter(known))];
  const x = {
    label: "strength (× largest activation)",
    format: signed,
    ticks: strengths.length < 10 ? strengths : null,
  };
  plot(shift, {
    title: "Log-probability shift by strength",
    height: 250,
    zero: true,
    x,
    y: { format: signed },
    series: steeringSeries(entry, "logprob_shift", (value) => `shift ${signed(value)} nats`),
  });
  plot(perplexity, {
    title: "Perplexity by strength",
    height: 250,
    x,
    y: { log: true },
    series: steeringSeries(entry, "perplexity", (value) => `perplexity ${short(value)}`),
  });
  return h(
    "div",
    { class: "pair" },
    h(
      "figure",
      {},
      h(
        "figcaption",
        {},
        "Does it bring its tokens up?",
        h("small", {}, "change in log-probability of the tokens above, nats"),
      ),
      shift,
    ),
    h(
      "figure",
      {},
      h(
        "figcaption",
        {},
        "Does the text hold together?",
        h("small", {}, "perplexity of what was written, log scale; lower is better"),
      ),
      perplexity,
    ),
  );
}

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

function doseRows(samples, words) {
  const cell = (sample, label, kind) =>
    h("p", { class: kind }, h("span", { class: "only-small" }, label), writing(sample, words));
  const of = (direction, strength) =>
    samples.find((one) => one.direction === direction && one.strength === strength);
  const strengths = [...new Set(samples.map((one) => one.strength).filter(known))].sort((a, b) => a - b);
  const most = Math.max(...strengths.map(Math.abs), 1);
  const rows = strengths.flatMap((strength) => {
    if (strength === 0)
      return [
        h("p", { class: "dose base" }, "0"),
        h("p", { class: "base wide" }, h("b", {}, "Unsteered. "), writing(of("feature", 0), words)),
      ];
    const tint = `color-mix(in srgb, ${strength > 0 ? "var(--accent)" : "var(--c1)"} ${30 + (70 * Math.abs(strength)) / most}%, transparent)`;
    return [
      h("p", { class: "dose", "--tint": tint }, `${signed(strength)}×`),
      cell(of("feature", strength), "Feature", ""),
      cell(of("random", strength), "Random direction", "baseline"),
    ];
  });
  const asked = samples
    .filter((one) => one.direction === "prompt")
    .flatMap((one) => [h("p", { class: "dose" }, "Prompt"), h("p", { class: "wide" }, writing(one, words))]);
  return h(
    "div",
    { class: "doses" },
    ...["Strength", "This feature", "Random direction"].map((text) => h("p", { class: "head" }, text)),
    rows,
    asked,
  );
}

function drawSteered(entry) {
  const samples = entry.samples || [];
  const prompts = [...new Set(samples.map((sample) => sample.prompt))];
  const words = tokenPattern(entry.top_tokens || []);
  const texts = h("div");
  const buttons = prompts.map((prompt) =>
    h("button", { type: "button", onclick: () => choose(prompt) }, `“${visible(prompt)} …”`),
  );
  const choose = (prompt) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", prompts[i] === prompt));
    texts.replaceChildren(
      doseRows(
        samples.filter((sample) => sample.prompt === prompt),
        words,
      ),
    );
  };
  if (prompts.length) choose(prompts[0]);
  const name = `Feature ${entry.feature}`;
  return h(
    "article",
    { class: "steer" },
    h(
      "div",
      { class: "title" },
      h("h3", {}, report.atlas ? h("a", { href: `${report.atlas}#f=${entry.feature}` }, name) : name),
      h("span", { class: "steps" }, `largest activation ${short(entry.max_activation)}`),
    ),
    h("p", { class: "chips" }, (entry.top_tokens || []).map(tokenLabel)),
    h(
      "ul",
      { class: "legend" },
      DIRECTIONS.map(([direction, name, hue]) =>
        h("li", { "--hue": hue, class: direction === "prompt" ? "dashed" : null }, name),
      ),
    ),
    steeringCharts(entry),
    h("div", { class: "prompts", role: "group", "aria-label": "Prompt" }, buttons),
    texts,
  );
}

/* ---------- Export, timings, versions ---------- */

function snippet(code) {
  const pre = h("pre", { tabindex: 0 }, h("code", {}, code));
  const button = h("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(pre);
    // Not every browser lets a page from disk write to the clipboard; the text is selected then.
    button.textContent = await navigator.clipboard.writeText(code).then(
      () => "Copied",
      () => "Selected",
    );
  });
  return h("div", { class: "snippet" }, pre, button);
}

function drawExport() {
  const out = report.export;
  if (!reveal("export", out?.files)) return;
  $("export-intro").append(
    "The chosen dictionary lies in ",
    h("code", {}, out.folder),
    ", in a form that this package and SAELens both read.",
  );
  $("snippets").append(...(out.load || []).map(snippet));
  $("files").append(
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "File"), h("th", { scope: "col" }, "Size"))),
    h(
      "tbody",
      {},
      out.files.map((file) =>
        h("tr", {}, h("th", { scope: "row" }, file.name), h("td", {}, bytes(file.bytes))),
      ),
    ),
  );
}

function drawRun() {
  const timings = Object.entries(report.timings || {});
  const versions = Object.entries(report.versions || {});
  if (!reveal("run", [...timings, ...versions])) return;
  if (!timings.length) $("run-title").textContent = "What made this";
  $("timings").hidden = !timings.length;
  const most = Math.max(...timings.map(([, seconds]) => seconds || 0), 1e-9);
  $("timings").append(
    ...timings.map(([stage, seconds]) => {
      const bar = h("i");
      bar.style.width = `${(100 * (seconds || 0)) / most}%`;
      return h("div", {}, h("dt", {}, stage), bar, h("dd", {}, duration(seconds)));
    }),
  );
  $("versions").append(
    ...[["run folder", report.run], ...versions]
      .filter(([, value]) => known(value))
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/* ---------- Navigation ---------- */

function drawNavigation() {
  const parts = [...document.querySelectorAll("[data-nav]")].filter((part) => !part.hidden);
  const links = new Map(parts.map((part) => [part, h("a", { href: `#${part.id}` }, part.dataset.nav)]));
  $("nav").append(...links.values());
  const mark = () => {
    const here =
      parts.filter((part) => part.getBoundingClientRect().top < innerHeight * 0.35).pop() || parts[0];
    for (const [part, link] of links) link.setAttribute("aria-current", part === here);
    $("nav").scrollLeft = links.get(here).offsetLeft - 80;
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

drawOverview();
drawPareto();
const trained = trainingCurves();
drawTraining(trained);
drawDensities(trained);
drawFeatures();
document.querySelector(".skip").hidden = $("features").hidden;
if (reveal("steering", report.steering)) {
  $("steering-criterion").append(h("b", {}, "How they were chosen. "), report.steering[0].criterion ?? "");
  $("steered").append(...report.steering.map(drawSteered));
}
drawExport();
drawRun();
drawNavigation();
// The browser looked for the address when the sections were still empty.
$(location.hash.slice(1))?.scrollIntoView({ behavior: "instant" });
