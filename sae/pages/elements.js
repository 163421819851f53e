"use strict";

/* ---------- Elements ---------- */

const $ = (id) => document.getElementById(id);

function reveal(id, content) {
  const some = Array.isArray(content) ? content.length > 0 : Boolean(content);
  $(id).hidden = !some;
  return some;
}

/* Strings become text nodes and attribute values, never markup. */
function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}
const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const SIDEWAYS = ".scroll, .wide";
/* What goes on sideways says so in words below it, which a screen reader reads too. */
addEventListener("DOMContentLoaded", () => {
  const notes = new Map();
  const say = (box) => (notes.get(box).hidden = box.scrollWidth <= box.clientWidth + 1);
  const watch = new ResizeObserver((seen) => {
    // A table that was taken away, for another one, is in no box.
    const boxes = new Set(seen.map(({ target }) => target.closest(SIDEWAYS)).filter(Boolean));
    // The words change sizes too, which an observer must not do while it is told of some.
    requestAnimationFrame(() => boxes.forEach(say));
  });
  for (const [i, box] of document.querySelectorAll(SIDEWAYS).entries()) {
    const words = "This table is wider than the page: scroll it sideways to see all of it.";
    notes.set(box, h("p", { class: "more", id: `more-${i}`, hidden: true }, words));
    box.after(notes.get(box));
    box.setAttribute("aria-describedby", `more-${i}`);
    for (const part of [box, ...box.children]) watch.observe(part);
  }
});

/* ---------- Figures in words ---------- */

const known = (value) => value !== null && value !== undefined;
const when = (write) => (value) => (known(value) ? write(value) : "–");
const digits3 = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const count = when((value) => whole.format(value));
const fixed = (digits) => when((value) => value.toFixed(digits));
const short = when((value) => digits3.format(value));
const percent = when((value) => {
  const share = 100 * value;
  return `${share === 0 ? 0 : Number(share.toPrecision(share < 10 ? 2 : 3))}%`;
});
const signed = when((value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${short(Math.abs(value))}`);
const logit = when((value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`);
const duration = when((seconds) =>
  seconds < 90 ? `${short(seconds)} s` : `${(seconds / 60).toFixed(seconds < 6000 ? 1 : 0)} min`,
);
const bytes = when((size) => {
  const power = Math.min(3, Math.floor(Math.log10(Math.max(1, size)) / 3));
  return `${short(size / 1000 ** power)} ${["B", "kB", "MB", "GB"][power]}`;
});
