/* ---------- Ways through the page ---------- */

const app = { view: "", scroll: 0, typed: 0, address: null, from: "" };

function complain(sentence) {
  $("trouble").hidden = false;
  $("trouble").textContent = sentence;
}

/* The address: `#f=1204` a feature, `#q=words` a search, else the home view. */
function route() {
  clearTimeout(app.typed);
  app.address = null;
  const [, kind, text] = /^#(f|q)=(.*)$/s.exec(location.hash) ?? [];
  if (kind === "f") return showAddress(decoded(text));
  const wanted = kind === "q" ? decoded(text) : "";
  if (wanted !== query()) {
    $("search").value = wanted;
    refresh();
  }
  showHome();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function showAddress(text) {
  const feature = /^\d+$/.test(text) ? Number(text) : -1;
  if (feature >= 0 && feature < world.n) {
    setView("feature");
    scrollTo({ top: 0, behavior: "instant" });
    live.chosen = feature;
    showFeature(feature);
    if (LIVE) {
      drawReading();
      drawDial();
      drawAsk();
    }
    $("live-title").textContent = "What does it do to this text?";
    $("feature-title").focus({ preventScroll: true });
    return;
  }
  setView("wrong");
  document.title = "No such feature";
  $("wrong-title").textContent = `There is no feature ${text || "without a number"}`;
  $("wrong-why").textContent = `This dictionary has ${count(world.n)} features, numbered 0 to ${world.n - 1}.`;
}

function showHome() {
  const came = app.view;
  setView(query() ? "search" : "home");
  document.title = `${world.manifest.dictionary} · atlas`;
  $("live-title").textContent = "What is a text made of?";
  if (came !== "feature") return;
  if (LIVE) chooseFeature(null);
  scrollTo({ top: app.scroll, behavior: "instant" });
  const place = list.rows.indexOf(shown.feature);
  list.active = Math.max(0, place);
  drawRows(true);
  moveActive(0);
  shown.feature = -1;
  if (document.activeElement === document.body) $("list").focus({ preventScroll: true });
}

function setView(view) {
  if (app.view !== "feature" && view === "feature") app.scroll = scrollY;
  app.view = view;
  document.body.dataset.view = view;
  const home = view === "home" || view === "search";
  $("home").hidden = !home;
  $("hero").hidden = view !== "home";
  $("beyond").hidden = view !== "home";
  $("feature").hidden = view !== "feature";
  $("wrong").hidden = view !== "wrong";
  $("live").hidden = view === "search" || view === "wrong";
  $("desk").hidden = !LIVE || $("live").hidden;
  hideTip();
}

/* Typing searches at once; the address follows when the hand rests, so that going back skips half words. */
function typed() {
  refresh();
  const address = query() ? `#q=${encodeURIComponent(query())}` : location.pathname + location.search;
  const home = app.view === "home" || app.view === "search";
  if (!home) {
    history.pushState(null, "", address);
    app.scroll = 0;
    showHome();
    list.active = 0;
    moveActive(0);
    return;
  }
  setView(query() ? "search" : "home");
  clearTimeout(app.typed);
  Object.assign(app, { address, from: location.href, typed: setTimeout(writeAddress, 150) });
}

/* Writes the address of what was typed: when the hand rests, or when one goes on from there. Whoever went on
   already is not called back, for the page hears of a new address only after it has changed. */
function writeAddress() {
  clearTimeout(app.typed);
  if (app.address !== null && location.href === app.from) history.replaceState(null, "", app.address);
  app.address = null;
}

/* ---------- Keys ---------- */

const KEYS = [
  ["/", "Search"],
  ["↑ ↓ or k j", "Move through the list"],
  ["Enter", "Open the feature"],
  ["← → or k j", "Previous and next feature"],
  ["Esc", "Back: from a feature to the list, from a search to all features"],
  ["m", "To the map: arrow keys move it, + − zoom, 0 shows all"],
  ["r", "A feature at random"],
  ["?", "This list"],
];

const writing = (target) => target.closest?.("input:not([type=range]):not([type=checkbox]), textarea, select");

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || $("help").open) return;
  if (event.key === "Escape") return back();
  if (writing(event.target) || (event.target.type === "range" && event.key.startsWith("Arrow"))) return;
  const act = app.view === "feature" ? featureKey(event.key) : homeKey(event.key);
  const run = act ?? { "/": toSearch, "?": () => $("help").showModal(), r: surprise }[event.key];
  if (!run) return;
  event.preventDefault();
  run();
}

function featureKey(key) {
  const step = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[key];
  const to = step && stepFrom(shown.feature, step);
  return known(to) && step ? () => openFeature(to) : undefined;
}

function homeKey(key) {
  if (app.view === "wrong") return undefined;
  const step = { j: 1, k: -1 }[key];
  if (step) return () => moveActive(step);
  if (key === "m") return () => map.canvas.focus();
  if (key === "Enter" && document.activeElement === document.body && list.rows.length) return () => openFeature(list.rows[list.active]);
  return undefined;
}

function toSearch() {
  $("search").focus();
  $("search").select();
}

function back() {
  if (!$("tip").hidden) hideTip();
  if (app.view === "feature" || app.view === "wrong") location.hash = query() ? `q=${encodeURIComponent(query())}` : "";
  else if (query()) {
    $("search").value = "";
    typed();
  } else document.activeElement?.blur();
}

function surprise() {
  const from = found.rows.filter((feature) => !dead(feature) && feature !== shown.feature);
  if (from.length) openFeature(from[Math.floor(Math.random() * from.length)]);
}

/* ---------- Light and dark ---------- */

function setScheme(scheme) {
  document.documentElement.style.colorScheme = scheme;
  remembered.set("scheme", scheme);
  repaint();
  nearby?.draw();
}

/* ---------- Start ---------- */

async function start() {
  document.documentElement.style.colorScheme = remembered.get("scheme", "");
  try {
    const [index, labels] = await Promise.all([load("index"), load("labels")]);
    takeWorld(index, labels);
  } catch (error) {
    $("home").hidden = true;
    return complain(error.message);
  }
  drawHome();
  find("", $("order").value, filter);
  startLive();
  startAsk();
  startInside();
  startDesk();
  $("search").addEventListener("input", typed);
  $("surprise").addEventListener("click", surprise);
  $("scheme").addEventListener("click", () => setScheme(isDark() ? "light" : "dark"));
  systemDark.addEventListener("change", () => (repaint(), nearby?.draw()));
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("help-keys").append(...KEYS.flatMap(([key, what]) => [h("dt", {}, key.split(" ").map((one) => (one === "or" ? " or " : h("kbd", {}, one)))), h("dd", {}, what)]));
  watchLinks($("kin"));
  addEventListener("keydown", keys);
  // What is typed before the page hears of an address is newer than that address.
  addEventListener("hashchange", ({ newURL }) => newURL === location.href && route());
  refresh();
  route();
  performance.mark("ready");
  // What is further down comes after what is seen first.
  setTimeout(drawOthers);
  setTimeout(lowerLabels, 300);
}

async function drawOthers() {
  try {
    const found = await load("pareto");
    if (!found) return;
    takeReport(found);
    drawPareto();
  } catch (error) {
    complain(error.message);
  }
}

start();
