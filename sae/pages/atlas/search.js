/* ---------- Search: labels in memory, texts through an index that is loaded as needed ---------- */

/* How well a word meets a feature: as its number, in its label, in what it fires on or promotes. */
const NUMBER = 6;
const WHOLE_WORD = 5;
const WORD_START = 4;
const INSIDE = 3;
const TEXT_WORD = 2;
const TEXT_START = 1;

const found = { words: [], rows: new Uint32Array(0), on: null, tiers: null, pending: false };
const lowered = { label: null, explanation: null };
const wordTiers = new Map();
const permutations = new Map();
const isLetter = (text, at) => at >= 0 && at < text.length && /[\p{L}\p{N}\p{M}]/u.test(text[at]);

function forgetLabels() {
  lowered.label = null;
  wordTiers.clear();
}

function lowerLabels() {
  if (lowered.label) return;
  lowered.label = world.label.map((text) => text.toLowerCase());
  lowered.explanation = world.explanation.map((text) => text.toLowerCase());
}

/* Features in an order, dead ones last. */
function permutation(order) {
  if (permutations.has(order)) return permutations.get(order);
  const { density, max, agreement, n } = world;
  const most = max.reduce((a, b) => Math.max(a, b), 1e-9);
  const goodness = {
    clear: (f) => (agreement[f] ?? 0) + (0.009 * max[f]) / most,
    strong: (f) => max[f] / most,
    frequent: (f) => (Math.log10(density[f]) + 12) / 12,
    rare: (f) => -Math.log10(density[f]) / 12,
    number: (f) => 1 - f / n,
    // By verdict first: what is no dial may have a high score by chance.
    stable: (f) => stabilityOf(f) ?? 0,
    dial: (f) => (1 + world.verdict[f] + ((world.score[f] || 0) + 1) / 2) / 4,
  }[order];
  // One number a feature, goodness above and place below: sorted without a comparison function.
  const keys = new Float64Array(n);
  for (let f = 0; f < n; f++) {
    const good = dead(f) && order !== "number" ? -1 : goodness(f);
    keys[f] = Math.round((2 - good) * 2 ** 26) * 2 ** 22 + f;
  }
  keys.sort();
  const sorted = Uint32Array.from(keys, (key) => key % 2 ** 22);
  permutations.set(order, sorted);
  return sorted;
}

/* How well one word meets each feature, 0 where it does not; `pending` while an index file is on its way. */
function tiersOf(word) {
  const cached = wordTiers.get(word);
  if (cached) return cached;
  lowerLabels();
  const tiers = new Uint8Array(world.n);
  for (let f = 0; f < world.n; f++) {
    const text = lowered.label[f];
    const at = text.indexOf(word);
    if (at >= 0) tiers[f] = labelTier(text, word, at);
    else if (lowered.explanation[f] && lowered.explanation[f].includes(word)) tiers[f] = TEXT_WORD;
  }
  const files = termsOf(word).map(textTiers);
  if (files.length) {
    for (let f = 0; f < world.n; f++) {
      const least = Math.min(...files.map((file) => file.tiers[f]));
      if (least > tiers[f]) tiers[f] = least;
    }
  }
  const number = /^#?(\d+)$/.exec(word)?.[1];
  if (number && Number(number) < world.n) tiers[Number(number)] = NUMBER;
  const result = { tiers, pending: files.some((file) => file.pending) };
  if (!result.pending) {
    if (wordTiers.size > 24) wordTiers.delete(wordTiers.keys().next().value);
    wordTiers.set(word, result);
  }
  return result;
}

function labelTier(text, word, at) {
  let best = INSIDE;
  for (let place = at; place >= 0; place = text.indexOf(word, place + 1)) {
    if (isLetter(text, place - 1)) continue;
    if (!isLetter(text, place + word.length)) return WHOLE_WORD;
    best = WORD_START;
  }
  return best;
}

/* What the index has of a word that is typed: its words, and pairs of signs and of characters of scripts
   without spaces. One sign beside a word says nothing: it stands in all texts. */
function termsOf(typed) {
  const text = typed.normalize("NFC").replace(/[\ufe00-\ufe0f\u{e0100}-\u{e01ef}]/gu, "");
  const { parts, own } = patterns();
  const runs = text.match(parts) || [];
  return runs.flatMap((run) => {
    if (isWord(run)) return [run.slice(0, 40)];
    const characters = [...run];
    if (characters.length === 1) return runs.length > 1 && !own.test(run) ? [] : characters;
    return characters.slice(1).map((character, i) => characters[i] + character);
  });
}

