/* ---------- Tooltip ---------- */

function showTip(x, y, title, ...lines) {
  const tip = $("tip");
  tip.replaceChildren(h("b", {}, title), lines.join("\n"));
  tip.hidden = false;
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

/* Drawn at the width there is, so that text keeps its size on a phone. */
function responsive(host, draw) {
  let width = 0;
  const redraw = () => {
    if (host.clientWidth === width) return;
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

/* Data values to pixels. `axis` has log, domain, pad (share of the span), ticks. */
function makeScale(axis, values, from, to, wanted) {
  const into = axis.log ? Math.log10 : (value) => value;
  const out = axis.log ? (value) => 10 ** value : (value) => value;
  let [low, high] = (axis.domain || [Math.min(...values), Math.max(...values)]).map(into);
  if (high - low < 1e-9) [low, high] = axis.log ? [low - 0.2, high + 0.2] : [low - 0.5, high + 0.5];
  const pad = axis.domain ? 0 : (axis.pad ?? 0.06) * (high - low);
  [low, high] = [low - pad, high + pad];
  const at = (value) => from + ((into(value) - low) / (high - low)) * (to - from);
  const ticks = axis.ticks || (axis.log ? logTicks : niceTicks)(out(low), out(high), wanted);
  return { at, ticks: ticks.filter((tick) => into(tick) >= low - 1e-9 && into(tick) <= high + 1e-9) };
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
    spec.x.label
      ? svg("text", { x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle" }, spec.x.label)
      : null,
  ];
}

/* A chart of series `{name, hue, points: [{x, y, tip(), label, strong, hue, onlit}], dots, dashed, faint}`. */
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
  const frame = { left: 50, right: width - 10, top: 12, bottom: spec.height - (spec.x.label ? 46 : 26) };
  const x = makeScale(
    spec.x,
    points.map((point) => point.x),
    frame.left,
    frame.right,
    width < 480 ? 4 : 6,
  );
  const y = makeScale(
    spec.y,
    [...points.map((point) => point.y), ...(spec.zero ? [0] : [])],
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
    ...series.flatMap((entry) => drawSeries(entry, x, y, frame, light)),
    ring,
  );
  root.addEventListener("pointermove", nearest);
  root.addEventListener("pointerdown", nearest);
  root.addEventListener("pointerleave", () => light(null));
  return root;
}

function drawSeries(entry, x, y, frame, light) {
  const spots = entry.points.map((point) => [x.at(point.x), y.at(point.y)]);
  const kind = `line${entry.dashed ? " dashed" : ""}${entry.faint ? " faint" : ""}`;
  const path = spots.map(([left, top], i) => `${i ? "L" : "M"}${left.toFixed(1)} ${top.toFixed(1)}`).join("");
  const dots = entry.dots
    ? entry.points.flatMap((point, i) => drawDot(point, spots[i], entry.hue, frame, light))
    : [];
  return [svg("path", { class: kind, d: path, "--hue": entry.hue }), ...dots];
}

function drawDot(point, [left, top], hue, frame, light) {
  const label = point.label || "";
  const late = left + 9 + 6.6 * label.length > frame.right + 10;
  return [
    svg("circle", {
      class: "dot",
      cx: left,
      cy: top,
      r: point.strong ? 7 : 5,
      tabindex: 0,
      role: "img",
      "aria-label": point.tip().join(", "),
      "--hue": point.hue || hue,
      onfocus: () => light(point),
      onblur: () => light(null),
    }),
    svg(
      "text",
      {
        class: `label${point.strong ? " strong" : ""}`,
        x: late ? frame.right + 10 : left + 9,
        y: top + 20,
        "text-anchor": late ? "end" : "start",
      },
      label,
    ),
  ];
}
