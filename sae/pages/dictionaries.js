/* ---------- The dictionaries compared ---------- */

/* What there is to compare: what `Pareto.for_page` gives, and in a report all else; see `takeReport`. */
let report = {};
/* Architectures, and what else parts a sweep into lines of their own. */
let families = [];
let dictionaries = [];
/* The recommended one, and the one that the pictures mark: in an atlas its own. */
let chosen = null;
let marked = null;
let hues = new Map();

const familyHue = (family) =>
  families.length > 1 ? `var(--c${families.indexOf(family) % 6})` : "var(--muted)";

/* The address of a dictionary's atlas, if it has one. */
const atlasOf = (entry) => report.atlases?.[entry?.id];

function takeReport(found) {
  report = found;
  const rows = report.dictionaries || [];
  families = [...new Set(rows.map((entry) => entry.series))];
  const order = (entry) => families.indexOf(entry.series);
  dictionaries = [...rows].sort((a, b) => order(a) - order(b) || (a.l0 ?? 0) - (b.l0 ?? 0));
  chosen = dictionaries.find((entry) => entry.id === report.chosen?.id);
  marked = dictionaries.find((entry) => entry.id === report.current) ?? chosen;
  hues = new Map(dictionaries.map((entry, i) => [entry.id, hueAmong(entry, i)]));
}

/* A hue for each dictionary: of a few its own, of many a shade of its family's. */
function hueAmong(entry, i) {
  if (families.length === 1 && dictionaries.length <= 6) return `var(--c${i})`;
  const kin = dictionaries.filter((other) => other.series === entry.series);
  const share = 100 - (55 * (kin.length - 1 - kin.indexOf(entry))) / Math.max(1, kin.length - 1);
  const hue = families.length > 1 ? familyHue(entry.series) : "var(--accent)";
  return `color-mix(in oklab, ${hue} ${share.toFixed(0)}%, var(--paper))`;
}
