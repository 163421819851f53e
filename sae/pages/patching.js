/* ---------- What is shown, and what is kept ---------- */

const has = (wanted) =>
  report.effects.some((one) => Object.entries(wanted).every(([name, value]) => one[name] === value));
const firstOf = (names, wanted) => names.find((name) => has(wanted(name)));

const state = { group: groups[0]?.group, method: null, patch: null };
let kept = null;

/* Shows what is asked for; a method or direction that was not measured with it gives way to one that was. */
function choose(change) {
  if (known(change.group) && change.group !== state.group) kept = null;
  Object.assign(state, change);
  const { group } = state;
  const methods = Object.keys(METHODS);
  const patches = Object.keys(PATCHES);
  if (!has({ group, method: state.method, patch: state.patch })) {
    // What was asked for stays if anything was measured so.
    if (known(change.patch) && has({ group, patch: change.patch })) {
      state.method = firstOf(methods, (method) => ({ group, method, patch: change.patch }));
    } else {
      const method = has({ group, method: state.method }) ? state.method : firstOf(methods, (one) => ({ group, method: one }));
      state.method = method;
      state.patch = firstOf(patches, (patch) => ({ group, method, patch }));
    }
  }
  draw();
}

function pin(cell) {
  kept = kept && placeKey(kept) === placeKey(cell) ? null : cell;
  hideTip();
  refreshPinned();
}

const commandOf = (cell) =>
  [
    `sae patch edit ${report.folder} out.yaml site=${cell.site}`,
    ...["layer", "head", "position", "feature", "group"]
      .filter((name) => known(cell[name]))
      .map((name) => `${name}=${cell[name]}`),
  ].join(" ");

/* What every method and direction measured at the place that is kept. */
function comparedAt(cell) {
  const key = placeKey(cell);
  const at = (method, patch) =>
    cellsAt({ method, patch, group: cell.group }, cell.site).find((one) => placeKey(one) === key);
  const patches = Object.keys(PATCHES).filter((patch) => has({ group: cell.group, site: cell.site, patch }));
  const methods = Object.keys(METHODS).filter((method) => has({ group: cell.group, site: cell.site, method }));
  const cellOf = (found) =>
    h("td", {}, effectText(found?.effect), found ? h("small", {}, ` ${intervalText(found)}`) : null);
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, h("th", {}), patches.map((patch) => h("th", { scope: "col" }, patchName(patch))))),
    h(
      "tbody",
      {},
      methods.map((method) =>
        h(
          "tr",
          { class: method === state.method ? "here" : null },
          h("th", { scope: "row" }, methodName(method)),
          patches.map((patch) => cellOf(at(method, patch))),
        ),
      ),
    ),
  );
}

function refreshPinned() {
  markPinned();
  if (!reveal("pinned", kept)) return;
  const hook = hookOf(kept);
  const control = controlOf({ ...kept, method: "exact", patch: "denoising" });
  const close = () => {
    kept = null;
    refreshPinned();
  };
  const content = [
    h("button", { type: "button", class: "close", "aria-label": "Let go of this place", onclick: close }, "×"),
    h(
      "p",
      {},
      h("b", {}, placeName(kept.site)),
      ` ${whereText(kept)}`,
      hook ? [" ", h("code", {}, visible(hook))] : null,
    ),
    h("div", { class: "compared" }, comparedAt(kept)),
    known(control)
      ? h("p", { class: "aside" }, `The same place from another pair’s corrupt prompt: ${effectText(control, 2)}.`)
      : null,
    kept.site === "path"
      ? h("p", { class: "aside" }, "An edit changes a place for all that read it, so a path cannot be saved as one.")
      : snippet(commandOf(kept)),
  ];
  $("pinned").replaceChildren(...content.filter(Boolean));
}
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !kept) return;
  kept = null;
  refreshPinned();
});

/* ---------- The top of the page ---------- */

function drawOverview() {
  const model = visible(report.model.split("/").pop());
  $("eyebrow").textContent = `sae-atlas · activation patching · ${visible(report.name)}`;
  $("lede").append(
    "Each square below is one place inside ",
    h("b", {}, model),
    ": its activations on one prompt were put into a run on another, and the colour says how far the answer followed: 0 is not at all, 1 is all the way.",
  );
}

