/* ---------- What does it do to this text? Asked of whoever serves the page ---------- */

const live = { ready: false, answer: null, token: -1, chosen: null, busy: 0, dialOf: null, strength: 0 };
const EXAMPLE = "The old cat slept on the warm roof while the rain fell on the river.";

/* One call; what goes wrong comes back as `{error: sentence}`. */
async function ask(name, body) {
  try {
    const options = body && {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    };
    const response = await fetch(`api/${name}`, options);
    const answer = await response.json().catch(() => ({}));
    if (!response.ok && !answer.error) answer.error = `The server answered ${response.status} ${response.statusText}.`;
    return answer;
  } catch {
    return { error: "The server does not answer; is sae serve still running?" };
  }
}

function startLive() {
  $("live-off").hidden = LIVE;
  $("live-on").hidden = !LIVE;
  if (!LIVE) return;
  $("text").value = remembered.get("text", EXAMPLE);
  $("text").addEventListener("input", () => remembered.set("text", $("text").value));
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("read-form").requestSubmit();
  });
  $("read-form").addEventListener("submit", (event) => {
    event.preventDefault();
    readText();
  });
  $("steer-form").addEventListener("submit", (event) => {
    event.preventDefault();
    steerText();
  });
  $("dial").addEventListener("input", () => {
    live.strength = Number($("dial").value);
    remembered.set("dial", live.strength);
    sayDial();
  });
  $("k").addEventListener("change", () => {
    if (live.answer) readText();
  });
  $("read-tokens").addEventListener("click", chooseToken);
  $("read-tokens").addEventListener("focusin", liveTip);
  $("read-tokens").addEventListener("pointerover", liveTip);
  for (const name of ["pointerout", "focusout"]) $("read-tokens").addEventListener(name, hideTip);
  $("read-tokens").addEventListener("keydown", tokenKeys);
  $("read-tokens").addEventListener("keydown", pressToken);
  $("by-strongest").addEventListener("click", () => chooseFeature(null));
  watchLinks($("token-features"));
  askStatus();
}

async function askStatus() {
  const answer = await ask("status");
  live.ready = answer.status === undefined && (answer.model ?? "ready") === "ready" && !answer.error;
  const loading = answer.model === "loading";
  const wrong = answer.error || (answer.model === "absent" ? `The model cannot be used: ${answer.why}` : "");
  $("live-status").textContent = loading ? "The model is being loaded …" : wrong;
  for (const button of ["read", "steer", "ask", "lens", "state"].map((name) => $(`${name}-button`))) button.disabled = !live.ready;
  if (loading) setTimeout(askStatus, 1500);
  // Of a topk dictionary sparsity is a dial; its own k is what the atlas was made with.
  $("k-box").hidden = !answer.k;
  if (answer.k && !$("k").value) $("k").value = answer.k;
  if (live.ready) readPresets();
}

/* Says that work goes on, with the seconds it took so far, until it is done. */
async function working(host, sentence, button, promise) {
  const began = performance.now();
  const tell = () => (host.textContent = `${sentence} ${Math.floor((performance.now() - began) / 1000)} s`);
  tell();
  host.classList.add("working");
  button.disabled = true;
  const clock = setInterval(tell, 1000);
  const answer = await promise;
  clearInterval(clock);
  host.classList.remove("working");
  host.textContent = answer.error ?? "";
  host.classList.toggle("trouble", Boolean(answer.error));
  button.disabled = false;
  return answer;
}

async function readText() {
  const text = $("text").value;
  const k = $("k-box").hidden ? {} : { k: Number($("k").value) };
  const call = ask("read", { text, ...k });
  const answer = await working($("read-status"), "Reading …", $("read-button"), call);
  if (answer.error) return;
  live.answer = { ...answer, text };
  live.token = -1;
  drawReading();
  forgetInside();
}

/* ---------- The reading: tokens, and the features of the one chosen ---------- */

const activationOf = (features, feature) => features.find(([f]) => f === feature)?.[1] ?? 0;

function drawReading() {
  $("reading").hidden = !live.answer;
  if (!live.answer) return;
  const { tokens, features } = live.answer;
  const chosen = live.chosen;
  const levels = features.map((some) => (known(chosen) ? activationOf(some, chosen) : (some[0]?.[1] ?? 0)));
  const most = Math.max(known(chosen) ? world.max[chosen] || 0 : 0, ...levels, 1e-9);
  $("read-tokens").replaceChildren(
    ...tokens.map((token, i) =>
      h(
        "span",
        {
          role: "button",
          class: `${token ? "" : "part "}${levels[i] > 0 ? "act" : "act none"}`,
          "data-part": partOf(tokens, i),
          "data-place": i,
          "data-tip": short(levels[i]),
          "aria-pressed": i === live.token,
          tabindex: i === Math.max(0, live.token) ? 0 : -1,
          "--a": (levels[i] / most).toFixed(3),
        },
        visible(token),
      ),
    ),
  );
  const silent = known(chosen) && !levels.some((level) => level > 0);
  const name = known(chosen) ? `${quoted(chosen)} (feature ${chosen})` : "";
  $("shaded-by").textContent = !known(chosen)
    ? "Shaded by the strongest feature of each token. Choose a token to see what it is made of."
    : silent
      ? `${name} is not among the strongest features of any token here.`
      : `Shaded by ${name}.`;
  $("by-strongest").hidden = !known(chosen);
  drawTokenFeatures();
}

