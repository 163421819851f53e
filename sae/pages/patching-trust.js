/* ---------- How far the estimates agree with exact patching ---------- */

const ESTIMATES = ["plain", "ig", "relp", "norm"];
const CONTROL = [
  "Length alone",
  "The control: how far the activations of the two prompts are apart, which knows of no gradient.",
];
const columnOf = (method) => (method === "norm" ? CONTROL : (METHODS[method] ?? [method, ""]));

function agreementCell(entry, best) {
  if (!known(entry?.r)) return h("td", { title: "Not measured." }, "–");
  const text = effectText(entry.r);
  const look = { class: "tinted", ...effectLook(entry.r), title: `over ${count(entry.n)} places` };
  return h("td", look, entry.r === best ? h("b", {}, text) : text);
}

function drawAgreement() {
  const found = report.agreement ?? [];
  if (!reveal("agreement", found)) return;
  const methods = ESTIMATES.filter((method) => found.some((entry) => entry.method === method));
  const rows = [...Map.groupBy(found, ({ site, patch }) => `${site} ${patch}`).values()];
  const row = (entries) => {
    const best = Math.max(...entries.map(({ r }) => r ?? -Infinity));
    const [{ site, patch, n }] = entries;
    const small = `${patchName(patch)}, ${count(n)} places`;
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, siteName(site), h("small", { class: "range" }, small)),
      methods.map((method) => agreementCell(entries.find((entry) => entry.method === method), best)),
    );
  };
  const heads = methods.map((method) => {
    const [name, meaning] = columnOf(method);
    return h("th", { scope: "col", title: meaning, class: method === "norm" ? "control" : null }, name);
  });
  $("agreement-table").replaceChildren(
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Site"), heads)),
      h("tbody", {}, rows.map(row)),
    ),
  );
  $("control-note").textContent = methods.includes("norm")
    ? "“Length alone” is the control: it only knows how far the activations of the two prompts are apart, and no gradient. What an estimate is worth is what it has beyond that."
    : "";
}

/* ---------- What was left out ---------- */

function drawLeftOut() {
  if (!reveal("left-out", report.left_out)) return;
  $("left-out-list").replaceChildren(
    ...report.left_out.map(({ pair, why }) => h("li", {}, h("q", {}, visible(pair)), ` ${visible(why)}`)),
  );
}

/* ---------- What it cost ---------- */

const sumOf = (entries, name) => entries.reduce((sum, entry) => sum + (entry[name] ?? 0), 0);
const passes = (n) => `${count(n)} whole forward pass${Math.round(n) === 1 ? "" : "es"}`;

function drawCost() {
  const spent = report.cost ?? [];
  if (!reveal("cost", spent)) return;
  const exact = spent.filter(({ site }) => known(site));
  const estimates = spent.filter(({ method }) => known(method));
  const inside = (name) => (name.includes(" ") ? name[0].toLowerCase() + name.slice(1) : name);
  const seconds = estimates.map((entry) => `${inside(methodName(entry.method))} ${duration(entry.seconds)}`);
  const words = [
    exact.length
      ? `Exact patching did the work of ${passes(sumOf(exact, "forwards"))} instead of ${count(sumOf(exact, "naive"))}, as a run goes on from the patched layer and not from the start; it took ${duration(sumOf(exact, "seconds"))}.`
      : null,
    seconds.length ? `Estimates of all places took: ${seconds.join(", ")}.` : null,
  ];
  $("cost-line").textContent = words.filter(Boolean).join(" ");
  if (!reveal("cost-table", exact)) return;
  const row = ({ site, patch, n_patched, forwards, naive, seconds: took }) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, siteName(site), h("small", { class: "range" }, patchName(patch))),
      [count(n_patched), count(forwards), count(naive), duration(took)].map((text) => h("td", {}, text)),
    );
  const heads = ["Site", "Places", "Forward passes", "Instead of", "Time"];
  $("cost-table").replaceChildren(
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, exact.map(row)),
    ),
  );
}
