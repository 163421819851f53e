/* ---------- Several dials, turned together ---------- */

const desk = { dials: [], most: 12, presets: [] };

function startDesk() {
  $("desk").hidden = !LIVE;
  if (!LIVE) return;
  desk.dials = rememberedDials();
  $("desk-text").value = remembered.get("desk-text", "I went for a walk and");
  $("desk-text").addEventListener("input", () => remembered.set("desk-text", $("desk-text").value));
  $("desk-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("desk-form").requestSubmit();
  });
  $("desk-form").addEventListener("submit", (event) => {
    event.preventDefault();
    writeAtDesk();
  });
  $("dial-form").addEventListener("submit", (event) => {
    event.preventDefault();
    addDial(Number($("dial-number").value));
  });
  $("to-desk").addEventListener("click", () => addDial(live.chosen, live.strength));
  $("save-edits").addEventListener("click", saveEdits);
  $("open-edits").addEventListener("change", openEdits);
  $("presets").addEventListener("focus", readPresets);
  $("presets").addEventListener("change", takePreset);
  watchLinks($("dials"));
  drawDials();
}

/* What was there before, as far as this atlas has it. */
function rememberedDials() {
  try {
    const kept = JSON.parse(remembered.get(`dials-${world.manifest.dictionary}`, "[]"));
    return kept.filter(({ feature }) => feature >= 0 && feature < world.n && !dead(feature));
  } catch {
    return [];
  }
}

function keepDials() {
  remembered.set(`dials-${world.manifest.dictionary}`, JSON.stringify(desk.dials));
}

function tell(sentence, wrong = false) {
  $("edits-status").textContent = sentence;
  $("edits-status").classList.toggle("trouble", wrong);
}

function addDial(feature, strength = doseOf(feature) ?? 1) {
  const there = desk.dials.find((dial) => dial.feature === feature);
  if (!Number.isInteger(feature) || feature < 0 || feature >= world.n) return tell(`There is no feature ${feature}.`, true);
  if (dead(feature)) return tell(`Feature ${feature} is dead: it has no strongest activation to take multiples of.`, true);
  if (there) there.strength = strength;
  else if (desk.dials.length >= desk.most) return tell(`${desk.most} dials are all that fit here.`, true);
  else desk.dials.push({ feature, strength, do: "add" });
  drawDials();
  tell(`${quoted(feature)} lies among the dials.`);
}

function drawDials() {
  keepDials();
  $("no-dials").hidden = desk.dials.length > 0;
  $("save-edits").disabled = !desk.dials.length;
  $("desk-button").disabled = !desk.dials.length;
  $("dials").replaceChildren(...desk.dials.map(dialRow));
}

function dialRow(dial) {
  const { feature } = dial;
  const value = h("output", {}, "");
  const range = h("input", { type: "range", min: -4, max: 4, step: dialStep(feature), "aria-label": `Strength of feature ${feature}` });
  const mode = h(
    "select",
    { "aria-label": `What is done to feature ${feature}` },
    [
      ["add", "add"],
      ["set", "hold at"],
    ].map(([name, shown]) => h("option", { value: name }, shown)),
  );
  range.value = dial.strength;
  mode.value = dial.do;
  const say = () => {
    // A file may set more than the range reaches: it stays until the knob is moved.
    value.textContent = `${dial.do === "set" ? short(dial.strength) : signed(dial.strength) || "0"} × its strongest`;
    const ends = [0, Number(range.value)].map((at) => 50 + (at / 4) * 50).sort((a, b) => a - b);
    range.style.setProperty("--from", `${ends[0]}%`);
    range.style.setProperty("--to", `${ends[1]}%`);
    range.style.setProperty("--tint", dial.strength < 0 ? "var(--c1)" : "var(--accent)");
    range.setAttribute("aria-valuetext", value.textContent);
    keepDials();
  };
  range.addEventListener("input", () => {
    dial.strength = Number(range.value);
    say();
  });
  mode.addEventListener("change", () => {
    dial.do = mode.value;
    say();
  });
  const remove = () => {
    desk.dials = desk.dials.filter((other) => other !== dial);
    drawDials();
    tell(`${quoted(feature)} was taken away.`);
    $("dial-number").focus();
  };
  say();
  return h(
    "li",
    {},
    h("a", { href: `#f=${feature}`, "data-f": feature, class: "name" }, labelOf(feature), h("small", {}, `feature ${feature}`)),
    mode,
    h("div", { class: "dial" }, range),
    value,
    h("button", { type: "button", class: "round", "aria-label": `Take away feature ${feature}`, title: "Take away", onclick: remove }, "×"),
  );
}

