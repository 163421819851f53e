/* ---------- How often features fire: the map's legend, and a filter ---------- */

const BINS = 36;

/* Counts in equal bins of log10 density, from the rarest feature alive to always. */
function densityBins() {
  const logs = world.density.filter((value) => value > 0).map(Math.log10);
  if (!logs.length) return null;
  const low = Math.floor(2 * logs.reduce((a, b) => Math.min(a, b))) / 2;
  const high = Math.max(low + 1, Math.ceil(2 * logs.reduce((a, b) => Math.max(a, b))) / 2);
  const step = (high - low) / BINS;
  const counts = new Array(BINS).fill(0);
  for (const value of logs) counts[Math.min(BINS - 1, Math.floor((value - low) / step))]++;
  return { low, high, step, counts, at: (i) => low + i * step };
}

/* A histogram in `host` on which a range is dragged; `onrange(low, high)` hears it, nulls when it is let go. */
function densityFilter(host, onrange) {
  const bins = densityBins();
  if (!bins) return null;
  const state = { from: 0, to: BINS };
  const chart = h("div", { class: "bars" });
  const handle = (name, key) =>
    h("input", {
      type: "range",
      min: 0,
      max: BINS,
      step: 1,
      value: state[key],
      "aria-label": name,
      oninput: ({ target }) => {
        const value = Number(target.value);
        if (key === "from") set(Math.min(value, state.to - 1), state.to);
        else set(state.from, Math.max(value, state.from + 1));
      },
    });
  const [from, to] = [handle("Rarest shown", "from"), handle("Most frequent shown", "to")];
  const set = (start, end, silent) => {
    Object.assign(state, { from: start, to: end });
    from.value = start;
    to.value = end;
    from.setAttribute("aria-valuetext", percent(10 ** bins.at(start)));
    to.setAttribute("aria-valuetext", percent(10 ** bins.at(end)));
    [...chart.querySelectorAll("rect.bar")].forEach((bar, i) => bar.classList.toggle("out", i < start || i >= end));
    const all = start === 0 && end === BINS;
    if (!silent) onrange(all ? null : bins.at(start), all ? null : bins.at(end));
  };
  host.append(chart, h("div", { class: "handles" }, from, to));
  const draw = () => responsiveBars(chart, bins, state, set);
  draw();
  set(0, BINS, true);
  return { draw, clear: () => set(0, BINS), range: (low, high) => `${percent(10 ** low)} to ${percent(10 ** high)}` };
}

function responsiveBars(chart, bins, state, set) {
  chart.replaceChildren();
  responsive(chart, (width) => {
    const [top, bottom] = [8, 76];
    const most = Math.max(...bins.counts, 1);
    const left = (i) => 8 + (i / BINS) * (width - 16);
    const scale = paintScale("density");
    const share = (i) => (bins.at(i + 0.5) - scale.low) / (scale.high - scale.low);
    const bars = bins.counts.map((value, i) => {
      const high = value ? Math.max(2, (bottom - top) * Math.sqrt(value / most)) : 0;
      const look = { x: left(i) + 0.75, width: left(i + 1) - left(i) - 1.5, y: bottom - high, height: high };
      const out = i < state.from || i >= state.to ? " out" : "";
      return svg("rect", { class: `bar${out}`, ...look, "--hue": rampColour(share(i)) });
    });
    const ticks = densityTicks(bins, width < 480 ? 3 : 6);
    const labels = ticks.map((tick) => {
      const x = left((Math.log10(tick) - bins.low) / bins.step);
      const anchor = x < 30 ? "start" : x > width - 30 ? "end" : "middle";
      return svg("text", { x, y: bottom + 30, "text-anchor": anchor }, percent(tick));
    });
    const root = svg(
      "svg",
      { width, height: 110, role: "img", "aria-label": "Histogram of firing frequency; drag to filter" },
      svg("line", { class: "grid", x1: 8, x2: width - 8, y1: bottom + 0.5, y2: bottom + 0.5 }),
      bars,
      labels,
    );
    brush(root, (x) => Math.max(0, Math.min(BINS - 1, Math.floor(((x - 8) / (width - 16)) * BINS))), bins, state, set);
    return root;
  });
}

/* Powers of ten, and what lies between them where there are few. */
function densityTicks({ low, high }, wanted) {
  const ticks = logTicks(10 ** low, 10 ** high, wanted);
  const powers = ticks.filter((tick) => Math.abs(Math.log10(tick) - Math.round(Math.log10(tick))) < 1e-6);
  return powers.length > 2 ? powers : ticks;
}

/* Drag for a range, click for a bar, click within a range to let it go. */
function brush(root, binAt, bins, state, set) {
  let began = null;
  const bin = (event) => binAt(event.clientX - root.getBoundingClientRect().left);
  root.addEventListener("pointerdown", (event) => {
    began = bin(event);
    root.setPointerCapture(event.pointerId);
  });
  root.addEventListener("pointermove", (event) => {
    const here = bin(event);
    if (known(began) && here !== began) set(Math.min(began, here), Math.max(began, here) + 1);
    const range = `fire on ${percent(10 ** bins.at(here))} to ${percent(10 ** bins.at(here + 1))} of tokens`;
    showTip(event.clientX, root.getBoundingClientRect().top, `${count(bins.counts[here])} features`, range);
  });
  root.addEventListener("pointerup", (event) => {
    const here = bin(event);
    const narrowed = state.to - state.from < BINS;
    if (here === began) {
      if (narrowed && here >= state.from && here < state.to) set(0, BINS);
      else set(here, here + 1);
    }
    began = null;
  });
  root.addEventListener("pointerleave", hideTip);
  root.addEventListener("pointercancel", () => (began = null));
}
