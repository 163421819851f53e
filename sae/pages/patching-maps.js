/* ---------- Places that can be looked at and kept ---------- */

/* Tips and keys of drawn places, `{node, cell, column, row}` each: one tab stop for all, arrow keys among them. */
function makePickable(root, items) {
  const owner = new Map(items.map((item) => [item.node, item]));
  const grid = new Map(items.map((item) => [`${item.column},${item.row}`, item]));
  const first = items.reduce((best, item) =>
    Math.abs(item.cell.effect) > Math.abs(best.cell.effect) ? item : best,
  );
  const show = ({ target }) => {
    const item = owner.get(target);
    if (!item) return;
    const box = target.getBoundingClientRect();
    showTip(box.right, box.top, ...cellTip(item.cell));
  };
  for (const { node, cell } of items) {
    node.setAttribute("tabindex", node === first.node ? 0 : -1);
    node.setAttribute("role", "button");
    node.setAttribute("aria-pressed", false);
    node.setAttribute("aria-label", cellTip(cell).join(", "));
    node.dataset.place = placeKey(cell);
  }
  root.addEventListener("pointerover", show);
  root.addEventListener("focusin", show);
  root.addEventListener("pointerout", hideTip);
  root.addEventListener("focusout", hideTip);
  root.addEventListener("click", ({ target }) => {
    if (owner.has(target)) pin(owner.get(target).cell);
  });
  root.addEventListener("keydown", (event) => pickByKey(event, owner.get(event.target), grid));
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function pickByKey(event, item, grid) {
  if (!item) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    pin(item.cell);
  }
  const [right, up] = STEPS[event.key] ?? [0, 0];
  const next = right || up ? grid.get(`${item.column + right},${item.row + up}`) : null;
  if (!STEPS[event.key]) return;
  event.preventDefault();
  if (!next) return;
  item.node.setAttribute("tabindex", -1);
  next.node.setAttribute("tabindex", 0);
  next.node.focus();
}

/* Draws at the width there is. Once the drawing is in place what is kept is marked, and where it is wider than its
   box the strongest effect is in sight. */
const drawWithRing = (host, drawAt) =>
  responsive(host, (width) => {
    const drawing = drawAt(width);
    queueMicrotask(() => {
      markPinned();
      const strongest = drawing.querySelector("[tabindex='0']");
      host.scrollLeft = Number(strongest.getAttribute("x")) - width / 2;
    });
    return drawing;
  });

/* Marks what is kept, wherever it is drawn. */
function markPinned() {
  for (const node of document.querySelectorAll("[data-place][aria-pressed=true]")) node.setAttribute("aria-pressed", false);
  for (const ring of document.querySelectorAll(".kept")) ring.setAttribute("visibility", "hidden");
  if (!kept) return;
  for (const node of document.querySelectorAll(`[data-place="${CSS.escape(placeKey(kept))}"]`)) {
    node.setAttribute("aria-pressed", true);
    if (node.localName !== "rect") continue;
    const ring = node.closest("svg").querySelector(".kept");
    for (const name of ["x", "y", "width", "height"]) ring.setAttribute(name, node.getAttribute(name));
    ring.setAttribute("visibility", "visible");
  }
}
const ringOfKept = () => svg("rect", { class: "kept", visibility: "hidden" });

/* ---------- Axes ---------- */

const MOST_LETTERS = 12;

/* A token as an axis has room for it. */
function axisLabel(token) {
  const text = visible(token).trim() || (token ? "␣" : "–");
  const letters = [...text];
  return letters.length > MOST_LETTERS ? `${letters.slice(0, MOST_LETTERS - 1).join("")}…` : text;
}

/* The positions of a group from the first that was measured to the last. */
function positionsOf(group) {
  const found = report.effects
    .filter((one) => one.group === group && one.position)
    .flatMap((one) => one.position.filter(known));
  const first = found.reduce((a, b) => Math.min(a, b), Infinity);
  const last = found.reduce((a, b) => Math.max(a, b), -1);
  const { tokens, differing } = groupOf(group);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => ({
    at: first + i,
    label: axisLabel(tokens[first + i] ?? `${first + i}`),
    title: visible(tokens[first + i] ?? ""),
    differs: differing.includes(first + i),
  }));
}

const headColumns = () => Array.from({ length: report.n_heads }, (_, i) => ({ at: i, label: `${i}` }));

/* The names of columns, turned where they are tokens. */
function drawColumnNames(columns, centre, top, turned) {
  const every = turned ? 1 : Math.ceil(columns.length / 16);
  return columns
    .filter((_, i) => i % every === 0)
    .map((column) => {
      const [x, y] = [centre(column.at) + (turned ? 4 : 0), top + (turned ? 12 : 16)];
      return svg(
        "text",
        {
          class: column.differs ? "token differs" : turned ? "token" : null,
          x,
          y,
          transform: turned ? `rotate(-55 ${x} ${y})` : null,
          "text-anchor": turned ? "end" : "middle",
        },
        column.title ? svg("title", {}, column.title) : null,
        column.label,
      );
    });
}

