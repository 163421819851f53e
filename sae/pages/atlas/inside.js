/* ---------- Inside the model: the lens of the text that was read, and what it says of its state at a token ---------- */

const inside = { drawLens: null, clearState: null };

function startInside() {
  if (!LIVE) return;
  inside.drawLens = lensGrid($("lens-table"), $("lens-box"));
  inside.clearState = askPanel("state", () => {
    const { answer, token } = live;
    return {
      call: "ask_state",
      body: { text: answer.text, position: token },
      what: "the state",
      columns: [
        ["state", "This token's state"],
        ["random", "A random vector, as long"],
        ["other position", "Another token's state, as long"],
      ],
      still: () => live.answer === answer && live.token === token,
    };
  });
  $("lens-button").addEventListener("click", readLens);
}

async function readLens() {
  const reading = live.answer;
  const call = ask("lens", { text: reading.text });
  const answer = await working($("lens-status"), "Reading block by block …", $("lens-button"), call);
  if (live.answer !== reading) return void ($("lens-status").textContent = "");
  if (answer.error) return;
  const { tokens, kinds, n_tokens } = answer;
  $("lens").hidden = false;
  $("lens-cut").hidden = n_tokens <= tokens.length;
  $("lens-cut").textContent = `The text has ${count(n_tokens)} tokens; these are the first ${count(tokens.length)}.`;
  inside.drawLens(tokens, kinds[0]);
  markColumn();
}

/* Another text was read. */
function forgetInside() {
  $("lens").hidden = true;
  $("lens-table").replaceChildren();
  $("lens-status").textContent = "";
  drawState();
}

/* Another token is chosen, or none. */
function drawState() {
  $("state").hidden = live.token < 0;
  inside.clearState();
  markColumn();
  if (live.token >= 0) $("state-token").replaceChildren(...chosenToken());
}

function markColumn() {
  for (const names of $("lens-table").querySelectorAll("thead tr, tfoot tr"))
    for (const [i, name] of [...names.children].entries()) {
      if (i !== live.token + 1 || !i) name.removeAttribute("aria-current");
      else name.setAttribute("aria-current", "true");
    }
  const name = $("lens-table").querySelector("[aria-current]");
  if (name) $("lens-box").scrollLeft = name.offsetLeft - $("lens-box").clientWidth / 2;
}
