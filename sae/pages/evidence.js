"use strict";

const report = JSON.parse($("data-report").textContent);
const kinds = Object.keys(report.controls);
const hueOf = (kind) => (kind ? `var(--c${(1 + kinds.indexOf(kind)) % 6})` : "var(--accent)");
const titleOf = (kind) => report.controls[kind].title;

/* Python's way of writing a figure, as far as metrics use it. */
function written(form) {
  const places = Number(/\.(\d+)/.exec(form)?.[1] ?? 3);
  if (form.endsWith("%")) return when((value) => `${(100 * value).toFixed(places)}%`);
  if (form.endsWith("g")) return short;
  return fixed(places);
}

/* ---------- One figure ---------- */

function strip(figure) {
  const write = written(figure.form);
  const rows = [
    { hue: hueOf(), name: "dictionary", ...figure },
    ...Object.entries(figure.beside)
      .filter(([, one]) => known(one.value))
      .map(([kind, one]) => ({ ...one, hue: hueOf(kind), name: titleOf(kind) })),
  ];
  const values = rows.flatMap((row) => [row.value, row.low, row.high]).concat(figure.floor).filter(known);
  const host = h("div", {});
  responsive(host, (width) => {
    const height = 18 * rows.length + 26;
    const x = makeScale({ pad: 0.08 }, values, 6, width - 6, Math.max(2, Math.floor(width / 90)));
    const at = (i) => 10 + 18 * i;
    const marks = rows.map((row, i) => {
      const ends = known(row.low) ? `, 95% interval ${write(row.low)} to ${write(row.high)}` : ", no interval";
      const told = `${write(row.value)}${ends}; ${count(row.n)} ${row.unit}`;
      return svg(
        "g",
        {
          "--hue": row.hue,
          onpointerenter: (event) => showTip(event.clientX, event.clientY, row.name, told),
          onpointerleave: hideTip,
        },
        known(row.low)
          ? svg("line", { class: "interval", x1: x.at(row.low), x2: x.at(row.high), y1: at(i), y2: at(i) })
          : null,
        svg("circle", { class: i ? "dot" : "dot strong", r: i ? 4.5 : 6, cx: x.at(row.value), cy: at(i) }),
      );
    });
    const bottom = height - 24;
    return svg(
      "svg",
      { width, height, role: "img", "aria-label": `${figure.title}: ${rows.map((r) => `${r.name} ${write(r.value)}`).join(", ")}` },
      ...x.ticks.map((tick) =>
        svg(
          "g",
          {},
          svg("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: 0, y2: bottom }),
          svg("text", { x: x.at(tick), y: height - 8, "text-anchor": "middle" }, short(tick)),
        ),
      ),
      known(figure.floor)
        ? svg("line", { class: "floor-mark", x1: x.at(figure.floor), x2: x.at(figure.floor), y1: 0, y2: bottom })
        : null,
      ...marks,
    );
  });
  return host;
}

function drawFigure(figure) {
  const write = written(figure.form);
  const better = { true: "more is better", false: "less is better" }[figure.higher_is_better] ?? "neither is better";
  const beside = Object.entries(figure.beside).map(([kind, one]) =>
    h("p", { class: "beside" }, `${titleOf(kind)}: ${known(one.value) ? write(one.value) : "not measurable"}`),
  );
  const word = figure.word === "at its floor" ? "floor" : figure.word;
  return h(
    "div",
    { class: "figure" },
    h(
      "div",
      {},
      h("h3", {}, figure.title, figure.of ? h("span", { class: "of" }, ` · ${figure.of}`) : null),
      h("p", {}, `${figure.meaning} (${better})`),
    ),
    strip(figure),
    h(
      "div",
      {},
      h(
        "p",
        { class: "value" },
        write(figure.value),
        known(figure.low) ? h("small", {}, `${write(figure.low)} to ${write(figure.high)}`) : null,
      ),
      h("p", { class: "beside" }, `on ${count(figure.n)} ${figure.unit}`),
      known(figure.floor) ? h("p", { class: "beside" }, `floor: ${write(figure.floor)}, ${figure.floor_of}`) : null,
      ...beside,
      h("p", {}, h("span", { class: `word ${word}` }, figure.word)),
      h("p", {}, figure.sentence),
    ),
  );
}

/* ---------- One dictionary ---------- */

function drawDictionary(one) {
  const shown = one.figures.filter((figure) => known(figure.value));
  const absent = one.figures.filter((figure) => !known(figure.value));
  $("eyebrow").textContent = `${report.model} · ${one.hook_name}`;
  $("summary").textContent = one.summary;
  $("about").textContent = `${one.id}, trained as ${one.recipe}; measured on held-out text${one.data ? ` of ${one.data}` : ""}.`;
  $("legend").replaceChildren(
    h("li", { "--hue": hueOf() }, "this dictionary"),
    ...Object.keys(one.controls).map((kind) =>
      h("li", { "--hue": hueOf(kind) }, `${titleOf(kind)}: ${report.controls[kind].meaning}`),
    ),
    h("li", { class: "floor" }, "floor"),
  );
  $("figures").replaceChildren(...shown.map(drawFigure));
  if (reveal("left", absent))
    $("reasons").replaceChildren(
      ...absent.map((figure) => h("li", {}, h("b", {}, `${figure.title}: `), figure.sentence)),
    );
  if (reveal("missing", one.missing)) {
    $("missing-intro").textContent = `These controls were not trained, so nothing is known beside them: ${one.missing
      .map((kind) => `${titleOf(kind)} (${report.controls[kind].meaning})`)
      .join("; ")}.`;
    $("missing-command").replaceChildren(
      snippet(`sae train run=${report.run} ... control=[${one.missing.join(",")}]\nsae eval run=${report.run} suite=standard`),
    );
  }
  const titles = new Map(one.figures.map((figure) => [figure.title, figure]));
  $("formulas").replaceChildren(
    ...[...titles.values()].flatMap((figure) => [
      h("dt", {}, figure.title),
      h("dd", {}, h("code", {}, figure.formula), ` ${figure.scale}.`),
    ]),
  );
  $("origin").replaceChildren(
    ...Object.entries(one.seconds).flatMap(([name, seconds]) => [h("dt", {}, name), h("dd", {}, duration(seconds))]),
    ...Object.entries(report.versions).flatMap(([name, version]) => [h("dt", {}, name), h("dd", {}, version)]),
  );
}

const wanted = () => report.dictionaries.find((one) => `#${encodeURIComponent(one.id)}` === location.hash);
if (report.dictionaries.length > 1) {
  $("chooser").hidden = false;
  $("names").append(...report.dictionaries.map((one) => h("option", { value: one.id }, one.id)));
  $("names").addEventListener("change", () => {
    location.hash = encodeURIComponent($("names").value);
  });
}
function draw() {
  const one = wanted() ?? report.dictionaries[0];
  $("names").value = one.id;
  drawDictionary(one);
}
addEventListener("hashchange", draw);
draw();
