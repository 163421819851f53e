/* ---------- One feature ---------- */

const shown = { feature: -1 };
let nearby = null;

async function showFeature(feature) {
  shown.feature = feature;
  document.title = `${labelOf(feature)} · feature ${feature}`;
  drawFeatureHead(feature);
  announce(`Feature ${feature}: ${labelOf(feature)}`);
  try {
    const data = await featureOf(feature);
    if (shown.feature !== feature) return;
    drawEvidence(feature, data);
    drawEffect(feature, data.dial);
    drawNearby(feature, rowsOf(data.neighbours, 2).map(([other]) => other));
    fetchAhead(feature);
  } catch (error) {
    if (shown.feature !== feature) return;
    $("evidence").replaceChildren(h("p", { class: "trouble" }, error.message));
    $("effect").hidden = true;
    $("kin").replaceChildren();
    drawNearby(feature, []);
  }
}

/* What the next key will ask for, once there is nothing else to do. */
function fetchAhead(feature) {
  const after = stepFrom(feature, 1);
  if (known(after)) setTimeout(() => featureOf(after).catch(() => {}), 150);
}

/* The next or last in the list as it stands; by number for who came by another way. */
function stepFrom(feature, step) {
  const place = found.rows.indexOf(feature);
  if (place >= 0) return found.rows[place + step];
  const next = feature + step;
  return next >= 0 && next < world.n ? next : undefined;
}

function drawFeatureHead(feature) {
  const steps = [
    [-1, "←", "Previous feature"],
    [1, "→", "Next feature"],
  ].map(([step, sign, name]) => {
    const to = stepFrom(feature, step);
    const look = { class: "step", "aria-label": name, title: `${name} (${step < 0 ? "k or ←" : "j or →"})` };
    return known(to) ? h("a", { ...look, href: `#f=${to}` }, sign) : h("span", { class: "step off", "aria-hidden": "true" }, sign);
  });
  const place = found.rows.indexOf(feature);
  const where = place >= 0 ? `${count(place + 1)} of ${count(found.rows.length)}${query() ? ` for “${query()}”` : ""}` : "";
  $("feature-head").replaceChildren(
    h(
      "div",
      { class: "crumbs" },
      h("a", { href: query() ? `#q=${encodeURIComponent(query())}` : "#", class: "back" }, query() ? "← Results" : "← All features"),
      h("span", { class: "where" }, where),
      h("span", { class: "steps" }, steps),
    ),
    h("p", { class: "eyebrow" }, `Feature ${feature}`),
    labelHeading(feature),
    h("p", { class: "lede", hidden: !world.explanation[feature] }, visible(world.explanation[feature])),
    h("dl", { class: "facts" }, featureFacts(feature)),
  );
}

function featureFacts(feature, data) {
  if (dead(feature)) {
    const text = `Never, on the ${count(world.manifest.n_rows)} tokens read`;
    return [fact("Fires", text, ""), ...(data ? norms(data) : [])];
  }
  return [
    fact("Fires on", percent(world.density[feature]), "of tokens"),
    fact("Strongest", short(world.max[feature])),
    fact("Mean when active", short(world.mean[feature]), data ? `± ${short(data.std)}` : ""),
    fact(
      "Documents",
      count(world.documents[feature]),
      data && data.top_document > 0 ? `${percent(data.top_document)} of it in one` : "",
      "In how many documents it fires, and the share of its firings in the document that has most",
    ),
    ...featureStability(feature),
    ...(data ? norms(data) : []),
  ];
}

const norms = (data) => [fact("Decoder norm", short(data.decoder_norm), `encoder ${short(data.encoder_norm)}`)];

function drawEvidence(feature, data) {
  $("feature-head").querySelector(".facts").replaceChildren(...featureFacts(feature, data));
  const aside = dead(feature)
    ? [logitPanels(data)]
    : [logitPanels(data), tokenPanel(data), activationPanel(feature, data), positionPanel(data)];
  const what = dead(feature)
    ? h("p", { class: "empty" }, "This feature never fired on the text that was read: a dead feature. It costs capacity and explains nothing.")
    : null;
  $("evidence").replaceChildren(
    h(
      "section",
      { class: "where-it-fires", "aria-labelledby": "contexts-title" },
      h("div", { class: "over" }, h("h2", { id: "contexts-title" }, "Where it fires"), widthSwitch()),
      what,
      drawContexts(feature, data),
    ),
    h("aside", { "aria-label": "Figures of the feature" }, aside),
  );
  // Charts measure the room they have, so they are drawn once they have it.
  $("kin").replaceChildren(...kinPanels(data));
}

/* A map around the feature, its neighbours marked and most of them in sight. */
function drawNearby(feature, neighbours) {
  $("nearby").hidden = !world.has_map;
  if (!world.has_map) return;
  const [x, y] = [world.x[feature], world.y[feature]];
  if (!nearby) {
    nearby = makeMap($("nearby"), { wheel: false, label: "Map around this feature" });
    nearby.view = settle({ x, y, zoom: 5 });
  }
  nearby.light(null, [feature, ...neighbours]);
  const far = neighbours.map((f) => Math.max(Math.abs(world.x[f] - x), Math.abs(world.y[f] - y))).sort((a, b) => a - b);
  const most = far[Math.floor(0.75 * far.length)] ?? SIDE / 12;
  nearby.look(feature, Math.min(12, SIDE / 2.6 / (most + 1)));
}

/* ---------- Its label, which can be edited where somebody serves the page ---------- */

function labelHeading(feature) {
  const byHand = world.byHand.has(feature);
  const made = world.manifest.imported ? "imported, or made from its tokens" : "made from its tokens";
  const who = byHand ? "written by hand" : made;
  const title = h("h1", { id: "feature-title", tabindex: -1 }, labelOf(feature));
  const mark = h("span", { class: byHand ? "who hand" : "who" }, who);
  const arrow = "“x” → “y”: it fires on x, and y follows there or is what it promotes.";
  if (world.label[feature].includes("→")) title.title = arrow;
  if (!LIVE) return h("div", { class: "naming" }, title, mark);
  const edit = h("button", { type: "button", class: "quiet", onclick: () => editLabel(feature) }, "Rename");
  return h("div", { class: "naming" }, title, mark, edit);
}

function editLabel(feature) {
  const input = h("input", { "aria-label": "Label of the feature", value: world.label[feature], maxlength: 300 });
  const said = h("span", { class: "trouble", role: "alert" });
  const close = () => {
    document.querySelector(".naming, .renaming").replaceWith(labelHeading(feature));
    document.querySelector(".naming button").focus();
  };
  const form = h(
    "form",
    {
      class: "renaming",
      onsubmit: async (event) => {
        event.preventDefault();
        const answer = await ask("label", { feature, label: input.value.trim() });
        if (answer.error) return void (said.textContent = answer.error);
        relabel(feature, answer.label, input.value.trim() !== "");
        close();
      },
      onkeydown: (event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation();
        close();
      },
    },
    input,
    h("button", { class: "primary" }, "Save"),
    h("button", { type: "button", onclick: close }, "Cancel"),
    h("small", {}, "Empty brings the automatic label back."),
    said,
  );
  document.querySelector(".naming").replaceWith(form);
  input.select();
  input.focus();
}

function relabel(feature, label, byHand) {
  world.label[feature] = label;
  if (byHand) world.byHand.add(feature);
  else world.byHand.delete(feature);
  forgetLabels();
  document.title = `${labelOf(feature)} · feature ${feature}`;
  const place = list.active;
  refresh();
  list.active = Math.min(place, list.rows.length - 1);
  nearby?.draw();
}