function liveTip({ target }) {
  const token = target.closest?.("[data-place]");
  if (!token) return;
  const place = Number(token.dataset.place);
  const strongest = live.answer.features[place].slice(0, 3).map(([f, value]) => `${short(value)}  ${labelOf(f)}`);
  const box = token.getClientRects()[0];
  const own = known(live.chosen) ? [`this feature ${token.dataset.tip}`] : [];
  showTip(box.left, box.top, saidOf(token), ...own, ...(strongest.length ? strongest : ["nothing is read off this token"]));
}

/* Tokens are no buttons, between which letters would not join: they are pressed as such. */
function pressToken(event) {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  chooseToken(event);
}

function chooseToken({ target }) {
  const token = target.closest?.("[data-place]");
  if (!token) return;
  live.token = Number(token.dataset.place);
  for (const other of $("read-tokens").children) {
    other.setAttribute("aria-pressed", other === token);
    other.tabIndex = other === token ? 0 : -1;
  }
  drawTokenFeatures();
  drawState();
}

function chooseFeature(feature) {
  live.chosen = feature;
  drawReading();
  drawDial();
}

function chosenToken() {
  const { tokens } = live.answer;
  const part = partOf(tokens, live.token);
  return part ? ["a part of ", tokenLabel(part)] : [tokenLabel(tokens[live.token])];
}

function drawTokenFeatures() {
  const some = live.answer.features[live.token];
  $("token-features").hidden = !some;
  if (!some) return;
  const most = Math.max(...some.map(([, value]) => value), 1e-9);
  const title = h("h3", {}, "On ", ...chosenToken(), some.length ? " these features are the strongest" : " no feature is read");
  const row = ([feature, value]) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "quiet", "aria-pressed": feature === live.chosen, onclick: () => chooseFeature(feature), title: "Shade the text by it" },
        "Shade",
      ),
      h(
        "a",
        { href: `#f=${feature}`, "data-f": feature },
        h("span", { class: "name" }, labelOf(feature)),
        h("span", { class: "figure" }, short(value)),
        h("i", { "--share": `${(100 * value) / most}%` }),
      ),
    );
  $("token-features").replaceChildren(title, h("ol", { class: "kin" }, some.map(row)));
}

/* ---------- The dial ---------- */

function drawDial() {
  const can = known(live.chosen) && !dead(live.chosen);
  $("steer-form").hidden = !can;
  if (!can) return $("written").replaceChildren();
  $("steer-name").textContent = quoted(live.chosen);
  if (live.dialOf !== live.chosen) startDial(live.chosen);
}

/* A dial begins at the dose that is recommended for its feature, and without one where the last was left. */
function startDial(feature) {
  live.dialOf = feature;
  $("dial").step = dialStep(feature);
  setDial(doseOf(feature) ?? Number(remembered.get("dial", "2")));
  sayCost(feature);
}

/* The knob stands on the step next to the strength, which holds until the knob is moved. */
function setDial(strength) {
  live.strength = strength;
  $("dial").value = strength;
  sayDial();
}

/* What the recommended dose costs and does, beside what chance does at that cost. */
async function sayCost(feature) {
  const dose = doseOf(feature);
  $("dial-cost").replaceChildren();
  if (!known(dose)) return;
  const { dial } = await featureOf(feature).catch(() => ({}));
  if (!dial || live.dialOf !== feature) return;
  $("dial-cost").replaceChildren(
    h("button", { type: "button", class: "quiet", onclick: () => setDial(dose) }, "Recommended dose"),
    ` ${signed(dose)} × costs about ${short(Number(dial.dial_kl.toPrecision(2)))} nats a token on neutral text and makes its tokens ${times(dial.dial_score)} as likely; random directions and features at equal cost make them ${times(dial.dial_score_null)} as likely at most.`,
  );
}

function sayDial() {
  const { strength } = live;
  const text = strength ? `${signed(strength)} × its strongest activation` : "0: left alone";
  $("dial-value").textContent = text;
  $("dial").setAttribute("aria-valuetext", text);
  // Filled from the middle to the knob.
  const ends = [0, Number($("dial").value)].map((value) => 50 + (value / 4) * 50).sort((a, b) => a - b);
  const look = { from: `${ends[0]}%`, to: `${ends[1]}%`, tint: strength < 0 ? "var(--c1)" : "var(--accent)" };
  for (const [name, value] of Object.entries(look)) $("dial").style.setProperty(`--${name}`, value);
}

async function steerText() {
  const feature = live.chosen;
  const { strength } = live;
  const call = ask("steer", {
    text: $("text").value,
    feature,
    strength,
    max_new_tokens: Number($("length").value),
    temperature: Number($("temperature").value),
    seed: Number($("seed").value),
  });
  const answer = await working($("steer-status"), "The model is writing three times …", $("steer-button"), call);
  if (answer.error || live.chosen !== feature) return;
  const arms = [
    ["plain", "Left alone", "The model as it is"],
    ["steered", `${signed(strength)} × ${quoted(feature)}`, `A push of length ${short(answer.norm)}${answer.relative ? " times each token's own" : ""} along the feature`],
    ["random", "Random direction", "A push as long at random: what pushing alone does"],
  ];
  $("written").replaceChildren(
    ...arms.map(([arm, title, why]) =>
      h(
        "article",
        { class: arm },
        h("h3", {}, title),
        h("p", { class: "why" }, why),
        h("p", { class: "text", dir: "auto" }, continuation(answer[arm].text, answer.prompt)),
        h("p", { class: "figure", title: "Perplexity of the text under the model left alone: the higher, the less it makes sense to it" }, `perplexity ${short(answer[arm].perplexity)}`),
      ),
    ),
  );
}

const continuation = (text, prompt) =>
  text.startsWith(prompt)
    ? [h("span", { class: "given" }, visible(prompt)), visible(text.slice(prompt.length))]
    : [visible(text)];
