/* ---------- The map of all features ---------- */

const MOST_ZOOM = 80;
const still = matchMedia("(prefers-reduced-motion: reduce)");

/* A map in `host`. `wheel`: whether the wheel alone zooms.
   The result has `light(on, marks)`, `paint(name)`, `look(feature, zoom)`, `zoom(by)`, `reset()`, `draw()`. */
function makeMap(host, { wheel = true, label = "Map of all features" } = {}) {
  const canvas = h("canvas", {
    tabindex: 0,
    role: "application",
    "aria-label": `${label}. Arrow keys move it, plus and minus zoom, 0 shows all, Enter opens the feature in the middle.`,
  });
  host.append(canvas);
  const map = {
    canvas,
    view: { x: SIDE / 2, y: SIDE / 2, zoom: 1 },
    width: 0,
    height: 0,
    on: null,
    marks: [],
    hover: -1,
    paintName: "density",
    scale: null,
    shades: null,
    wheel,
  };
  let asked = 0;
  map.draw = () => (asked ||= requestAnimationFrame(() => ((asked = 0), drawMap(map))));
  map.light = (on, marks = map.marks) => (Object.assign(map, { on, marks }), map.draw());
  map.paint = (name) => (Object.assign(map, { paintName: name, scale: null, shades: null }), map.draw());
  map.look = (feature, zoom) => glide(map, { x: world.x[feature], y: world.y[feature], zoom });
  map.zoom = (by) => glide(map, { ...somethingNear(map, by), zoom: map.view.zoom * by });
  map.reset = () => glide(map, { x: SIDE / 2, y: SIDE / 2, zoom: 1 });
  new ResizeObserver(() => {
    map.width = host.clientWidth;
    map.height = host.clientHeight;
    // At once, or the stretched old picture would be seen for a moment.
    if (map.width && map.height) drawMap(map);
  }).observe(host);
  mapPointer(map);
  mapKeys(map);
  return map;
}

/* Pixels for a map unit; the axes mean nothing, so they may stretch a little to fill the frame. */
function unitsOf(map) {
  const pad = Math.min(28, map.width / 12);
  const [wide, high] = [map.width - 2 * pad, map.height - 2 * pad];
  const across = Math.min(wide, 1.7 * high) / SIDE;
  const down = Math.min(high, 1.7 * wide) / SIDE;
  return { across: across * map.view.zoom, down: down * map.view.zoom };
}

function settle(view) {
  const zoom = Math.max(1, Math.min(MOST_ZOOM, view.zoom));
  const reach = (SIDE / 2) * (1 - 1 / zoom) + 1;
  const near = (value) => Math.max(SIDE / 2 - reach, Math.min(SIDE / 2 + reach, value));
  return { x: near(view.x), y: near(view.y), zoom };
}

function glide(map, target) {
  const [from, to] = [map.view, settle(target)];
  const began = performance.now();
  const step = (now) => {
    const t = still.matches ? 1 : Math.min(1, (now - began) / 260);
    const eased = 1 - (1 - t) ** 3;
    const zoom = from.zoom * (to.zoom / from.zoom) ** eased;
    // The middle moves with the scale, so that the way looks straight.
    const share = Math.abs(to.zoom - from.zoom) < 1e-6 ? eased : (1 / from.zoom - 1 / zoom) / (1 / from.zoom - 1 / to.zoom);
    map.view = { x: from.x + (to.x - from.x) * share, y: from.y + (to.y - from.y) * share, zoom };
    map.moving = t < 1 ? requestAnimationFrame(step) : 0;
    map.draw();
  };
  cancelAnimationFrame(map.moving);
  map.moving = requestAnimationFrame(step);
}

/* Where to zoom to without a pointer: the middle, or the feature nearest to it when nothing lies there. */
function somethingNear(map, by) {
  const [left, top] = [map.width / 2, map.height / 2];
  const feature = by > 1 && nearest(map, left, top, 60) < 0 ? nearest(map, left, top, map.width) : -1;
  return feature < 0 ? map.view : { x: world.x[feature], y: world.y[feature] };
}

const toScreen = (map, f, { across, down } = unitsOf(map)) => [
  map.width / 2 + (world.x[f] - map.view.x) * across,
  map.height / 2 + (world.y[f] - map.view.y) * down,
];

function inSight(map, visit, margin = 0) {
  const { across, down } = unitsOf(map);
  const [wide, high] = [(map.width / 2 + margin) / across, (map.height / 2 + margin) / down];
  const { x, y } = map.view;
  eachWithin(x - wide, y - high, x + wide, y + high, visit);
}

function drawMap(map) {
  const { canvas, width, height, on, view } = map;
  if (!width || !height) return;
  const dense = Math.min(2, devicePixelRatio || 1);
  const [wide, high] = [Math.round(width * dense), Math.round(height * dense)];
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
  const picture = new Picture(wide, high, styleColour("--map"));
  map.scale ??= paintScale(map.paintName);
  const radius = Math.min(6.5, Math.max(0.75, 24 / world.n ** 0.27 - 0.4) * view.zoom ** 0.3 * (width < 500 ? 0.8 : 1));
  const [usual, lit] = [disc(radius * dense), disc(Math.max(2, radius * 1.25) * dense)];
  const [grey, colours] = [styleColour("--muted"), ramp()];
  map.shades ??= shadesOf(map.scale);
  const { shades } = map;
  const units = unitsOf(map);
  const [across, down] = [units.across * dense, units.down * dense];
  const [left, top] = [wide / 2 - view.x * across, high / 2 - view.y * down];
  const { x, y } = world;
  const place = (f, mask, colour, alpha) => picture.dot(left + x[f] * across, top + y[f] * down, mask, colour, alpha);
  const colourOf = (f) => (shades[f] === COLOURLESS ? grey : colours[shades[f]]);
  inSight(map, (f) => {
    if (!on) place(f, usual, colourOf(f), shades[f] === COLOURLESS ? 60 : 225);
    else if (!on[f]) place(f, usual, grey, 46);
  });
  if (on) inSight(map, (f) => on[f] && place(f, lit, colourOf(f), 256));
  const pen = canvas.getContext("2d");
  pen.putImageData(picture.image, 0, 0);
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  drawMarks(map, pen, radius, units);
  nameFeatures(map, pen, radius, units);
}

