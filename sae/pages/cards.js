/* ---------- Features: how often they fire, and a dozen of them ---------- */

function drawHistogram() {
  const { log10_edges: edges = [], counts = [] } = chosen?.density_histogram || {};
  $("histogram").parentElement.hidden = !counts.length;
  if (!counts.length) return;
  const range = (i) => `${percent(10 ** edges[i])} to ${percent(10 ** edges[i + 1])} of tokens`;
  responsive($("histogram"), (width) => {
    const frame = { left: 50, right: width - 10, bottom: 134 };
    const domain = [edges[0], edges[edges.length - 1]];
    const x = makeScale({ domain }, [], frame.left, frame.right, width < 480 ? 3 : 6);
    const y = makeScale({ domain: [0, Math.max(...counts, 1)] }, [], frame.bottom, 10, 3);
    const bars = counts.map((value, i) =>
      svg("rect", {
        class: "bar",
        x: x.at(edges[i]) + 1,
        width: Math.max(1, x.at(edges[i + 1]) - x.at(edges[i]) - 2),
        y: y.at(value),
        height: frame.bottom - y.at(value),
        onpointermove: (event) => showTip(event.clientX, event.clientY, `${count(value)} features`, range(i)),
        onpointerleave: hideTip,
      }),
    );
    const axes = drawAxes(
      { ...x, ticks: x.ticks.filter(Number.isInteger) },
      y,
      { x: { format: (tick) => percent(10 ** tick) }, y: { format: count } },
      frame,
    );
    const look = { width, height: 160, role: "img", "aria-label": "Histogram of firing frequency" };
    return svg("svg", look, axes.filter(Boolean), bars);
  });
}

/* A feature at a glance: its name, what it promotes, where it fires most strongly. */
function featureCard(card) {
  const rate = `feature ${card.index} · fires on ${percent(card.density)} of tokens, at most ${short(card.max)}`;
  return h(
    "article",
    { class: "card" },
    h("h3", {}, h("a", { href: `${atlasOf(chosen)}#f=${card.index}` }, visible(card.label))),
    h("p", { class: "rate" }, rate),
    card.top_tokens.length ? h("p", { class: "chips" }, card.top_tokens.map(tokenLabel)) : null,
    card.contexts.map((context) =>
      h(
        "div",
        { class: "context" },
        h("p", { class: "tokens", dir: "auto" }, shadedTokens(context.tokens, context.acts, card.max, context.peak)),
      ),
    ),
  );
}

function drawFeatures() {
  const cards = read("features");
  if (!reveal("features", atlasOf(chosen))) return;
  const all = chosen ? `All ${count(chosen.d_sae)} features of ${chosen.id} are` : "All features are";
  $("features-intro").append(
    `${all} in its atlas, with a map, a search and a page for each. `,
    "A feature is worth a name when the places where it fires have something in common, and when the tokens that it makes likelier agree.",
  );
  $("atlas").href = atlasOf(chosen);
  drawHistogram();
  $("cards-title").hidden = !cards.length;
  $("cards").append(...cards.map(featureCard));
  watchTokens($("cards"));
}
