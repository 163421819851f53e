/* ---------- Tokens ---------- */

const visible = (token) => token.replace(/\r?\n|\r/g, "↵").replace(/\t/g, "⇥");

/* A token on its own: its leading space would not be seen, so it is drawn. */
function tokenLabel(token) {
  const text = visible(token);
  const bare = text.replace(/^ +/, "");
  const space = "·".repeat(text.length - bare.length);
  return h("span", { class: "tok" }, space ? h("span", { class: "space" }, space) : null, h("bdi", {}, bare));
}

/* Tokens as spans, shaded by `acts` (place and activation in turn) as shares of `most`. */
function shadedTokens(tokens, acts, most, peak) {
  const levels = new Map();
  for (let i = 0; i < acts.length; i += 2) levels.set(acts[i], acts[i + 1]);
  return tokens.map((token, i) => {
    const level = levels.get(i);
    // What is not drawn, such as a joiner, is seen where a feature fires on it.
    const thin = level ? /^\p{Cf}*$/u.test(token) : !token;
    const kinds = [thin ? "part" : "", level ? "act" : "", level && i === peak ? "peak" : ""];
    const own = { class: kinds.filter(Boolean).join(" ") || null, "data-part": partOf(tokens, i) };
    if (!level) return h("span", { ...own, "data-tip": "0" }, visible(token));
    return h(
      "span",
      {
        ...own,
        tabindex: i === peak ? 0 : -1,
        "--a": Math.min(1, level / (most || 1)).toFixed(3),
        "data-tip": short(level),
      },
      visible(token),
    );
  });
}

/* A character of several tokens is the text of the last of them: what a token without text is a part of. */
function partOf(tokens, i) {
  if (tokens[i]) return null;
  return visible(tokens.slice(i).find(Boolean) ?? "") || "a character";
}

/* A token as it is quoted, set apart from the direction in which the rest is written. */
const saidOf = (token) =>
  token.dataset.part ? `part of “\u2068${token.dataset.part}\u2069”` : `“\u2068${token.textContent}\u2069”`;

function tokenTip({ target }) {
  const token = target.closest?.("[data-tip]");
  if (!token) return;
  const box = token.getClientRects()[0];
  if (box) showTip(box.left, box.top, saidOf(token), `activation ${token.dataset.tip}`);
}

/* One tab stop a text; the arrow keys go on to the other tokens that are shaded. */
function tokenKeys(event) {
  const ahead = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const text = event.target.closest?.("[data-tip]") && event.target.closest(".tokens");
  if (!ahead || !text) return;
  const step = getComputedStyle(text).direction === "rtl" ? -ahead : ahead;
  event.preventDefault();
  event.stopPropagation();
  const shaded = [...text.querySelectorAll("[tabindex]")];
  shaded[shaded.indexOf(event.target) + step]?.focus();
}

function watchTokens(host) {
  for (const name of ["pointerover", "click", "focusin"]) host.addEventListener(name, tokenTip);
  for (const name of ["pointerout", "focusout"]) host.addEventListener(name, hideTip);
  host.addEventListener("keydown", tokenKeys);
}

const fact = (name, value, more, title) =>
  h("div", { title }, h("dt", {}, name), h("dd", {}, value, more ? h("small", {}, more) : null));

/* Rows `[token, value]` with a bar each. */
function logitList(title, rows, kind) {
  const most = Math.max(...rows.map(([, value]) => Math.abs(value ?? 0)), 1e-9);
  const line = ([token, value]) =>
    h(
      "li",
      {},
      tokenLabel(token),
      h("i", { "--share": `${(100 * Math.abs(value ?? 0)) / most}%` }),
      h("span", { class: "figure" }, logit(value)),
    );
  return h("div", { class: kind }, h("h4", {}, title), h("ol", {}, rows.map(line)));
}
