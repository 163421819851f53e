/* ---------- A lens as a grid: layers over positions, the last layer on top ---------- */

/* Returns what draws tokens and a lens, `{title, layers: [{name, cells}]}`, into a table. A cell is
   `[[[token, probability], ...], KL, rank, log-probability, the model's own token]`. */
function lensGrid(table, box) {
  let tokens = [];
  let kind = null;
  const quote = (token) => `“\u2068${visible(token)}\u2069”`;

  function told(layer, place) {
    const [top, kl, rank, logProbability, own] = layer.cells[place];
    const said = top.map(([token, p]) => `${(100 * p).toFixed(1).padStart(5, "\u2007")}%  ${quote(token)}`);
    const model =
      rank === 1
        ? "what the model itself predicts is first here"
        : `the model's own ${quote(own)}: rank ${count(rank)}, ${percent(Math.exp(logProbability))}`;
    return [`${layer.name}, after ${quote(tokens[place])}`, ...said, `KL ${short(kl)} nats`, model];
  }

  function cell(layer, place) {
    const [[[token, p]], , rank] = layer.cells[place];
    return h(
      "td",
      {
        class: rank === 1 ? "same" : null,
        "--p": p.toFixed(3),
        tabindex: place === 0 && layer === kind.layers.at(-1) ? 0 : -1,
        "aria-label": told(layer, place).join(", "),
        "data-place": `${kind.layers.indexOf(layer)} ${place}`,
      },
      tokenLabel(token),
    );
  }

  function tip({ target }) {
    const at = target.closest?.("[data-place]");
    if (!at) return;
    const [layer, place] = at.dataset.place.split(" ").map(Number);
    const { left, top } = at.getBoundingClientRect();
    showTip(left, top, ...told(kind.layers[layer], place));
  }

  /* One tab stop for the grid; the arrow keys go on from cell to cell. */
  function keys(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    const at = event.target.closest?.("[data-place]");
    if (!step || !at) return;
    event.preventDefault();
    event.stopPropagation();
    const [layer, place] = at.dataset.place.split(" ").map((n, i) => Number(n) + step[i]);
    const next = table.querySelector(`[data-place="${layer} ${place}"]`);
    if (!next) return;
    at.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  for (const name of ["pointerover", "click", "focusin"]) table.addEventListener(name, tip);
  for (const name of ["pointerout", "focusout"]) table.addEventListener(name, hideTip);
  box.addEventListener("scroll", hideTip, { passive: true });
  table.addEventListener("keydown", keys);

  return (words, lens) => {
    [tokens, kind] = [words, lens];
    const names = () => h("tr", {}, h("th", { scope: "row" }, "after"), tokens.map((token) => h("th", { scope: "col" }, tokenLabel(token))));
    const line = (layer) => h("tr", {}, h("th", { scope: "row" }, layer.name), layer.cells.map((_, place) => cell(layer, place)));
    table.replaceChildren(h("thead", {}, names()), h("tbody", {}, kind.layers.toReversed().map(line)), h("tfoot", {}, names()));
    table.setAttribute("aria-label", `${kind.title}: likeliest next token by layer and position`);
  };
}
