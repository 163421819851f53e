/* ---------- What the model itself says of a feature: its direction in the place of a word ---------- */

function startAsk() {
  if (!LIVE) return;
  $("ask-prompt").value = remembered.get("ask-prompt", "");
  $("ask-prompt").addEventListener("input", () => remembered.set("ask-prompt", $("ask-prompt").value));
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    askFeature();
  });
  for (const name of ["pointerover", "click", "focusin"]) $("ask-answers").addEventListener(name, askTip);
  for (const name of ["pointerout", "focusout"]) $("ask-answers").addEventListener(name, hideTip);
  $("ask-answers").addEventListener("keydown", tokenKeys);
}

/* Another feature is on the page now. */
function drawAsk() {
  $("ask").hidden = !LIVE;
  $("ask-answers").replaceChildren();
  $("ask-status").textContent = "";
}

async function askFeature() {
  const { feature } = shown;
  const call = ask("ask", {
    feature,
    prompt: $("ask-prompt").value,
    placeholder: $("ask-placeholder").value,
    max_new_tokens: Number($("ask-length").value),
  });
  const answer = await working($("ask-status"), "The model is answering …", $("ask-button"), call);
  if (shown.feature !== feature) return drawAsk();
  if (answer.error) return;
  $("ask-answers").replaceChildren(
    h(
      "p",
      { class: "note" },
      `At ${answer.into} the direction stands where the prompt “\u2068${visible(answer.prompt)}\u2069” has its “\u2068${visible(answer.placeholder)}\u2069”. Shaded: how far it moves the probability of each token.`,
    ),
    askTable(answer),
  );
}

function askTable({ plain, scales }) {
  const head = h("thead", {}, h("tr", {}, ["Length", "This feature", "A random direction, as long"].map((title) => h("th", { scope: "col" }, title))));
  const rows = scales.map(({ scale, feature, random }) =>
    h("tr", {}, h("th", { scope: "row" }, `${short(scale)} ×`), askCell("This feature", feature), askCell("Random direction", random)),
  );
  const nothing = h("tr", { class: "plain" }, h("th", { scope: "row" }, "none"), h("td", { colspan: 2, "data-of": "Nothing put there" }, askText(plain)));
  return h("table", { class: "asked" }, head, h("tbody", {}, nothing, rows));
}

const askCell = (title, arm) => h("td", { "data-of": title }, askText(arm));

/* What was written, each token shaded by its relevancy, from 0 to 1. */
function askText({ tokens, relevancy, likeliest }) {
  const first = h(
    "small",
    { title: "The likeliest first tokens, each with its probability" },
    likeliest.map(([token, p]) => h("span", {}, tokenLabel(token), ` ${percent(p)}`)),
  );
  if (!tokens.length) return [h("p", { class: "none" }, "It ends the text at once."), first];
  const text = h(
    "p",
    { class: "tokens", dir: "auto" },
    tokens.map((token, i) =>
      h(
        "span",
        { class: `${token ? "" : "part "}act`, "data-part": partOf(tokens, i), "data-tip": short(relevancy[i]), "--a": relevancy[i].toFixed(3), tabindex: i ? -1 : 0 },
        visible(token),
      ),
    ),
  );
  return [text, first];
}

function askTip({ target }) {
  const token = target.closest?.("[data-tip]");
  const box = token?.getClientRects()[0];
  if (box) showTip(box.left, box.top, saidOf(token), `probability moved by ${token.dataset.tip}`);
}
