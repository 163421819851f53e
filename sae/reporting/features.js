/* ---------- Features: data ---------- */

const features = read("features");
const rowOf = new Map(features.index.map((number, row) => [number, row]));
const browser = { rows: [], shown: 0, current: -1, query: "" };
const tokensOf = (pairs) => pairs.filter((_, i) => i % 2 === 0).map((number) => features.strings[number]);
const alive = (row) => features.contexts[row].length > 0 || features.density[row] > 0;

/* One string a feature: looking through all of them takes a few milliseconds. */
const searchable = (() => {
  let texts = null;
  return () =>
    (texts ??= features.index.map((_, row) => ({
      logits: tokensOf(features.top[row]).join("\n").toLowerCase(),
      contexts: features.contexts[row]
        .map((context) => context[3].map((number) => features.strings[number]).join(""))
        .join("\n")
        .toLowerCase(),
    })));
})();

/* Clearest: the share of contexts that the promoted tokens speak of. */
const ORDERS = {
  clear: (a, b) =>
    (features.agreement[b] ?? 0) - (features.agreement[a] ?? 0) ||
    (features.max[b] ?? 0) - (features.max[a] ?? 0),
  max: (a, b) => (features.max[b] ?? 0) - (features.max[a] ?? 0),
  frequent: (a, b) => features.density[b] - features.density[a],
  rare: (a, b) => (features.density[a] || Infinity) - (features.density[b] || Infinity) || a - b,
  index: (a, b) => features.index[a] - features.index[b],
};

/* Best matches first: the number itself, then promoted tokens, then contexts. */
function findRows(query, order) {
  const sorted = features.index.map((_, row) => row).sort(order);
  if (!query) return sorted;
  const tiers = [[], [], []];
  const texts = searchable();
  for (const row of sorted) {
    if (String(features.index[row]) === query.replace(/^#/, "")) tiers[0].push(row);
    else if (texts[row].logits.includes(query)) tiers[1].push(row);
    else if (texts[row].contexts.includes(query)) tiers[2].push(row);
  }
  return tiers.flat();
}

/* ---------- Features: list ---------- */

function refreshList() {
  browser.query = $("search").value.trim().toLowerCase();
  browser.rows = findRows(browser.query, ORDERS[$("order").value]);
  browser.shown = 0;
  $("list").replaceChildren();
  $("list").scrollTop = 0;
  growList();
  const all = features.index.length;
  $("found").textContent = browser.query
    ? `${count(browser.rows.length)} of ${count(all)} features mention “${browser.query}”`
    : `${count(all)} features`;
  drawSteps();
}

/* Only what can be seen is in the document; scrolling adds to it. */
function growList(upTo = browser.shown + 60) {
  const next = browser.rows.slice(browser.shown, upTo);
  browser.shown += next.length;
  $("list").append(...next.map(listRow));
}

function listRow(row) {
  const number = features.index[row];
  const tokens = tokensOf(features.top[row]).slice(0, 4);
  return h(
    "li",
    {},
    h(
      "a",
      {
        href: `#feature-${number}`,
        "data-row": row,
        "aria-current": row === browser.current ? "true" : null,
      },
      h("span", { class: "number" }, number),
      h("span", { class: "tokens" }, tokens.map(tokenLabel)),
      h("span", { class: "rate" }, alive(row) ? percent(features.density[row]) : "dead"),
    ),
  );
}

function moveInList(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const links = [...$("list").querySelectorAll("a")];
  const next = links[links.indexOf(document.activeElement) + step];
  event.preventDefault();
  (next || (step < 0 ? $("search") : null))?.focus();
}

function searchKeys(event) {
  if (event.key === "Enter" && browser.rows.length)
    location.hash = `feature-${features.index[browser.rows[0]]}`;
  else if (event.key === "ArrowDown") moveInList(event);
}

function surprise() {
  const candidates = browser.rows.filter((row) => alive(row) && row !== browser.current);
  if (candidates.length)
    location.hash = `feature-${features.index[candidates[Math.floor(Math.random() * candidates.length)]]}`;
}

/* ---------- Features: detail ---------- */

function showFeature(row) {
  browser.current = row;
  $("list").querySelector("[aria-current]")?.removeAttribute("aria-current");
  const place = browser.rows.indexOf(row);
  if (place >= browser.shown && place < 600) growList(place + 20);
  const link = $("list").querySelector(`[data-row="${row}"]`);
  if (link) {
    link.setAttribute("aria-current", "true");
    const list = $("list");
    const top = link.offsetTop;
    if (top < list.scrollTop || top + link.offsetHeight > list.scrollTop + list.clientHeight)
      list.scrollTop = top - 60;
  }
  const density = features.density[row];
  $("detail").replaceChildren(
    h(
      "div",
      { class: "title" },
      h("h3", {}, `Feature ${features.index[row]}`),
      h("span", { class: "steps", id: "steps" }),
    ),
    h(
      "dl",
      { class: "facts" },
      fact(
        "Fires on",
        alive(row) ? percent(density) : "nothing",
        density > 0 ? `1 token in ${count(1 / density)}` : "",
      ),
      fact("Strongest activation", short(features.max[row])),
      fact("Mean when active", short(features.mean[row])),
    ),
    h(
      "div",
      { class: "logits" },
      logitList("Writing it makes these tokens likelier", features.top[row], "up"),
      logitList("… and these less likely", features.bottom[row], "down"),
    ),
    h("h4", {}, "Where it fires most strongly"),
    ...(features.contexts[row].length
      ? features.contexts[row].map((context) => drawContext(context, features.max[row]))
      : [
          h(
            "p",
            { class: "empty" },
            "This feature never fired on the text that was read: a dead feature. It costs capacity and explains nothing.",
          ),
        ]),
  );
  drawSteps();
  markDensity();
}

const fact = (name, value, more) =>
  h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("small", {}, more) : null));

