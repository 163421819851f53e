/* ---------- Points: a grid that finds them, pixels that show them ---------- */

const SIDE = 4096;
const CELLS = 64;
const cellOf = (x, y) => (Math.min(CELLS - 1, (y * CELLS) >> 12) * CELLS) + Math.min(CELLS - 1, (x * CELLS) >> 12);

/* Features by cell of the map: those of cell c are `items[start[c] .. start[c + 1]]`. */
function makeGrid() {
  const { x, y, n } = world;
  const start = new Uint32Array(CELLS * CELLS + 1);
  for (let f = 0; f < n; f++) start[cellOf(x[f], y[f]) + 1]++;
  for (let c = 0; c < CELLS * CELLS; c++) start[c + 1] += start[c];
  const next = start.slice();
  const items = new Uint32Array(n);
  for (let f = 0; f < n; f++) items[next[cellOf(x[f], y[f])]++] = f;
  return { start, items };
}
let sharedGrid = null;
const grid = () => (sharedGrid ??= makeGrid());

/* Every feature of the cells that a rectangle of map units touches. */
function eachWithin(left, top, right, bottom, visit) {
  const { start, items } = grid();
  const cell = (value) => Math.max(0, Math.min(CELLS - 1, Math.floor((value * CELLS) / SIDE)));
  for (let row = cell(top); row <= cell(bottom); row++) {
    const from = start[row * CELLS + cell(left)];
    const to = start[row * CELLS + cell(right) + 1];
    for (let i = from; i < to; i++) visit(items[i]);
  }
}

/* How much of each pixel a disc of this radius covers, 0 to 256. */
const discs = new Map();
function disc(radius) {
  const key = Math.round(radius * 4);
  if (!discs.has(key)) {
    const r = key / 4;
    const reach = Math.ceil(r);
    const size = 2 * reach + 1;
    const cover = new Uint16Array(size * size);
    for (let i = 0; i < cover.length; i++) {
      const away = Math.hypot((i % size) - reach, Math.floor(i / size) - reach);
      cover[i] = Math.round(256 * Math.max(0, Math.min(1, r + 0.5 - away)));
    }
    discs.set(key, { reach, size, cover });
  }
  return discs.get(key);
}

/* A picture of discs over a plain ground, mixed pixel by pixel: a hundred thousand in a few milliseconds. */
class Picture {
  constructor(width, height, ground) {
    this.image = new ImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.width = width;
    this.height = height;
    this.pixels.fill(packed(ground));
  }

  dot(x, y, { reach, size, cover }, [red, green, blue], alpha) {
    const left = Math.round(x) - reach;
    const top = Math.round(y) - reach;
    const { width, height, pixels } = this;
    for (let row = Math.max(0, -top); row < size && top + row < height; row++) {
      for (let column = Math.max(0, -left); column < size && left + column < width; column++) {
        const share = (cover[row * size + column] * alpha) >> 8;
        if (!share) continue;
        const at = (top + row) * width + left + column;
        const under = pixels[at];
        const keep = 256 - share;
        pixels[at] =
          0xff000000 |
          (((((under >> 16) & 255) * keep + blue * share) >> 8) << 16) |
          (((((under >> 8) & 255) * keep + green * share) >> 8) << 8) |
          (((under & 255) * keep + red * share) >> 8);
      }
    }
  }
}

const packed = ([red, green, blue]) => (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
