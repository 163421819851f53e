/* ---------- Code to take along ---------- */

function snippet(code) {
  const pre = h("pre", { tabindex: 0 }, h("code", {}, code));
  const button = h("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(pre);
    // Not every browser lets a page from disk write to the clipboard; the text is selected then.
    button.textContent = await navigator.clipboard.writeText(code).then(
      () => "Copied",
      () => "Selected",
    );
  });
  return h("div", { class: "snippet" }, pre, button);
}
