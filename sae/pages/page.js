/* ---------- Data ---------- */

const read = (id) => JSON.parse(document.getElementById(`data-${id}`).textContent);
takeReport(read("report"));

/* ---------- Overview ---------- */

/* What the run did, as far as the report knows. */
function lede(cache) {
  const own = dictionaries.filter((entry) => !entry.control);
  const controls = dictionaries.length - own.length;
  const several = own.length !== 1 ? "s" : "";
  const numbers = [`the ${count(report.d_in)} numbers at `, h("code", {}, report.hook_name)];
  const beside = controls ? `, and beside them ${count(controls)} whose directions stay random, as controls` : "";
  const autoencoders = `${count(own.length)} sparse autoencoder${several} to rewrite them as a few active features out of thousands${beside}.`;
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
      known(cache.n_tokens) ? count(dictionaries.filter((entry) => !entry.control).length) : "–",
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

/* ---------- Export, timings, versions ---------- */

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
if (reveal("evidence", report.evidence)) $("evidence-link").href = report.evidence;
const trained = trainingCurves();
drawTraining(trained);
drawDensities(trained);
drawFeatures();
document.querySelector(".skip").hidden = $("features").hidden;
drawSteering();
drawExport();
drawRun();
drawNavigation();
// The browser looked for the address when the sections were still empty.
$(location.hash.slice(1))?.scrollIntoView({ behavior: "instant" });
