/* ---------- Tooltip ---------- */

function showTip(x, y, title, ...lines) {
  const tip = $("tip");
  tip.replaceChildren(h("b", {}, title), lines.join("\n"));
  tip.hidden = false;
  // Where it was last would press it together at the edge.
  tip.style.left = tip.style.top = "0px";
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y - box.height - 14 < 8 ? y + 18 : y - box.height - 14}px`;
}
const hideTip = () => {
  $("tip").hidden = true;
};
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});

/* ---------- Charts ---------- */

/* Drawn at the width there is, so that text keeps its size on a phone; not while there is none to be seen. */
function responsive(host, draw) {
  let width = 0;
  const redraw = () => {
    if (!host.clientWidth || host.clientWidth === width) return;
    width = host.clientWidth;
    host.replaceChildren(draw(width));
  };
  new ResizeObserver(redraw).observe(host);
  redraw();
}

function niceTicks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((unit) => unit * power).find((unit) => unit >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low, high, wanted) {
  const decades = Array.from(
    { length: Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 },
    (_, i) => 10 ** (Math.floor(Math.log10(low)) + i),
  );
  const within = (units) =>
    decades
      .flatMap((decade) => units.map((unit) => Number((unit * decade).toPrecision(6))))
      .filter((tick) => tick >= low && tick <= high);
  const choices = [within([1, 2, 5]), within([1, 3]), within([1])];
  const ticks = choices.find((choice) => choice.length <= wanted + 2) || choices[2];
  return ticks.length < 2 ? niceTicks(low, high, wanted) : ticks;
}

/* Zero, and as many of 1, 2, 5, 10, ... as have room where places are square roots. */
function rootTicks(low, high, wanted) {
  const gap = Math.sqrt(high) / (wanted + 1);
  const units = Array.from({ length: 8 }, (_, i) => 10 ** (Math.floor(Math.log10(high)) - i));
  const falling = units.flatMap((unit) => [5, 2, 1].map((times) => Number((times * unit).toPrecision(6))));
  const ticks = [0];
  let last = Infinity;
  for (const tick of falling.filter((value) => value <= high)) {
    if (last - Math.sqrt(tick) < gap || Math.sqrt(tick) < gap) continue;
    ticks.push(tick);
    last = Math.sqrt(tick);
  }
  return ticks;
}

/* How values of an axis become places: as they are, as logarithms, or as square roots, which know zero too. */
function wayOf(axis) {
  if (axis.log) return [Math.log10, (place) => 10 ** place, logTicks];
  if (axis.root) return [(value) => Math.sqrt(Math.max(0, value)), (place) => place ** 2, rootTicks];
  return [(value) => value, (place) => place, niceTicks];
}

/* Data values to pixels. `axis` has log or root, domain or from, pad (share of the span), ticks, whole. */
function makeScale(axis, values, from, to, wanted) {
  const [into, out, ticksOf] = wayOf(axis);
  let [low, high] = (axis.domain || [Math.min(...values), Math.max(...values)]).map(into);
  if (known(axis.from)) [low, high] = [axis.from, Math.max(high, axis.from + 0.01)];
  if (high - low < 1e-9) [low, high] = axis.log ? [low - 0.2, high + 0.2] : [low - 0.5, high + 0.5];
  const pad = axis.domain ? 0 : (axis.pad ?? 0.06) * (high - low);
  [low, high] = [axis.from ?? low - pad, high + pad];
  const at = (value) => from + ((into(value) - low) / (high - low)) * (to - from);
  const found = axis.ticks || ticksOf(out(low), out(high), wanted);
  const ticks = axis.whole ? found.filter(Number.isInteger) : found;
  const ends = { from: out(low), to: out(high) };
  return { at, ...ends, ticks: ticks.filter((tick) => into(tick) >= low - 1e-9 && into(tick) <= high + 1e-9) };
}

function drawAxes(x, y, spec, frame) {
  const { left, right, bottom } = frame;
  return [
    ...y.ticks.map((tick) =>
      svg(
        "g",
        {},
        svg("line", { class: "grid", x1: left, x2: right, y1: y.at(tick), y2: y.at(tick) }),
        svg("text", { x: left - 8, y: y.at(tick) + 4, "text-anchor": "end" }, (spec.y.format || short)(tick)),
      ),
    ),
    ...x.ticks.map((tick) =>
      svg("text", { x: x.at(tick), y: bottom + 18, "text-anchor": "middle" }, (spec.x.format || short)(tick)),
    ),
    svg("line", {
      class: spec.zero ? "zero" : "grid",
      x1: left,
      x2: right,
      y1: spec.zero ? y.at(0) : bottom,
      y2: spec.zero ? y.at(0) : bottom,
    }),
    ...drawLimits(x, y, spec, frame),
    spec.x.label
      ? svg("text", { x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle" }, spec.x.label)
      : null,
  ];
}

/* What should not be passed: `mark` of an axis, with `limit` to say so. */
function drawLimits(x, y, spec, { left, right, top, bottom }) {
  const marks = [];
  if (spec.x.mark > x.from && spec.x.mark < x.to) {
    const at = x.at(spec.x.mark);
    marks.push(svg("line", { class: "limit", x1: at, x2: at, y1: top, y2: bottom }));
    if (spec.x.limit) marks.push(svg("text", { x: at, y: top - 6, "text-anchor": "middle" }, spec.x.limit));
  }
  if (spec.y.mark > y.from && spec.y.mark < y.to) {
    const at = y.at(spec.y.mark);
    marks.push(svg("line", { class: "limit", x1: left, x2: right, y1: at, y2: at }));
    if (spec.y.limit) marks.push(svg("text", { x: right, y: at - 5, "text-anchor": "end" }, spec.y.limit));
  }
  return marks;
}

/* A chart of series `{name, hue, points: [{x, y, xs, ys, tip(), label, name, strong, lead, hue, onlit}], line,
   dots, dashed, faint, tinted}`; the line goes through `line`, else through the points. `xs` and `ys` are the
   ends of an interval; a label with `lead` may stand far off, tied to its point. */
function plot(host, spec) {
  const usable = (point) =>
    known(point.x) &&
    known(point.y) &&
    (!spec.x.log || point.x > 0) &&
    (!spec.y.log || point.y > 0) &&
    point.y >= (spec.y.floor ?? -Infinity);
  const series = spec.series.map((entry) => ({ ...entry, points: entry.points.filter(usable) }));
  const points = series.flatMap((entry) => entry.points);
  if (points.length) responsive(host, (width) => drawPlot(width, spec, series, points));
  else host.replaceChildren(h("p", { class: "note" }, "No figures."));
}

function drawPlot(width, spec, series, points) {
  const top = spec.x.limit ? 24 : 12;
  const frame = { left: 50, right: width - 10, top, bottom: spec.height - (spec.x.label ? 46 : 26) };
  const x = makeScale(
    spec.x,
    points.flatMap((point) => [point.x, ...(point.xs || [])]),
    frame.left,
    frame.right,
    width < 480 ? 4 : 6,
  );
  const y = makeScale(
    spec.y,
    [...points.flatMap((point) => [point.y, ...(point.ys || [])]), ...(spec.zero ? [0] : [])],
    frame.bottom,
    frame.top,
    spec.height < 240 ? 4 : 6,
  );
  const ring = svg("circle", { class: "ring", r: 8, visibility: "hidden" });
  const root = svg("svg", { width, height: spec.height, role: "group", "aria-label": spec.title });
  const light = (point) => {
    points.forEach((other) => other.onlit?.(other === point));
    ring.setAttribute("visibility", point ? "visible" : "hidden");
    if (!point) return hideTip();
    const box = root.getBoundingClientRect();
    ring.setAttribute("cx", x.at(point.x));
    ring.setAttribute("cy", y.at(point.y));
    showTip(box.left + x.at(point.x), box.top + y.at(point.y), ...point.tip());
  };
  const nearest = (event) => {
    const box = root.getBoundingClientRect();
    const gap = (point) =>
      Math.hypot(x.at(point.x) - (event.clientX - box.left), (y.at(point.y) - (event.clientY - box.top)) / 2);
    light(points.reduce((best, point) => (gap(point) < gap(best) ? point : best)));
  };
  root.append(
    ...drawAxes(x, y, spec, frame).filter(Boolean),
    ...series.flatMap((entry) => drawSeries(entry, x, y, light)),
    ...drawLabels(series, x, y, frame),
    ring,
  );
  root.addEventListener("pointermove", nearest);
  root.addEventListener("pointerdown", nearest);
  root.addEventListener("pointerleave", () => light(null));
  return root;
}

const pathOf = (entry, x, y) => (entry.line || entry.points).map((point) => [x.at(point.x), y.at(point.y)]);

function drawSeries(entry, x, y, light) {
  const kind = `line${entry.dashed ? " dashed" : ""}${entry.faint ? " faint" : ""}`;
  const path = pathOf(entry, x, y)
    .map(([left, top], i) => `${i ? "L" : "M"}${left.toFixed(1)} ${top.toFixed(1)}`)
    .join("");
  const spans = entry.points.flatMap((point) =>
    spansOf(point, x, y).map(([[x1, y1], [x2, y2]]) =>
      svg("line", { class: "span", "--hue": point.hue || entry.hue, x1, x2, y1, y2 }),
    ),
  );
  const dots = entry.dots
    ? entry.points.map((point) => drawDot(point, x.at(point.x), y.at(point.y), entry.hue, light))
    : [];
  return [svg("path", { class: kind, d: path, "--hue": entry.hue }), ...spans, ...dots];
}

/* The cross of a point's intervals, as paths. */
function spansOf({ x: across, y: up, xs, ys }, x, y) {
  const level = (xs || []).map((end) => [x.at(end), y.at(up)]);
  const upright = (ys || []).map((end) => [x.at(across), y.at(end)]);
  return [level, upright].filter((path) => path.length);
}

function drawDot(point, left, top, hue, light) {
  return svg("circle", {
    class: point.strong ? "dot strong" : "dot",
    cx: left,
    cy: top,
    r: point.strong ? 7 : 5,
    tabindex: 0,
    role: "img",
    "aria-label": point.tip().join(", "),
    "--hue": point.hue || hue,
    onfocus: () => light(point),
    onblur: () => light(null),
  });
}

/* ---------- Labels of points ---------- */

/* From the point to the label's baseline, the best first. */
const PLACES = [
  [9, 18, "start"],
  [9, -9, "start"],
  [-9, -9, "end"],
  [-9, 18, "end"],
  [0, -13, "middle"],
  [0, 23, "middle"],
  [12, 4, "start"],
  [-12, 4, "end"],
];
/* Further off, the nearest first. */
const FAR = [34, 58, 84, 112, 144].flatMap((far) => [
  [far, 4, "start"],
  [0.8 * far, -0.6 * far, "start"],
  [0.8 * far, 0.6 * far, "start"],
  [0, -far, "middle"],
  [0, far, "middle"],
  [-0.8 * far, -0.6 * far, "end"],
  [-0.8 * far, 0.6 * far, "end"],
  [-far, 4, "end"],
]);
const SHARE_BEFORE = { start: 0, middle: 0.5, end: 1 };
const within = (box, [left, top]) => left > box[0] && left < box[2] && top > box[1] && top < box[3];
const overlap = (a, b) => a[0] < b[2] && a[2] > b[0] && a[1] < b[3] && a[3] > b[1];

function labelBox(text, strong, left, top, [right, down, anchor]) {
  const width = (strong ? 7.1 : 6.4) * text.length;
  const start = left + right - SHARE_BEFORE[anchor] * width;
  return [start, top + down - 11, start + width, top + down + 4];
}

/* The best place for a label among those that are offered; null if there is no room. */
function placeOf({ point, left, top }, places, frame, taken, lines) {
  const boxes = places.map((place) => [place, labelBox(point.label, point.strong, left, top, place)]);
  const inside = boxes.filter(
    ([, box]) => box[0] > frame.left - 4 && box[2] < frame.right + 10 && box[1] > -4 && box[3] < frame.bottom,
  );
  const free = inside.filter(([, box]) => !taken.some((other) => overlap(box, other)));
  const crossing = (box) => lines.filter((spot) => within(box, spot)).length;
  const [best] = free.toSorted((a, b) => crossing(a[1]) - crossing(b[1]));
  return best || (point.strong && places === PLACES ? inside[0] || boxes[0] : null);
}

/* Each label where there is room for it, once for what differs in its seed alone; a strong one always. */
function drawLabels(series, x, y, frame) {
  const placed = series.flatMap((entry, i) =>
    entry.points.map((point) => ({
      point,
      tint: entry.tinted ? entry.hue : "",
      key: `${i} ${point.name || point.label}`,
      left: x.at(point.x),
      top: y.at(point.y),
    })),
  );
  const spans = series.flatMap((entry) => entry.points.flatMap((point) => spansOf(point, x, y)));
  const lines = [...series.map((entry) => pathOf(entry, x, y)), ...spans].flatMap(along);
  const taken = placed.map(({ left, top }) => [left - 6, top - 6, left + 6, top + 6]);
  const named = new Set();
  return placed
    .filter(({ point }) => point.label)
    .sort((a, b) => Boolean(b.point.strong) - Boolean(a.point.strong) || a.left - b.left)
    .flatMap((one) => {
      const { point, tint, key, left, top } = one;
      const near = placeOf(one, PLACES, frame, taken, lines);
      const found = near || (point.lead ? placeOf(one, FAR, frame, taken, lines) : null);
      if (!found || named.has(key)) return [];
      named.add(key);
      const [[right, down, anchor], box] = found;
      taken.push([box[0] - 5, box[1], box[2] + 5, box[3]]);
      const kind = `label${point.strong ? " strong" : ""}${tint ? " tinted" : ""}`;
      const look = { class: kind, "--hue": tint, "text-anchor": anchor };
      const text = svg("text", { ...look, x: left + right, y: top + down }, point.label);
      if (near) return [text];
      const end = { x2: left + right, y2: top + down - 4 };
      return [svg("line", { class: "lead", x1: left, y1: top, ...end }), text];
    });
}

/* Spots some pixels apart on a path. */
function along(path) {
  return path.slice(1).flatMap(([right, bottom], i) => {
    const [left, top] = path[i];
    const n = Math.ceil(Math.hypot(right - left, bottom - top) / 5);
    return Array.from({ length: n }, (_, j) => [
      left + ((right - left) * j) / n,
      top + ((bottom - top) * j) / n,
    ]);
  });
}
