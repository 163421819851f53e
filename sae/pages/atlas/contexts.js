/* ---------- Contexts: where a feature fires, how strongly, and where it does not ---------- */

const WIDTHS = { lines: "Lines", full: "Whole text" };
const contextWidth = () => remembered.get("width", innerWidth < 700 ? "full" : "lines");

/* Groups of contexts in the order of the data: top, bands from strong to weak, silent ones. */
function drawContexts(feature, found) {
  const groups = Map.groupBy(found.contexts, ([group]) => group);
  const most = world.max[feature];
  const host = h("div", { class: `contexts ${contextWidth()}` });
  for (const [group, contexts] of groups) {
    const rows = contexts.map((context) => drawContext(context, found.strings, most));
    if (group === "silent") host.append(silentGroup(rows, feature));
    else host.append(h("h3", { class: "group" }, ...groupTitle(group, most)), ...rows);
  }
  watchTokens(host);
  host.addEventListener("click", openLine);
  return host;
}

function groupTitle(group, most) {
  if (group === "top") return ["Strongest"];
  const bands = world.manifest.n_bands;
  const [low, high] = [group / bands, (group + 1) / bands];
  const range = `${percent(low)}–${percent(high)} of the maximum`;
  return [range, h("small", {}, `${short(low * most)} to ${short(high * most)}, drawn at random`)];
}

function silentGroup(rows, feature) {
  const open = dead(feature);
  const title = open ? "Text on which it is silent, as on all of it" : "Text on which it is silent, drawn at random";
  return h("details", { class: "silent", open }, h("summary", {}, title), ...rows);
}

function drawContext([group, sequence, position, peak, numbers, acts], strings, most) {
  const tokens = numbers.map((number) => strings[number]);
  const spans = shadedTokens(tokens, acts, most, group === "silent" ? -1 : peak);
  const [at, dir] = [clusterOf(tokens, peak), directionAt(tokens, peak)];
  const joined = dir === "rtl" && /\p{L}\p{M}*$/u.test(tokens[at - 1] ?? "") && /^\p{L}/u.test(tokens[at]);
  return h(
    "div",
    { class: "context" },
    h("span", { class: "level" }, short(valueAt(acts, peak))),
    h(
      "p",
      { class: joined ? "tokens joined" : "tokens", dir },
      h("span", { class: "before" }, h("span", {}, spans.slice(0, at))),
      h("span", { class: "after" }, spans.slice(at)),
    ),
    sequence < 0
      ? h("footer", { title: `Position ${count(position)}` }, `${count(position)}`)
      : h(
          "footer",
          { title: `Sequence ${count(sequence)}, position ${count(position)} of the cache` },
          `${count(sequence)} : ${count(position)}`,
        ),
  );
}

/* Where what is drawn together with a token begins: a mark is drawn on the letter before it. */
function clusterOf(tokens, place) {
  let at = place;
  while (at > 0 && place - at < 8 && (/^[\p{M}\u200c\u200d]/u.test(tokens[at]) || /\u200d$/u.test(tokens[at - 1]))) at--;
  return at;
}

/* The direction of a line is that of the text at its peak, which so is where the line begins to be seen. */
function directionAt(tokens, peak) {
  const [before, after] = [tokens.slice(0, peak).join(""), tokens.slice(peak).join("")];
  const strong = after.match(/\p{L}/u)?.[0] ?? before.match(/\p{L}(?=\P{L}*$)/u)?.[0] ?? "";
  return /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u.test(strong) ? "rtl" : "ltr";
}

function valueAt(acts, wanted) {
  for (let i = 0; i < acts.length; i += 2) if (acts[i] === wanted) return acts[i + 1];
  return 0;
}

/* A line that is cut shows its whole text when it is clicked. */
function openLine({ target }) {
  if (getSelection().toString()) return;
  target.closest?.(".context")?.classList.toggle("open");
}

function widthSwitch() {
  const buttons = Object.entries(WIDTHS).map(([width, name]) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": width === contextWidth(),
        onclick: () => {
          remembered.set("width", width);
          document.querySelector(".contexts").className = `contexts ${width}`;
          buttons.forEach((button, i) => button.setAttribute("aria-pressed", Object.keys(WIDTHS)[i] === width));
        },
      },
      name,
    ),
  );
  return h("div", { class: "switch", role: "group", "aria-label": "Width of contexts" }, buttons);
}