/* Made once: those of whole alphabets take the browser a while. */
function patterns() {
  const own = world.unspaced;
  found.patterns ??= {
    parts: new RegExp(`[${own}]+|(?:(?![${own}])[\\p{L}\\p{N}\\p{M}])+|[^\\p{L}\\p{N}${own}]+`, "gu"),
    own: new RegExp(`[${own}]`, "u"),
    word: new RegExp(`^(?![${own}])[\\p{L}\\p{N}]`, "u"),
  };
  return found.patterns;
}

const isWord = (term) => patterns().word.test(term);
const units = (text) => text.split("").map((unit) => unit.charCodeAt(0).toString(16));

function textTiers(part) {
  const tiers = new Uint8Array(world.n);
  const whole = !isWord(part);
  const name = whole ? `g-${(part.codePointAt(0) >> 4).toString(16)}` : units(part.slice(0, 2)).join("-");
  if (!world.keys.has(name)) return { tiers, pending: false };
  const words = atlas.taken.get(`search/${name}`);
  if (!words) {
    load(`search/${name}`).then(searchAgain, (error) => {
      world.keys.delete(name);
      complain(error.message);
      searchAgain();
    });
    return { tiers, pending: true };
  }
  for (const [word, [, ...features]] of Object.entries(words)) {
    if (whole ? word !== part : !word.startsWith(part)) continue;
    const tier = word === part ? TEXT_WORD : TEXT_START;
    for (const f of features) if (tiers[f] < tier) tiers[f] = tier;
  }
  return { tiers, pending: false };
}

/* Sets `found`: the rows of the list, and `on`, which of all features they are (null: all of them). */
function find(query, order, filter) {
  const words = [...new Set(query.toLowerCase().split(/\s+/).filter(Boolean))];
  const results = words.map(tiersOf);
  const sums = new Uint8Array(world.n);
  const meets = (f) => {
    let sum = 1;
    for (const { tiers } of results) {
      if (!tiers[f]) return 0;
      sum += tiers[f];
    }
    return sum;
  };
  for (let f = 0; f < world.n; f++) if (passes(f, filter)) sums[f] = meets(f);
  const sorted = permutation(order === "relevance" ? "clear" : order);
  const rows = [];
  if (order === "relevance" && words.length) {
    const tiers = Array.from({ length: 1 + NUMBER * words.length + 1 }, () => []);
    for (const f of sorted) if (sums[f]) tiers[sums[f]].push(f);
    for (const tier of tiers.toReversed()) for (const f of tier) rows.push(f);
  } else for (const f of sorted) if (sums[f]) rows.push(f);
  const narrowed = words.length > 0 || filter.low !== null || filter.alive || filter.byHand || filter.dials || filter.stable;
  Object.assign(found, {
    words,
    rows: Uint32Array.from(rows),
    on: narrowed ? sums : null,
    inText: (f) => results.length > 0 && results.every(({ tiers }) => tiers[f] <= TEXT_WORD),
    pending: results.some(({ pending }) => pending),
  });
}

function passes(f, filter) {
  if (filter.alive && dead(f)) return false;
  if (filter.byHand && !world.byHand.has(f)) return false;
  if (filter.dials && !isDial(f)) return false;
  if (filter.stable && !isStable(f)) return false;
  if (filter.low === null) return true;
  const place = Math.log10(world.density[f]);
  return place >= filter.low - 1e-9 && place < filter.high + 1e-9;
}

/* `text` with what was searched for marked. */
function highlighted(text, words) {
  const lower = text.toLowerCase();
  const wanted = words.filter((word) => !/^#\d+$/.test(word));
  if (!wanted.length || lower.length !== text.length) return [text];
  const lit = new Uint8Array(text.length);
  for (const word of wanted)
    for (let at = lower.indexOf(word); at >= 0; at = lower.indexOf(word, at + 1)) lit.fill(1, at, at + word.length);
  const parts = [];
  for (let from = 0, to = 0; from < text.length; from = to) {
    while (to < text.length && lit[to] === lit[from]) to++;
    parts.push(lit[from] ? h("mark", {}, text.slice(from, to)) : text.slice(from, to));
  }
  return parts;
}
