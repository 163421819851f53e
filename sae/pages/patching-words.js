/* ---------- Data ---------- */

const report = JSON.parse($("data-report").textContent);
const groups = report.groups;
const groupOf = (number) => groups.find(({ group }) => group === number);

/* ---------- What methods, directions and sites are ---------- */

const METHODS = {
  exact: ["Exact patching", "Each place was patched and the model run on from there: this is the effect itself."],
  relp: [
    "RelP",
    "An estimate for all places from one backward pass that follows the rules of relevance propagation instead of plain gradients.",
  ],
  ig: [
    "Integrated gradients",
    "An estimate for all places from gradients averaged along the way from one prompt’s activations to the other’s.",
  ],
  plain: [
    "Plain gradients",
    "An estimate for all places from one backward pass: the gradient there times the difference of the activations.",
  ],
};
const PATCHES = {
  denoising: [
    "Clean into corrupt",
    "Activations of the clean prompt are put into the run on the corrupt one (denoising). 0: the answer stays as wrong as it was. 1: the clean answer is wholly restored.",
    "1 or more: restored",
  ],
  noising: [
    "Corrupt into clean",
    "Activations of the corrupt prompt are put into the run on the clean one (noising). 0: the answer stays right. 1: it is wholly destroyed.",
    "1 or more: destroyed",
  ],
};
const SITES = {
  residual: ["Residual stream", "all that the model carries on at a token after a layer"],
  attention: ["Attention", "what the attention of a layer adds"],
  mlp: ["MLP", "what the MLP of a layer adds"],
  head: ["Heads", "what one head writes, at all tokens"],
  features: ["All features", "the reconstruction of the dictionary alone"],
  error: ["Error term", "what the dictionary leaves over"],
  "features+error": ["Both together", "the whole activation"],
  feature: ["Single features", "one feature, at all tokens"],
  path: ["Paths", "what a head tells one receiver"],
};
const siteName = (site) => SITES[site]?.[0] ?? site;
/* Of one place, where a site is called after many. */
const placeName = (site) => ({ head: "Head", feature: "Feature", path: "Path" })[site] ?? siteName(site);
const methodName = (method) => METHODS[method]?.[0] ?? method;
const patchName = (patch) => PATCHES[patch]?.[0] ?? patch;

/* ---------- Places and their effects ---------- */

const COLUMNS = ["layer", "head", "position", "feature", "effect", "low", "high", "n"];
const placeKey = (cell) =>
  [cell.site, cell.receiver, cell.layer, cell.head, cell.position, cell.feature].join("|");

/* The effects of one kind as cells, made when they are first asked for. */
function cellsOf(series) {
  const { method, patch, site, receiver, group } = series;
  series.cells ??= series.effect
    .map((_, i) => ({
      ...{ method, patch, site, receiver, group },
      ...Object.fromEntries(COLUMNS.map((name) => [name, series[name]?.[i] ?? null])),
    }))
    .filter(({ effect }) => known(effect));
  return series.cells;
}

const seriesAt = ({ method, patch, group }, ...sites) =>
  report.effects.filter(
    (one) =>
      one.method === method && one.patch === patch && one.group === group && (!sites.length || sites.includes(one.site)),
  );
const cellsAt = (state, ...sites) => seriesAt(state, ...sites).flatMap(cellsOf);

/* ---------- Places and effects in words ---------- */

const digitsOf = (value) => (value !== 0 && Math.abs(value) < 0.0995 ? 3 : 2);
const effectText = (value, digits = digitsOf(value)) => {
  if (!known(value)) return "–";
  const text = Math.abs(value).toFixed(digits);
  return `${value < 0 && Number(text) ? "−" : ""}${text}`;
};
/* The ends of an interval with as many digits as its middle; nothing where there is none. */
const intervalText = ({ effect, low, high }) =>
  known(low) && known(high) ? `[${[low, high].map((end) => effectText(end, digitsOf(effect))).join(", ")}]` : "";
const pairs = (n) => `${count(n)} pair${n === 1 ? "" : "s"}`;

const tokenAt = (group, position) => groupOf(group).tokens[position] ?? `${position}`;
/* A space at its start is kept, and no line ends there. */
const quoted = (text) => `“\u2068${visible(text).replace(/^ /, "\u00a0")}\u2069”`;
const positionText = (cell) => `${quoted(tokenAt(cell.group, cell.position))}, position ${cell.position}`;
const featureLabel = (feature) => report.dictionary?.labels?.[feature];
const featureName = (feature) => {
  const label = featureLabel(feature);
  return `${feature}${label ? ` ${quoted(label)}` : ""}`;
};

/* Where a cell is, without its site. */
function whereText(cell) {
  const parts = [
    known(cell.layer) ? `layer ${cell.layer}` : null,
    known(cell.head) ? `head ${cell.head}` : null,
    known(cell.feature) ? featureName(cell.feature) : null,
    known(cell.position) ? positionText(cell) : null,
    known(cell.receiver) ? `to ${visible(cell.receiver)}` : null,
  ];
  return parts.filter(Boolean).join(", ");
}

/* What the place is called where a hook is asked for. */
function hookOf({ site, layer }) {
  if (!known(layer)) return report.dictionary?.hook_name ?? null;
  const pattern = report.hook_names[site === "path" ? "head" : site];
  return pattern ? pattern.replace("{layer}", layer) : null;
}

function cellTip(cell) {
  const effect = ["effect", effectText(cell.effect), intervalText(cell)].filter(Boolean).join(" ");
  return [
    placeName(cell.site),
    whereText(cell),
    `${effect}, ${known(cell.low) ? "mean of " : ""}${pairs(cell.n)}`,
    hookOf(cell),
  ].filter(Boolean);
}

/* ---------- Colour ---------- */

/* Blank at 0, strongest at 1 and -1 and beyond; the two hues part for every kind of sight. */
const effectLook = (effect) => ({
  "--pole": effect < 0 ? "var(--against)" : "var(--with)",
  "--share": `${(100 * Math.min(1, Math.abs(effect))).toFixed(1)}%`,
});
