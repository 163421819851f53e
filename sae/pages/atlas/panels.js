/* ---------- A feature in small charts ---------- */

const panel = (title, why, ...content) =>
  h("figure", { class: "panel" }, h("figcaption", {}, title, why ? h("small", {}, why) : null), ...content);

/* Bars over `values`; `tip(i)` says what the i-th is, `ends` what stands below the first and the last. */
function barChart(values, { title, height, ends, tip, scale = (value) => value }) {
  const host = h("div", { class: "bars" });
  const most = Math.max(...values.map(scale), 1e-12);
  responsive(host, (width) => {
    const bottom = height - 20;
    const left = (i) => (i / values.length) * width;
    const bars = values.map((value, i) => {
      const tall = value ? Math.max(1.5, (bottom - 4) * (scale(value) / most)) : 0;
      return svg("rect", {
        class: "bar",
        x: left(i) + 0.5,
        width: Math.max(0.5, left(i + 1) - left(i) - 1),
        y: bottom - tall,
        height: tall,
      });
    });
    const root = svg(
      "svg",
      { width, height, role: "img", "aria-label": title },
      svg("line", { class: "grid", x1: 0, x2: width, y1: bottom + 0.5, y2: bottom + 0.5 }),
      bars,
      svg("text", { x: 0, y: height - 4 }, ends[0]),
      svg("text", { x: width, y: height - 4, "text-anchor": "end" }, ends[1]),
    );
    root.addEventListener("pointermove", (event) => {
      const box = root.getBoundingClientRect();
      const i = Math.max(0, Math.min(values.length - 1, Math.floor(((event.clientX - box.left) / width) * values.length)));
      bars.forEach((bar, j) => bar.classList.toggle("here", i === j));
      showTip(event.clientX, box.top, ...tip(i));
    });
    root.addEventListener("pointerleave", () => {
      hideTip();
      bars.forEach((bar) => bar.classList.remove("here"));
    });
    return root;
  });
  return host;
}

function activationPanel(feature, { histogram }) {
  const most = world.max[feature];
  const bins = histogram.length;
  if (!histogram.some((times) => times)) return null;
  return panel(
    "How strongly it fires",
    "activations in equal steps, counts on a log scale",
    barChart(histogram, {
      title: "Histogram of activations",
      height: 104,
      ends: ["0", short(most)],
      scale: (value) => Math.log10(1 + value),
      tip: (i) => [`${count(histogram[i])} activations`, `above ${short((i / bins) * most)}, up to ${short(((i + 1) / bins) * most)}`],
    }),
  );
}

function positionPanel({ positions }) {
  if (!positions.length) return null;
  const size = world.manifest.context_size;
  const total = positions.reduce((a, b) => a + b, 0);
  const edge = (i) => Math.ceil((i * size) / positions.length);
  return panel(
    "Where in the text",
    "firings by position, in tenths of the window",
    barChart(positions, {
      title: "Firings by position in the context window",
      height: 84,
      ends: ["first token", `token ${count(size)}`],
      tip: (i) => [`${percent(total ? positions[i] / total : 0)} of its firings`, `positions ${edge(i)} to ${edge(i + 1) - 1}`],
    }),
  );
}

function tokenPanel({ tokens, strings }) {
  const rows = rowsOf(tokens, 3);
  if (!rows.length) return null;
  const most = Math.max(...rows.map(([, times]) => times), 1);
  return panel(
    "Tokens it fires on",
    "how many times, and on what share of the token’s occurrences",
    h(
      "ol",
      { class: "counts" },
      rows.map(([number, times, share]) =>
        h(
          "li",
          {},
          tokenLabel(strings[number]),
          h("i", { "--share": `${(100 * times) / most}%` }),
          h("span", { class: "figure" }, count(times)),
          h("span", { class: "figure" }, percent(share)),
        ),
      ),
    ),
  );
}

function logitPanels({ top, bottom, strings }) {
  const why = world.manifest.without_logits;
  if (!world.has_logits) return why ? panel("Promoted tokens are not known", why) : null;
  const rows = (flat) => rowsOf(flat, 2).map(([number, value]) => [strings[number], value]);
  return h(
    "div",
    { class: "logits" },
    logitList("Makes likelier", rows(top), "up"),
    logitList("Makes less likely", rows(bottom), "down"),
  );
}

/* ---------- Its relatives ---------- */

const KIN = [
  ["neighbours", 2, "Points the same way", "cosine of decoder directions", (row) => fixed(2)(row[1])],
  ["coactive", 3, "Fires on the same tokens", "tokens of both over tokens of either", (row) => percent(row[1])],
  ["correlated", 2, "Rises and falls with it", "Pearson correlation over all tokens", (row) => fixed(2)(row[1])],
];

function kinPanels(found) {
  // Others' dashboards do not say of all relatives whether there are none.
  const told = KIN.filter(([key]) => found[key].length || !world.manifest.imported);
  return told.map(([key, width, title, why, write]) => {
    const rows = rowsOf(found[key], width);
    const most = Math.max(...rows.map((row) => row[1]), 1e-9);
    return panel(
      title,
      why,
      rows.length
        ? h(
            "ol",
            { class: "kin" },
            rows.map((row) =>
              h(
                "li",
                {},
                h(
                  "a",
                  { href: `#f=${row[0]}`, "data-f": row[0], "data-more": row[2] ? `together on ${count(row[2])} tokens` : null },
                  h("span", { class: "name" }, labelOf(row[0])),
                  h("span", { class: "figure" }, write(row)),
                  h("i", { "--share": `${Math.max(0, (100 * row[1]) / most)}%` }),
                ),
              ),
            ),
          )
        : h("p", { class: "none" }, "None."),
    );
  });
}

/* A link to a feature, looked at before it is followed: its figures, then its strongest context. */
async function preview({ target }) {
  const link = target.closest?.("a[data-f]");
  if (!link) return;
  const feature = Number(link.dataset.f);
  const box = link.getBoundingClientRect();
  const lines = [...tipLines(feature), ...(link.dataset.more ? [link.dataset.more] : [])];
  const show = () => showTip(box.left, box.top, labelOf(feature), ...lines);
  show();
  const { contexts, strings } = await featureOf(feature).catch(() => ({ contexts: [] }));
  const best = contexts.find(([group]) => group === "top");
  if (!best || !link.matches(":hover, :focus") || $("tip").hidden) return;
  const [, , , peak, numbers] = best;
  const text = (from, to) => numbers.slice(Math.max(0, from), to).map((number) => visible(strings[number])).join("");
  const token = text(peak, peak + 1);
  const lead = token.startsWith(" ") ? " " : "";
  lines.push(`“… ${text(peak - 8, peak).trimStart()}${lead}⟨${token.trim()}⟩${text(peak + 1, peak + 6)} …”`);
  show();
}

function watchLinks(host) {
  for (const name of ["pointerover", "focusin"]) host.addEventListener(name, preview);
  for (const name of ["pointerout", "focusout"]) host.addEventListener(name, hideTip);
}