const COLOURLESS = 255;

/* The step of the ramp for each feature. */
function shadesOf(scale) {
  const shades = new Uint8Array(world.n);
  for (let f = 0; f < world.n; f++) {
    const share = dead(f) ? NaN : scale.share(f);
    shades[f] = Number.isNaN(share) ? COLOURLESS : Math.round(Math.max(0, Math.min(1, share)) * (SHADES - 1));
  }
  return shades;
}

/* Lines to the marked features, and rings round the one shown and the one pointed at. */
function drawMarks(map, pen, radius, units) {
  const [accent, ink] = [css(styleColour("--accent")), css(styleColour("--ink"))];
  const [own, ...others] = map.marks;
  for (const other of others) {
    pen.beginPath();
    pen.moveTo(...toScreen(map, own, units));
    pen.lineTo(...toScreen(map, other, units));
    Object.assign(pen, { strokeStyle: accent, lineWidth: 1, globalAlpha: 0.45 });
    pen.stroke();
  }
  pen.globalAlpha = 1;
  const ring = (f, colour, wider) => {
    pen.beginPath();
    pen.arc(...toScreen(map, f, units), radius + wider, 0, 7);
    Object.assign(pen, { strokeStyle: colour, lineWidth: 2 });
    pen.stroke();
  };
  for (const other of others) ring(other, accent, 2.5);
  if (known(own)) ring(own, ink, 5);
  if (map.hover >= 0) ring(map.hover, ink, 3.5);
}

/* Names where there is room, the marked and the clearest first, and more of them the closer one looks. */
function nameFeatures(map, pen, radius, units) {
  const { canvas, width, height, view, on, marks } = map;
  const most = Math.min(90, ((width * height) / 15000) * Math.min(2.4, view.zoom ** 0.5));
  const [paper, ink] = [css(styleColour("--map")), css(styleColour("--ink"))];
  pen.textBaseline = "middle";
  // Not under what lies on the map.
  const taken = [...canvas.parentElement.children].slice(0, -1).map(({ offsetLeft: x, offsetTop: y, offsetWidth: w, offsetHeight: h }) => [x - 4, y - 4, x + w + 4, y + h + 4]);
  const name = (f, must) => {
    const [left, top] = toScreen(map, f, units);
    if (left < 0 || top < 8 || left > width || top > height - 8) return;
    const text = mapName(f);
    const strong = f === marks[0];
    pen.font = `${strong ? 650 : 450} 12px system-ui, sans-serif`;
    const long = pen.measureText(text).width;
    const right = left + radius + 6 + long < width - 4;
    const start = right ? left + radius + 5 : left - radius - 5 - long;
    const box = [start - 4, top - 9, start + long + 4, top + 9];
    if (start < 2 || (!must && taken.some((other) => overlap(box, other)))) return;
    taken.push(box);
    // On paper of its own, as points that shine through letters make neither readable.
    Object.assign(pen, { fillStyle: paper, globalAlpha: 0.86 });
    pen.beginPath();
    pen.roundRect(start - 3, top - 8, long + 6, 16, 4);
    pen.fill();
    Object.assign(pen, { fillStyle: ink, globalAlpha: 1 });
    pen.fillText(text, start, top);
  };
  marks.forEach((f, i) => name(f, i === 0));
  for (const f of byClearness(map)) {
    if (taken.length >= most) break;
    if (!dead(f) && (!on || on[f]) && !marks.includes(f)) name(f, false);
  }
}

/* What is in sight, the clearest first; of very many all features, as the first few will do. */
function byClearness(map) {
  const here = [];
  inSight(map, (f) => here.push(f));
  if (here.length > 4000) return permutation("clear");
  const ranks = clearRanks();
  return here.sort((a, b) => ranks[a] - ranks[b]);
}

let ranksKnown = null;
function clearRanks() {
  if (!ranksKnown) {
    ranksKnown = new Uint32Array(world.n);
    permutation("clear").forEach((f, rank) => (ranksKnown[f] = rank));
  }
  return ranksKnown;
}

const mapName = (f) => {
  const text = labelOf(f);
  return text.length > 26 ? `${text.slice(0, 25).trimEnd()}…` : text;
};

/* The feature nearest to a spot of the map's frame, at most so many pixels away; -1 if there is none. */
function nearest(map, left, top, most) {
  const units = unitsOf(map);
  let [best, least] = [-1, most];
  const x = map.view.x + (left - map.width / 2) / units.across;
  const y = map.view.y + (top - map.height / 2) / units.down;
  const [wide, high] = [most / units.across, most / units.down];
  eachWithin(x - wide, y - high, x + wide, y + high, (f) => {
    const [there, under] = toScreen(map, f, units);
    // What is not lit is only ground while something is.
    const away = Math.hypot(there - left, under - top) + (map.on && !map.on[f] ? most / 2 : 0);
    if (away < least) [best, least] = [f, away];
  });
  return best;
}
