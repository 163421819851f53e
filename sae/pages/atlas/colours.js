/* ---------- A scale of colours that is evenly ordered to the eye ---------- */

const SHADES = 48;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => {
  const asked = document.documentElement.style.colorScheme;
  return asked ? asked === "dark" : systemDark.matches;
};

/* From OKLCH (lightness, chroma, hue in degrees) to sRGB bytes. */
function fromOklch(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((linear) => {
    const light = Math.max(0, Math.min(1, linear));
    return Math.round(255 * (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055));
  });
}

/* Lightness runs evenly, away from the paper; the hue turns from amber over teal to indigo. */
function makeRamp(dark) {
  return Array.from({ length: SHADES }, (_, i) => {
    const t = i / (SHADES - 1);
    const lightness = dark ? 0.46 + 0.46 * t : 0.78 - 0.48 * t;
    const hue = dark ? 285 - 185 * t : 80 + 200 * t;
    return fromOklch(lightness, 0.125 - 0.03 * Math.abs(2 * t - 1), hue);
  });
}

const ramps = new Map();
function ramp() {
  const dark = isDark();
  if (!ramps.has(dark)) ramps.set(dark, makeRamp(dark));
  return ramps.get(dark);
}
const css = (shade) => `rgb(${shade.join(" ")})`;
const rampColour = (share) => css(ramp()[Math.round(Math.max(0, Math.min(1, share)) * (SHADES - 1))]);

/* A colour of the style sheet as bytes, whatever scheme it is for. */
const styleColours = new Map();
function styleColour(name) {
  const key = `${name} ${isDark()}`;
  if (!styleColours.has(key)) {
    const probe = h("i", { "--probe": `var(${name})` });
    probe.style.color = "var(--probe)";
    document.body.append(probe);
    styleColours.set(key, getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number));
    probe.remove();
  }
  return styleColours.get(key);
}

/* ---------- What the map can be coloured by ---------- */

const PAINTS = {
  density: {
    name: "How often it fires",
    of: (f) => Math.log10(world.density[f]),
    write: (value) => percent(10 ** value),
  },
  strength: {
    name: "Strongest activation",
    of: (f) => Math.log10(world.max[f]),
    write: (value) => short(Number((10 ** value).toPrecision(2))),
  },
  clear: { name: "How clear it is", of: (f) => world.agreement[f] ?? 0, write: percent },
  dial: { name: "Dial score", of: (f) => world.score[f], write: (value) => signed(Number(value.toPrecision(2))) },
  stable: { name: "Stability over seeds", of: (f) => stabilityOf(f) ?? NaN, write: fixed(2) },
};

/* The range of a paint over all features alive, without the outermost hundredths; `share` is not a number
   for features that it says nothing of. */
function paintScale(name) {
  const { of } = PAINTS[name];
  const values = new Float64Array(world.n).map((_, f) => (dead(f) ? NaN : of(f))).filter(Number.isFinite).sort();
  if (!values.length) return { of, low: 0, high: 1, share: () => 0 };
  const low = values[Math.floor(0.01 * (values.length - 1))];
  const high = Math.max(values[Math.ceil(0.99 * (values.length - 1))], low + 1e-6);
  return { of, low, high, share: (f) => (of(f) - low) / (high - low) };
}
