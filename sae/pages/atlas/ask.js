/* ---------- What the model itself says of a feature: its direction in the place of a word ---------- */

let clearAsk = () => {};

function startAsk() {
  if (!LIVE) return;
  clearAsk = askPanel("ask", () => {
    const { feature } = shown;
    return {
      call: "ask",
      body: { feature },
      what: "the direction",
      columns: [
        ["feature", "This feature"],
        ["random", "A random direction, as long"],
      ],
      still: () => shown.feature === feature,
    };
  });
}

/* Another feature is on the page now. */
function drawAsk() {
  $("ask").hidden = !LIVE;
  clearAsk();
}

/* The form that asks, and where its answer goes; returns what takes the answer away. `subject()` says, when it
   is asked, of what: `{call, body, what, columns: [[arm, title], ...], still()}`. */
function askPanel(id, subject) {
  const part = (name) => $(`${id}-${name}`);
  part("prompt").value = remembered.get(`${id}-prompt`, "");
  part("prompt").addEventListener("input", () => remembered.set(`${id}-prompt`, part("prompt").value));
  for (const name of ["pointerover", "click", "focusin"]) part("answers").addEventListener(name, askTip);
  for (const name of ["pointerout", "focusout"]) part("answers").addEventListener(name, hideTip);
  part("answers").addEventListener("keydown", tokenKeys);
  const clear = () => {
    part("answers").replaceChildren();
    part("status").textContent = "";
  };
  part("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = subject();
    const call = ask(asked.call, {
      ...asked.body,
      prompt: part("prompt").value,
      placeholder: part("placeholder").value,
      max_new_tokens: Number(part("length").value),
    });
    const answer = await working(part("status"), "The model is answering …", part("button"), call);
    if (!asked.still()) return clear();
    if (answer.error) return;
    part("answers").replaceChildren(askNote(asked, answer), askTable(asked, answer));
  });
  return clear;
}

const askNote = ({ what }, { into, prompt, placeholder }) =>
  h(
    "p",
    { class: "note" },
    `At ${into} ${what} stands where the prompt “\u2068${visible(prompt)}\u2069” has its “\u2068${visible(placeholder)}\u2069”. Shaded: how far it moves the probability of each token.`,
  );

/* A row a length: of a feature several are tried, of a state its own. */
function askTable({ columns }, { plain, scales }) {
  const arms = columns.filter(([arm]) => scales[0][arm]);
  const head = h("thead", {}, h("tr", {}, ["Length", ...arms.map(([, title]) => title)].map((title) => h("th", { scope: "col" }, title))));
  const length = (found) => (known(found.scale) ? `${short(found.scale)} ×` : short(found[arms[0][0]].norm));
  const rows = scales.map((found) =>
    h("tr", {}, h("th", { scope: "row" }, length(found)), arms.map(([arm, title]) => h("td", { "data-of": title }, askText(found[arm])))),
  );
  const nothing = h("tr", { class: "plain" }, h("th", { scope: "row" }, "none"), h("td", { colspan: arms.length, "data-of": "Nothing put there" }, askText(plain)));
  return h("table", { class: "asked" }, head, h("tbody", {}, nothing, rows));
}

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