/* ---------- A map, layer by position or head ---------- */

const LEFT = 38;
const TOP = 18;

/* `spec`: cells, columns, across (a cell's column), turned (names of columns), title, wide (of a column). */
function drawMap(width, spec) {
  const { cells, columns, across, turned } = spec;
  const layers = report.n_layers;
  const high = layers > 20 ? 13 : layers > 12 ? 18 : 26;
  const wide = Math.min(spec.wide, Math.max(17, Math.floor((width - LEFT - 6) / columns.length)));
  const first = columns[0].at;
  const left = (column) => LEFT + (column - first) * wide;
  const top = (layer) => TOP + (layers - 1 - layer) * high;
  const base = top(-1);
  const whole = { x: LEFT, y: TOP, width: columns.length * wide, height: base - TOP };
  const root = svg("svg", {
    width: LEFT + whole.width + 4,
    height: base + (turned ? 80 : 40),
    role: "group",
    "aria-label": spec.title,
  });
  const items = cells.map((cell) => {
    const place = { x: left(cell[across]), y: top(cell.layer), width: wide, height: high };
    const node = svg("rect", { class: "place", ...place, ...effectLook(cell.effect) });
    return { node, cell, column: cell[across], row: cell.layer };
  });
  const step = [1, 2, 5, 10, 20].find((every) => every * high >= 24) ?? 20;
  const ticks = Array.from({ length: layers }, (_, i) => i).filter((layer) => layer % step === 0);
  root.append(
    svg("rect", { class: "unknown", ...whole }),
    svg("text", { x: LEFT - 7, y: TOP - 6, "text-anchor": "end" }, "layer"),
    turned ? "" : svg("text", { x: LEFT + whole.width / 2, y: base + 34, "text-anchor": "middle" }, across),
    ...ticks.map((layer) =>
      svg("text", { x: LEFT - 7, y: top(layer) + high / 2 + 4, "text-anchor": "end" }, `${layer}`),
    ),
    ...drawColumnNames(columns, (at) => left(at) + wide / 2, base, turned),
    ...items.map(({ node }) => node),
    svg("rect", { class: "frame", ...whole }),
    ringOfKept(),
  );
  makePickable(root, items);
  return root;
}

/* A figure of a map, which goes sideways in a box of its own where it has no room. */
function mapFigure(title, small, spec) {
  const host = h("div", { class: "sideways" });
  const code = spec.hook ? h("code", {}, spec.hook) : null;
  const caption = h("figcaption", {}, title, h("small", {}, small, code));
  return { figure: h("figure", {}, caption, host), draw: () => drawWithRing(host, (width) => drawMap(width, spec)) };
}

function showFigures(id, drawn, columns) {
  if (!reveal(id, drawn)) return;
  $(`${id}-drawn`).style.setProperty("--need", `${LEFT + 6 + 17 * columns}px`);
  $(`${id}-drawn`).replaceChildren(...drawn.map(({ figure }) => figure));
  for (const { draw } of drawn) draw();
}

function drawMaps(state) {
  const found = ["residual", "attention", "mlp"]
    .map((site) => [site, cellsAt(state, site)])
    .filter(([, cells]) => cells.length);
  const columns = found.length ? positionsOf(state.group) : [];
  const drawn = found.map(([site, cells]) => {
    const spec = { cells, columns, across: "position", turned: true, wide: 34, title: siteName(site) };
    return mapFigure(siteName(site), SITES[site][1], { ...spec, hook: report.hook_names[site] });
  });
  showFigures("maps", drawn, columns.length);
}

function drawHeads(state) {
  const columns = headColumns();
  const figure = (series) => {
    const { site, receiver } = series;
    const name = site === "head" ? SITES.head[0] : `To ${visible(receiver ?? "a receiver")}`;
    const spec = { cells: cellsOf(series), columns, across: "head", wide: 30, title: name };
    return mapFigure(name, SITES[site][1], { ...spec, hook: site === "head" ? report.hook_names.head : null });
  };
  const found = seriesAt(state, "head", "path").filter((series) => cellsOf(series).length);
  const has = (site) => found.some((series) => series.site === site);
  const words = [
    has("head") ? "What one attention head writes is patched, at all tokens together." : null,
    has("path")
      ? "Where a map is named after a receiver, only what this one reads of the head is patched: everything else goes on as it was."
      : null,
  ];
  $("heads-intro").textContent = words.filter(Boolean).join(" ");
  const inOrder = found.toSorted((a, b) => (a.site === "path") - (b.site === "path"));
  showFigures("heads", inOrder.map(figure), report.n_heads);
}

/* ---------- The scale of colours ---------- */

function drawScale({ patch }) {
  $("scale").replaceChildren(
    h("i", { role: "img", "aria-label": "From orange at −1 over no colour at 0 to blue at 1" }),
    h("span", {}, "−1 or less: the opposite"),
    h("span", {}, "0: no effect"),
    h("span", {}, PATCHES[patch]?.[2] ?? "1 or more"),
    h("span", { class: "unmeasured" }, "not measured"),
  );
}
