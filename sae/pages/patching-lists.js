/* ---------- What the dictionary explains, and what it leaves ---------- */

const PARTS = { features: "var(--accent)", error: "var(--c1)", "features+error": "var(--c5)" };
const TALL = 220;

/* Bars side by side at every position; each can be met over its whole height. */
function drawParts(width, cells, columns) {
  const sites = Object.keys(PARTS).filter((site) => cells.some((cell) => cell.site === site));
  const room = Math.max(12 * sites.length + 8, Math.min(80, Math.floor((width - 52) / columns.length)));
  const thick = Math.min(18, (room - 8) / sites.length);
  const right = 46 + room * columns.length;
  const ends = cells.flatMap(({ effect, low, high }) => [effect, low ?? effect, high ?? effect]);
  const domain = [Math.min(0, ...ends), Math.max(0.1, ...ends)];
  const y = makeScale({ domain }, [], TALL, 8, 4);
  const root = svg("svg", {
    width: right + 4,
    height: TALL + 84,
    role: "group",
    "aria-label": "Features and error by position",
  });
  const drawn = cells.map((cell) => {
    const place = cell.position - columns[0].at;
    const x = 46 + place * room + (room - thick * sites.length) / 2 + thick * sites.indexOf(cell.site);
    const [top, bottom] = [y.at(Math.max(0, cell.effect)), y.at(Math.min(0, cell.effect))];
    const bar = { x: x + 1, width: thick - 2, y: top, height: Math.max(1, bottom - top) };
    const middle = x + thick / 2;
    const span = { x1: middle, x2: middle, y1: y.at(cell.low ?? 0), y2: y.at(cell.high ?? 0) };
    return {
      bar: svg("rect", { class: "part-bar", "--hue": PARTS[cell.site], ...bar }),
      span: known(cell.low) ? svg("line", { class: "whisker", ...span }) : null,
      item: {
        node: svg("rect", { class: "hit", x, width: thick, y: 8, height: TALL - 8 }),
        cell,
        column: place * sites.length + sites.indexOf(cell.site),
        row: 0,
      },
    };
  });
  const centre = (at) => 46 + (at - columns[0].at + 0.5) * room;
  root.append(
    ...y.ticks.flatMap((tick) => [
      svg("line", { class: tick ? "grid" : "zero", x1: 46, x2: right, y1: y.at(tick), y2: y.at(tick) }),
      svg("text", { x: 38, y: y.at(tick) + 4, "text-anchor": "end" }, signed(tick).replace("+", "")),
    ]),
    ...drawn.map(({ bar }) => bar),
    ...drawn.map(({ span }) => span).filter(Boolean),
    ...drawColumnNames(columns, centre, TALL, true),
    ...drawn.map(({ item }) => item.node),
    ringOfKept(),
  );
  makePickable(root, drawn.map(({ item }) => item));
  return root;
}

function showParts(state) {
  const cells = cellsAt(state, ...Object.keys(PARTS));
  if (!reveal("parts", cells)) return;
  const sites = Object.keys(PARTS).filter((site) => cells.some((cell) => cell.site === site));
  $("parts-legend").replaceChildren(
    ...sites.map((site) => h("li", { "--hue": PARTS[site] }, `${SITES[site][0]}: ${SITES[site][1]}`)),
  );
  const host = h("div", { class: "sideways" });
  $("parts-drawn").replaceChildren(host);
  drawWithRing(host, (width) => drawParts(width, cells, positionsOf(state.group)));
}

/* ---------- Single features ---------- */

function featureRow(cell, at, row) {
  const { feature, effect, low, high } = cell;
  const label = featureLabel(feature);
  const name = label ? [visible(label), h("small", {}, `feature ${feature}`)] : `Feature ${feature}`;
  const atlas = report.dictionary?.atlas;
  const from = at(Math.min(0, effect));
  const bar = { "--from": `${from}%`, "--wide": `${at(Math.max(0, effect)) - from}%` };
  const node = h(
    "button",
    { type: "button", class: "feature-bar", "--zero": `${at(0)}%` },
    h("i", { ...bar, "--hue": effect < 0 ? "var(--against)" : "var(--with)" }),
    known(low) ? h("s", { "--from": `${at(low)}%`, "--wide": `${at(high) - at(low)}%` }) : null,
  );
  const title = atlas ? h("a", { href: `${atlas}#f=${feature}` }, name) : h("span", {}, name);
  const figure = h(
    "span",
    { class: "figure" },
    effectText(effect),
    h("small", {}, ` ${intervalText(cell)}`),
  );
  return { line: h("li", {}, title, node, figure), item: { node, cell, column: 0, row: -row } };
}