function logitList(title, pairs, kind) {
  const values = pairs.filter((_, i) => i % 2);
  const most = Math.max(...values.map((value) => Math.abs(value ?? 0)), 1e-9);
  return h(
    "div",
    { class: kind },
    h("h4", {}, title),
    h(
      "ol",
      {},
      tokensOf(pairs).map((token, i) => {
        const bar = h("i");
        bar.style.width = `${(100 * Math.abs(values[i] ?? 0)) / most}%`;
        return h("li", {}, tokenLabel(token), bar, h("span", { class: "figure" }, logit(values[i])));
      }),
    ),
  );
}

function drawContext([sequence, position, peak, tokens, acts], most) {
  const levels = new Map();
  for (let i = 0; i < acts.length; i += 2) levels.set(acts[i], acts[i + 1]);
  const spans = tokens.map((number, i) => {
    const token = features.strings[number];
    const level = levels.get(i);
    if (!level) return h("span", { "data-tip": `${visible(token)}\n0` }, visible(token));
    return h(
      "span",
      {
        class: i === peak ? "act peak" : "act",
        tabindex: 0,
        "--a": level / 255,
        "data-tip": `${visible(token)}\n${short((level / 255) * most)}`,
      },
      visible(token),
    );
  });
  const strongest = short(((levels.get(peak) ?? 0) / 255) * most);
  return h(
    "div",
    { class: "context" },
    h("p", {}, spans),
    h("footer", {}, `activation ${strongest} · text ${count(sequence)}, token ${count(position)}`),
  );
}

function tokenTip(event) {
  const token = event.target.closest?.("[data-tip]");
  if (!token) return hideTip();
  const [text, value] = token.dataset.tip.split("\n");
  const box = token.getBoundingClientRect();
  showTip(box.left, box.top, `“${text}”`, `activation ${value}`);
}

/* Neighbours in the list as it stands, searched and ordered. */
function drawSteps() {
  const place = browser.rows.indexOf(browser.current);
  const link = (row, text, rel) =>
    known(row) ? h("a", { href: `#feature-${features.index[row]}`, rel }, text) : null;
  $("steps")?.replaceChildren(
    ...[
      place > 0 ? link(browser.rows[place - 1], "← Previous", "prev") : null,
      link(browser.rows[place + 1], "Next →", "next"),
    ].filter(Boolean),
  );
}

