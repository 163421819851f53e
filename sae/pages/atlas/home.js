/* ---------- The home view: figures, search, list, map ---------- */

const filter = { low: null, high: null, alive: false, byHand: false, dials: false, stable: false };
let map = null;
let densities = null;

function drawHeading() {
  const { manifest, n } = world;
  const model = String(manifest.model_name).split("/").pop();
  const layer = /blocks\.(\d+)\./.exec(manifest.hook_name);
  $("brand-id").textContent = manifest.dictionary;
  $("headline").textContent = `${layer ? `Layer ${layer[1]}` : manifest.hook_name} of ${model}, feature by feature`;
  const hook = manifest.hook_name_out && manifest.hook_name_out !== manifest.hook_name ? ` and writes ${manifest.hook_name_out}` : "";
  $("lede").append(
    h("code", {}, manifest.dictionary),
    ` reads `,
    h("code", {}, manifest.hook_name),
    `${hook}. Its ${count(n)} features were watched on ${count(manifest.n_rows)} tokens of ${manifest.data ?? "text"}.`,
  );
  const alive = world.density.filter((value) => value > 0).sort((a, b) => a - b);
  const gone = n - alive.length;
  const l0 = alive.reduce((sum, value) => sum + value, 0);
  $("figures").append(
    fact("Features", count(n), manifest.d_in && n >= manifest.d_in ? `${short(n / manifest.d_in)} × ${count(manifest.d_in)}` : ""),
    fact("Dead", percent(gone / n), gone ? count(gone) : ""),
    fact("Active on a token", alive.length ? fixed(1)(l0) : "–", "L0"),
    fact("A usual feature fires on", alive.length ? percent(alive[alive.length >> 1]) : "–", "of tokens, median"),
    fact("Documents read", count(manifest.n_documents), `${count(manifest.n_sequences)} sequences of ${count(manifest.context_size)}`),
    ...(world.scored ? [dialFact()] : []),
  );
  if (!alive.length) {
    $("nothing").hidden = false;
    $("nothing").textContent = `None of the ${count(n)} features fired on the text that was read: there is nothing to look at but their directions. Train longer, ask for less sparsity, or analyze with more text.`;
  }
  return { gone };
}

function drawHome() {
  const { gone } = drawHeading();
  map = makeMap($("map"));
  $("map").hidden = !world.has_map;
  if (!world.agreement.length) $("paint").querySelector("[value=clear]").remove();
  if (!world.scored) for (const id of ["paint", "order"]) $(id).querySelector("[value=dial]").remove();
  if (!world.stability.length) for (const id of ["paint", "order"]) $(id).querySelector("[value=stable]").remove();
  densities = densityFilter($("density"), (low, high) => {
    Object.assign(filter, { low, high });
    $("clear-range").hidden = low === null;
    refresh();
  });
  $("density").parentElement.hidden = !densities;
  $("clear-range").addEventListener("click", () => densities.clear());
  $("alive").closest("label").hidden = !gone;
  $("alive-count").textContent = count(gone);
  $("dials-only").closest("label").hidden = !world.verdict.includes(DIAL);
  drawStability($("stable-only").closest("label"));
  $("paint").addEventListener("change", ({ target }) => {
    map.paint(target.value);
    repaint();
  });
  for (const [id, name] of Object.entries({ alive: "alive", "by-hand": "byHand", "dials-only": "dials", "stable-only": "stable" }))
    $(id).addEventListener("change", ({ target }) => {
      filter[name] = target.checked;
      refresh();
    });
  $("order").addEventListener("change", refresh);
  $("zoom-in").addEventListener("click", () => map.zoom(1.8));
  $("zoom-out").addEventListener("click", () => map.zoom(1 / 1.8));
  $("zoom-all").addEventListener("click", () => map.reset());
  $("list").addEventListener("scroll", () => drawRows(false), { passive: true });
  new ResizeObserver(() => drawRows(true)).observe($("list"));
  for (const host of [$("list"), $("search")]) host.addEventListener("keydown", listKeys);
  $("list").addEventListener("pointerover", listPointer);
  $("list").addEventListener("pointerleave", listPointer);
  repaint();
}

/* The map's legend and all that has its colours. */
function repaint() {
  map.scale = paintScale(map.paintName);
  const { low, high } = map.scale;
  const write = PAINTS[map.paintName].write;
  $("legend-low").textContent = write(low);
  $("legend-high").textContent = write(high);
  $("legend-bar").style.setProperty("--ramp", `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(rampColour)})`);
  densities?.draw();
  map.draw();
  drawRows(true);
}

/* ---------- Search ---------- */

const query = () => $("search").value.trim();

function refresh() {
  const began = performance.now();
  find(query(), $("order").value, filter);
  showRows(found.rows);
  map.light(found.on, []);
  $("by-hand-count").textContent = count(world.byHand.size);
  $("by-hand").closest("label").hidden = !world.byHand.size;
  sayFound();
  performance.measure("search", { start: began });
}

function sayFound() {
  const some = found.rows.length;
  const asked = query();
  const what = asked ? ` for “${asked}”` : found.on ? " pass the filter" : "";
  const text = `${count(some)}${found.on ? ` of ${count(world.n)}` : ""} feature${found.on || some !== 1 ? "s" : ""}${what}`;
  $("found").textContent = found.pending ? `${text}, still looking through their texts …` : text;
  $("no-rows").hidden = some > 0 || found.pending;
}

let again = 0;
/* More has come in: the rows may change, but not which of them one is at. */
function searchAgain() {
  again ||= requestAnimationFrame(() => {
    again = 0;
    const [feature, moved] = [list.rows[list.active], list.active > 0];
    refresh();
    const place = moved ? found.rows.indexOf(feature) : -1;
    if (place > 0) moveActive(place, false);
  });
}
