/* ---------- The map under pointer, wheel, fingers and keys ---------- */

let pageScrolled = -Infinity;
addEventListener("scroll", () => (pageScrolled = performance.now()), { passive: true });

function openFeature(feature) {
  writeAddress();
  location.hash = `f=${feature}`;
}

function mapSpot(map, event) {
  const box = map.canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function pan(map, right, down) {
  cancelAnimationFrame(map.moving);
  const units = unitsOf(map);
  map.view = settle({ ...map.view, x: map.view.x - right / units.across, y: map.view.y - down / units.down });
  map.draw();
}

/* Zooms so that what lies under the spot stays under it. */
function zoomAt(map, [left, top], by) {
  cancelAnimationFrame(map.moving);
  const before = unitsOf(map);
  const x = map.view.x + (left - map.width / 2) / before.across;
  const y = map.view.y + (top - map.height / 2) / before.down;
  map.view = settle({ ...map.view, zoom: map.view.zoom * by });
  const after = unitsOf(map);
  const moved = { x: x - (left - map.width / 2) / after.across, y: y - (top - map.height / 2) / after.down };
  map.view = settle({ ...map.view, ...moved });
  map.draw();
}

function pointAt(map, feature) {
  if (feature !== map.hover) {
    map.hover = feature;
    map.draw();
  }
  map.canvas.style.cursor = feature >= 0 ? "pointer" : "grab";
  if (feature < 0) return hideTip();
  const box = map.canvas.getBoundingClientRect();
  const [left, top] = toScreen(map, feature);
  showTip(box.left + left, box.top + top, labelOf(feature), ...tipLines(feature));
}

const tipLines = (f) => [
  `feature ${f} · ${dead(f) ? "never fired" : `fires on ${rate(f)} of tokens`}`,
  ...(dead(f) ? [] : [`strongest activation ${short(world.max[f])}`]),
  ...(verdictOf(f) ? [verdictOf(f)] : []),
];

function mapPointer(map) {
  const { canvas } = map;
  const down = new Map();
  let [dragged, apart] = [0, 0];
  const spread = () => {
    const [a, b] = [...down.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  };
  canvas.addEventListener("pointerdown", (event) => {
    down.set(event.pointerId, mapSpot(map, event));
    canvas.setPointerCapture(event.pointerId);
    dragged = down.size > 1 ? 99 : 0;
    if (down.size === 2) apart = spread();
  });
  canvas.addEventListener("pointermove", (event) => {
    const spot = mapSpot(map, event);
    const before = down.get(event.pointerId);
    if (!before) return pointAt(map, nearest(map, ...spot, 14));
    down.set(event.pointerId, spot);
    const moved = [spot[0] - before[0], spot[1] - before[1]];
    dragged += Math.hypot(...moved);
    if (dragged < 4) return;
    pointAt(map, -1);
    canvas.style.cursor = "grabbing";
    pan(map, moved[0] / down.size, moved[1] / down.size);
    if (down.size === 2) {
      const [a, b] = [...down.values()];
      zoomAt(map, [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], spread() / apart);
      apart = spread();
    }
  });
  const up = (event) => {
    const clicked = event.type === "pointerup" && down.size === 1 && dragged < 4;
    down.delete(event.pointerId);
    canvas.style.cursor = "grab";
    if (!clicked) return;
    const feature = nearest(map, ...mapSpot(map, event), event.pointerType === "touch" ? 24 : 14);
    if (feature >= 0) openFeature(feature);
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => down.size || pointAt(map, -1));
  canvas.addEventListener("dblclick", (event) => zoomAt(map, mapSpot(map, event), 2));
  canvas.addEventListener(
    "wheel",
    (event) => {
      // Who scrolls the page and comes across the map wants to go on scrolling.
      const passing = performance.now() - pageScrolled < 300;
      if (!event.ctrlKey && (!map.wheel || passing)) return;
      event.preventDefault();
      const pixels = event.deltaMode ? event.deltaY * 16 : event.deltaY;
      zoomAt(map, mapSpot(map, event), Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.0022)));
    },
    { passive: false },
  );
}

/* By keys the middle of the map is what the pointer is to the hand. */
function mapKeys(map) {
  const { canvas } = map;
  const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  const middle = () => nearest(map, map.width / 2, map.height / 2, Math.hypot(map.width, map.height));
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key } = event;
    if (moves[key]) pan(map, ...moves[key]);
    else if (key === "+" || key === "=") zoomAt(map, [map.width / 2, map.height / 2], 1.5);
    else if (key === "-" || key === "_") zoomAt(map, [map.width / 2, map.height / 2], 1 / 1.5);
    else if (key === "0") map.view = settle({ x: SIDE / 2, y: SIDE / 2, zoom: 1 });
    else if (key === "Enter" && middle() >= 0) return openFeature(middle());
    else return;
    event.preventDefault();
    event.stopPropagation();
    const feature = middle();
    pointAt(map, feature);
    if (feature >= 0) announce(`${labelOf(feature)}, feature ${feature}`);
    map.draw();
  });
  canvas.addEventListener("blur", () => pointAt(map, -1));
}

function announce(text) {
  $("said").textContent = text;
}
