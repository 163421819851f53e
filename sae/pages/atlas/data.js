/* ---------- Data: scripts that hand themselves over, which works from disk too ---------- */

const LIVE = document.documentElement.hasAttribute("data-live");

const atlas = {
  taken: new Map(),
  asked: new Map(),
  take(name, value) {
    this.taken.set(name, value);
  },
};

/* What `data/NAME.js` holds; rejects with a sentence when the file is missing or damaged. */
function load(name) {
  if (!atlas.asked.has(name)) {
    const promise = new Promise((resolve, reject) => {
      const script = h("script", { src: `data/${name}.js` });
      const settle = (wrong) => {
        script.remove();
        if (!wrong && atlas.taken.has(name)) resolve(atlas.taken.get(name));
        else reject(new Error(wrong || `data/${name}.js is damaged; run sae analyze again to write it anew.`));
      };
      script.onload = () => settle("");
      script.onerror = () => settle(`data/${name}.js is missing or cannot be read; it belongs beside this page.`);
      document.head.append(script);
    });
    promise.catch(() => atlas.asked.delete(name));
    atlas.asked.set(name, promise);
  }
  return atlas.asked.get(name);
}

/* ---------- All features, in columns ---------- */

const world = { n: 0, manifest: {}, density: [], max: [], mean: [], agreement: [], stability: [], documents: [], x: [], y: [] };

function takeWorld(index, labels) {
  const n = index.density.length;
  const columns = ["max", "mean", "documents", ...(index.has_map ? ["x", "y"] : [])];
  const whole = columns.every((column) => index[column].length === n);
  if (!whole || labels.label.length !== n || labels.explanation.length !== n)
    throw new Error("data/index.js and data/labels.js are not of the same dictionary; run sae analyze again.");
  Object.assign(world, index, {
    n,
    label: labels.label,
    explanation: labels.explanation,
    byHand: new Set(labels.by_hand),
    keys: new Set(index.search),
  });
  // Atlases of before have none.
  world.stability = index.stability ?? [];
  takeDials(index.dials);
  // Without a map all are in one place, and nothing shows it.
  if (!index.has_map) world.x = world.y = new Array(n).fill(SIDE / 2);
}

const dead = (feature) => !(world.density[feature] > 0);
const labelOf = (feature) => visible(world.label[feature] || "") || `Feature ${feature}`;
/* Inside a sentence; labels made from tokens bring marks of their own. */
const quoted = (feature) => (labelOf(feature).includes("“") ? labelOf(feature) : `“${labelOf(feature)}”`);
const rate = (feature) => (dead(feature) ? "never" : percent(world.density[feature]));

/* The block of features that has this one: its strings and its features. */
async function featureOf(feature) {
  const number = Math.floor(feature / world.block);
  const block = await load(`features/${String(number).padStart(5, "0")}`);
  const found = block.features[feature - block.first];
  if (!found) throw new Error(`Feature ${feature} is not in its file; run sae analyze again.`);
  const dial = found.dial && Object.fromEntries(block.dial_columns.map((name, i) => [name, found.dial[i]]));
  return { ...found, dial, strings: block.strings };
}

/* Flat lists to rows of `width`. */
function rowsOf(flat, width) {
  return Array.from({ length: Math.floor(flat.length / width) }, (_, i) => flat.slice(i * width, (i + 1) * width));
}

/* What one looks at and moves about: kept while the page is open, and the rest from session to session. */
const remembered = {
  get(key, otherwise) {
    try {
      return sessionStorage.getItem(`atlas-${key}`) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(key, value) {
    try {
      sessionStorage.setItem(`atlas-${key}`, value);
    } catch {
      // A browser may keep nothing for pages from disk.
    }
  },
};