/* Two prompts as rows of a table, token under token. */
function promptTable(rows) {
  const token = ({ text, differs, span }) =>
    h("td", { class: differs ? "differs" : null, colspan: span }, differs ? h("mark", {}, tokenLabel(text)) : tokenLabel(text));
  const line = (name, cells) => h("tr", {}, h("th", { scope: "row" }, name), cells.map(token));
  const numbers = rows.clean.map((_, i) => h("th", { scope: "col" }, `${i}`));
  return h(
    "div",
    { class: "scroll lined", tabindex: 0, role: "region", "aria-label": "The two prompts" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Position"), numbers)),
      h("tbody", {}, line("Clean", rows.clean), line("Corrupt", rows.corrupt)),
    ),
  );
}

const promptTexts = ({ clean, corrupt }) =>
  h(
    "dl",
    { class: "texts" },
    [
      ["Clean", clean],
      ["Corrupt", corrupt],
    ].map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, visible(text)))),
  );

/* Which answer the model prefers after a prompt, and by how much. */
function preference({ answer, wrong }, difference) {
  const [one, other] = difference < 0 ? [wrong, answer] : [answer, wrong];
  return [h("b", {}, quoted(one)), ` to ${quoted(other)} by ${short(Math.abs(difference))} logits`];
}

function drawPrompts() {
  const group = groupOf(state.group);
  if (!reveal("prompts", group)) return;
  $("pair").replaceChildren(group.rows ? promptTable(group.rows) : promptTexts(group));
  const { n_pairs: n, n_exact } = group;
  const more =
    n > 1
      ? ` This is the first of ${pairs(n)} whose positions line up, of which ${count(n_exact)} ${n_exact === 1 ? "was" : "were"} patched exactly; where a map names a token with …, other pairs have another one.`
      : " It is the only pair of its kind, so its effects have no intervals.";
  $("pair-note").replaceChildren(
    "After the clean prompt the model prefers ",
    ...preference(group, group.clean_difference),
    "; after the corrupt one ",
    ...preference(group, group.corrupt_difference),
    `.${more}`,
  );
}

/* ---------- Switches ---------- */

function buttonsFor(title, name, words) {
  const offered = Object.keys(words).filter((value) => has({ group: state.group, [name]: value }));
  if (offered.length < 2) return null;
  const button = (value) =>
    h("button", { type: "button", "aria-pressed": state[name] === value, "data-value": value }, words[value][0]);
  const press = ({ target }) => {
    if (target.dataset.value) choose({ [name]: target.dataset.value });
  };
  const host = h("div", { class: "options", onclick: press }, offered.map(button));
  return h("div", { role: "group", "aria-label": title, "data-switch": name }, h("span", {}, title), host);
}

function groupChoice() {
  if (groups.length < 2) return null;
  const name = ({ group, clean, n_pairs }) => {
    const text = visible(clean);
    return `${group}: ${text.length > 60 ? `${text.slice(0, 59)}…` : text} (${pairs(n_pairs)})`;
  };
  const options = groups.map((one) => h("option", { value: one.group, selected: one.group === state.group }, name(one)));
  const onchange = ({ target }) => choose({ group: Number(target.value) });
  return h("label", {}, h("span", {}, "Prompts"), h("select", { onchange }, options));
}

/* The switch that was pressed is made anew and keeps the focus. */
function drawSwitches() {
  const active = document.activeElement;
  const [name, value] = [active.closest("[data-switch]")?.dataset.switch, active.dataset.value];
  const isGroup = active.localName === "select";
  const switches = [buttonsFor("Method", "method", METHODS), buttonsFor("Direction", "patch", PATCHES), groupChoice()];
  $("switches").replaceChildren(...switches.filter(Boolean));
  $("switches").hidden = !switches.some(Boolean);
  if (name) $("switches").querySelector(`[data-switch="${name}"] [data-value="${value}"]`)?.focus();
  else if (isGroup) $("switches").querySelector("select")?.focus();
  const [method, patch] = [METHODS[state.method], PATCHES[state.patch]];
  $("meaning").hidden = !method;
  if (!method) return;
  $("meaning").replaceChildren(h("b", {}, `${method[0]}. `), `${method[1]} `, h("b", {}, `${patch[0]}. `), patch[1]);
}

/* ---------- All of it ---------- */

function draw() {
  // The page keeps its height while parts of it are made anew, so that nothing jumps.
  const main = document.querySelector("main");
  main.style.minHeight = `${main.offsetHeight}px`;
  hideTip();
  drawSwitches();
  drawPrompts();
  drawScale(state);
  drawMaps(state);
  drawHeads(state);
  drawDictionary(state);
  drawStrongest(state);
  refreshPinned();
  main.style.minHeight = "";
}

drawOverview();
choose({});
drawAgreement();
drawLeftOut();
drawCost();
