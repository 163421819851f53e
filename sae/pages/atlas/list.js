/* ---------- The list: only the rows that are seen are in the document ---------- */

const ROW = 42;
const list = { rows: new Uint32Array(0), active: 0, first: -1, last: -1 };

function showRows(rows) {
  list.rows = rows;
  list.active = 0;
  $("rows").style.height = `${rows.length * ROW}px`;
  $("list").scrollTop = 0;
  drawRows(true);
}

function drawRows(anew) {
  const box = $("list");
  const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 6);
  const last = Math.min(list.rows.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 6);
  if (!anew && first === list.first && last === list.last) return;
  Object.assign(list, { first, last });
  const rows = [];
  for (let place = first; place < last; place++) rows.push(listRow(place));
  $("rows").replaceChildren(...rows);
  markActive();
}

function listRow(place) {
  const feature = list.rows[place];
  const label = labelOf(feature);
  const share = dead(feature) ? NaN : (map.scale?.share(feature) ?? 0);
  return h(
    "a",
    {
      id: `row-${place}`,
      class: dead(feature) ? "row gone" : "row",
      role: "option",
      tabindex: -1,
      href: `#f=${feature}`,
      "data-f": feature,
      "aria-selected": "false",
      "aria-setsize": list.rows.length,
      "aria-posinset": place + 1,
      "--top": `${place * ROW}px`,
    },
    h("i", { class: "swatch", "--hue": Number.isNaN(share) ? null : rampColour(share) }),
    h("span", { class: "number" }, highlighted(String(feature), found.words)),
    h("span", { class: "name" }, highlighted(label, found.words)),
    found.words.length && found.inText(feature) ? h("span", { class: "pill" }, "in its text") : null,
    $("order").value === "dial" && verdictOf(feature) ? h("span", { class: "pill" }, verdictOf(feature)) : null,
    $("order").value === "stable" && known(stabilityOf(feature)) ? h("span", { class: "pill" }, fixed(2)(stabilityOf(feature))) : null,
    world.byHand.has(feature) ? h("span", { class: "pill hand", title: "Labelled by hand" }, "✎") : null,
    h("span", { class: "rate" }, rate(feature)),
  );
}

function markActive() {
  const row = $(`row-${list.active}`);
  for (const other of $("rows").querySelectorAll("[aria-selected=true]")) other.setAttribute("aria-selected", "false");
  row?.setAttribute("aria-selected", "true");
  for (const host of [$("search"), $("list")]) {
    if (row) host.setAttribute("aria-activedescendant", row.id);
    else host.removeAttribute("aria-activedescendant");
  }
}

function moveActive(step, point = true) {
  if (!list.rows.length) return;
  list.active = Math.max(0, Math.min(list.rows.length - 1, list.active + step));
  const box = $("list");
  const top = list.active * ROW;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
  drawRows(false);
  markActive();
  if (!point) return;
  map.hover = list.rows[list.active];
  map.draw();
}

const PAGE = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 };

function listKeys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = PAGE[event.key];
  const inList = event.currentTarget === $("list");
  if (step) moveActive(step);
  else if (inList && event.key === "Home") moveActive(-list.rows.length);
  else if (inList && event.key === "End") moveActive(list.rows.length);
  else if (event.key === "Enter" && list.rows.length) openFeature(list.rows[list.active]);
  else return;
  event.preventDefault();
}

function listPointer({ target }) {
  const feature = Number(target.closest?.(".row")?.dataset.f ?? -1);
  if (map.hover === feature) return;
  map.hover = feature;
  map.draw();
}