/* ---------- Features: how often they fire ---------- */

function drawHistogram() {
  const { log10_edges: edges = [], counts = [] } = chosen?.density_histogram || {};
  $("histogram").parentElement.hidden = !counts.length;
  if (!counts.length) return;
  const range = (i) => `${percent(10 ** edges[i])} to ${percent(10 ** edges[i + 1])} of tokens`;
  responsive($("histogram"), (width) => {
    const frame = { left: 50, right: width - 10, bottom: 134 };
    const x = makeScale(
      { domain: [edges[0], edges[edges.length - 1]] },
      [],
      frame.left,
      frame.right,
      width < 480 ? 3 : 6,
    );
    const y = makeScale({ domain: [0, Math.max(...counts, 1)] }, [], frame.bottom, 10, 3);
    const whole = x.ticks.filter(Number.isInteger);
    const bars = counts.map((value, i) =>
      svg("rect", {
        class: "bar",
        "data-low": edges[i],
        "data-high": edges[i + 1],
        x: x.at(edges[i]) + 1,
        width: Math.max(1, x.at(edges[i + 1]) - x.at(edges[i]) - 2),
        y: y.at(value),
        height: frame.bottom - y.at(value),
        onpointermove: (event) => showTip(event.clientX, event.clientY, `${count(value)} features`, range(i)),
        onpointerleave: hideTip,
      }),
    );
    const axes = drawAxes(
      { ...x, ticks: whole },
      y,
      { x: { format: (tick) => percent(10 ** tick) }, y: { format: count } },
      frame,
    );
    queueMicrotask(markDensity);
    return svg(
      "svg",
      { width, height: 160, role: "img", "aria-label": "Histogram of firing frequency" },
      axes,
      bars,
    );
  });
}

function markDensity() {
  const density = features.density[browser.current];
  const place = density > 0 ? Math.log10(density) : -Infinity;
  for (const bar of $("histogram").querySelectorAll(".bar")) {
    bar.classList.toggle("here", place >= Number(bar.dataset.low) && place < Number(bar.dataset.high));
  }
}

function followHash() {
  const row = rowOf.get(Number(/^#feature-(\d+)$/.exec(location.hash)?.[1]));
  if (!known(row)) return;
  const { rel } = document.activeElement;
  showFeature(row);
  if (rel) $("steps").querySelector(`[rel=${rel}]`)?.focus({ preventScroll: true });
  const top = $("detail").getBoundingClientRect().top;
  if (top < 0 || top > innerHeight * 0.6) $("detail").scrollIntoView();
}

function drawFeatures() {
  if (!reveal("features", features.index)) return;
  const dead = features.index.filter((_, row) => !alive(row)).length;
  $("features-intro").append(
    `All ${count(features.index.length)} features of ${report.chosen?.id ?? "the chosen dictionary"}, ${count(dead)} of them dead. `,
    "A feature is worth a name when the places where it fires have something in common, and when the tokens that it makes likelier agree.",
  );
  drawHistogram();
  refreshList();
  $("search").addEventListener("input", refreshList);
  $("search").addEventListener("keydown", searchKeys);
  $("order").addEventListener("change", refreshList);
  $("surprise").addEventListener("click", surprise);
  $("list").addEventListener("keydown", moveInList);
  $("list").addEventListener(
    "scroll",
    ({ target }) => {
      if (target.scrollTop + target.clientHeight > target.scrollHeight - 400) growList();
    },
    { passive: true },
  );
  for (const name of ["pointerover", "click", "focusin"]) $("detail").addEventListener(name, tokenTip);
  for (const name of ["pointerleave", "focusout"]) $("detail").addEventListener(name, hideTip);
  showFeature(rowOf.get(report.steering?.[0]?.feature) ?? browser.rows[0]);
  addEventListener("hashchange", followHash);
  // A link to the address that is open already changes no hash, but should still lead there.
  addEventListener("click", ({ target }) => {
    if (target.closest?.("a")?.hash.startsWith("#feature-") && target.closest("a").hash === location.hash)
      followHash();
  });
  followHash();
}