async function writeAtDesk() {
  const dials = desk.dials.map((dial) => ({ ...dial }));
  const call = ask("write", {
    text: $("desk-text").value,
    dials,
    chat: $("desk-kind").value === "chat",
    max_new_tokens: Number($("desk-length").value),
    temperature: Number($("desk-temperature").value),
    seed: Number($("desk-seed").value),
  });
  const answer = await working($("desk-status"), "The model is writing three times …", $("desk-button"), call);
  $("desk-button").disabled = !desk.dials.length;
  if (answer.error) return;
  const others = answer.others.map(({ feature }) => quoted(feature)).join(", ");
  const arms = [
    ["plain", "Left alone", "The model as it is"],
    ["edited", dials.length > 1 ? `With ${dials.length} dials turned` : "With the dial turned", dials.map(({ feature }) => quoted(feature)).join(", ")],
    ["random", "Other features", `Turned as far, drawn at random: ${others || "there are no others"}`],
  ];
  $("desk-written").replaceChildren(
    ...arms.map(([arm, title, why]) =>
      h(
        "article",
        { class: arm === "edited" ? "steered" : arm },
        h("h3", {}, title),
        h("p", { class: "why" }, why),
        h(
          "p",
          { class: "text", dir: "auto" },
          answer.chat ? visible(answer[arm]) : [h("span", { class: "given" }, visible(answer.prompt)), visible(answer[arm])],
        ),
      ),
    ),
  );
}

/* ---------- Edit files ---------- */

async function saveEdits() {
  const answer = await ask("save", { dials: desk.dials });
  if (answer.error) return tell(answer.error, true);
  const link = h("a", { href: URL.createObjectURL(new Blob([answer.file], { type: "application/yaml" })), download: "edits.yaml" });
  link.click();
  URL.revokeObjectURL(link.href);
  tell("Saved as edits.yaml, for sae edit check and m.edited in Python.");
}

/* Edit files in the folder `edits` of the run; asked again whenever the list is opened. */
async function readPresets() {
  const answer = await ask("presets");
  const found = answer.presets ?? [];
  if (JSON.stringify(found) === JSON.stringify(desk.presets)) return;
  desk.presets = found;
  $("presets").hidden = !found.length;
  $("presets").replaceChildren(
    h("option", { value: "" }, "Presets"),
    ...found.map(({ name, why }) => h("option", { value: name, disabled: Boolean(why), title: why ?? "" }, why ? `${name} (not for this page)` : name)),
  );
}

function takePreset() {
  const chosen = desk.presets.find(({ name }) => name === $("presets").value);
  $("presets").value = "";
  if (chosen) setDials(chosen.name, chosen.dials);
}

function setDials(name, dials) {
  desk.dials = dials.map((dial) => ({ ...dial }));
  drawDials();
  tell(`${name} is open, with ${dials.length === 1 ? "one dial" : `${dials.length} dials`}.`);
}

async function openEdits() {
  const [file] = $("open-edits").files;
  $("open-edits").value = "";
  if (!file) return;
  const answer = file.size > 100_000 ? { error: `${file.name} is too large for an edit file.` } : await ask("open", { text: await file.text() });
  if (answer.error) return tell(answer.error, true);
  setDials(file.name, answer.dials);
}