function showFeatures(state) {
  const cells = cellsAt(state, "feature").toSorted((a, b) => Math.abs(b.effect) - Math.abs(a.effect));
  if (!reveal("features", cells)) return;
  const ends = cells.flatMap(({ effect, low, high }) => [effect, low ?? effect, high ?? effect]);
  const [least, most] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const at = (value) => (100 * (value - least)) / (most - least || 1);
  const rows = cells.map((cell, row) => featureRow(cell, at, row));
  const all = seriesAt(state, "feature").reduce((sum, { of }) => sum + of, 0);
  const shown = all > cells.length ? `the ${count(cells.length)} strongest of ${count(all)}` : "the strongest first";
  $("features-note").textContent = `each patched at all tokens together; ${shown}`;
  const list = h("ol", { class: "features" }, rows.map(({ line }) => line));
  $("features-drawn").replaceChildren(list);
  makePickable(list, rows.map(({ item }) => item));
}

function drawDictionary(state) {
  const some = cellsAt(state, "feature", ...Object.keys(PARTS));
  if (!reveal("dictionary", some)) return;
  const name = report.dictionary?.name;
  const hook = report.dictionary?.hook_name;
  $("dictionary-intro").replaceChildren(
    "A dictionary takes an activation apart into features and an error that it cannot explain, and each can be patched alone",
    ...(name ? [". This is ", h("b", {}, visible(name))] : []),
    ...(hook ? [" at ", h("code", {}, visible(hook))] : []),
    ".",
  );
  showParts(state);
  showFeatures(state);
}

/* ---------- The strongest places ---------- */

const MOST_OF_A_SITE = 3;

/* The strongest of each site; after its first, a tenth of the strongest of all is too little to be told of. */
function strongestOf(state) {
  const size = ({ effect }) => Math.abs(effect);
  const bySize = (a, b) => size(b) - size(a);
  const sites = [...Map.groupBy(cellsAt(state), (cell) => cell.site).values()].map((cells) => cells.toSorted(bySize));
  const enough = Math.max(0, ...sites.map(([first]) => size(first))) / 10;
  return sites
    .flatMap((cells) => cells.slice(0, MOST_OF_A_SITE).filter((cell, i) => size(cell) > (i ? enough : 0)))
    .sort(bySize);
}

/* What the same place does from another pair’s corrupt prompt; undefined where it was not tried. */
function controlOf(cell) {
  if (cell.method !== "exact" || cell.patch !== "denoising") return undefined;
  return report.controls.find(
    (one) =>
      ["site", "group", "layer", "position", "head"].every((name) => (one[name] ?? null) === cell[name]) &&
      !known(cell.receiver),
  )?.control;
}

function controlCell(cell) {
  const control = controlOf(cell);
  if (control === undefined) return h("td", { title: "Tried for the strongest place of each site alone." }, "–");
  if (control === null) {
    return h("td", { title: "A single pair has no other whose activations it could be given." }, "not measurable");
  }
  return h("td", {}, effectText(control, digitsOf(cell.effect)));
}

function drawStrongest(state) {
  const cells = strongestOf(state);
  if (!reveal("strongest", cells)) return;
  const controlled = cells.some((cell) => controlOf(cell) !== undefined);
  $("strongest-intro").textContent =
    `Up to ${MOST_OF_A_SITE} of each site, by the size of their effect. ` +
    (controlled
      ? "The control patches the same place from another pair’s corrupt prompt, in which the answer is decided as it was: what that does, exchanging prompts does by itself."
      : "");
  const head = (text) => h("th", { scope: "col" }, text);
  const row = (cell, i) => {
    const button = h(
      "button",
      { type: "button", class: "place-name", "aria-pressed": "false", "data-place": placeKey(cell), onclick: () => pin(cell) },
      h("b", {}, placeName(cell.site)),
      ` ${whereText(cell)}`,
    );
    return h(
      "tr",
      { class: "ranked", ...effectLook(cell.effect) },
      h("th", { scope: "row" }, h("span", { class: "rank" }, `${i + 1}`), button),
      h("td", {}, effectText(cell.effect), h("small", {}, ` ${intervalText(cell)}`)),
      controlled ? controlCell(cell) : null,
    );
  };
  $("strongest-table").replaceChildren(
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, head("Place"), head("Effect"), controlled ? head("Control") : null)),
      h("tbody", {}, cells.map(row)),
    ),
  );
}
