/**
 * Where a map lies on its photograph, and its colours: the browser's counterpart of runtime/field.py and
 * runtime/overlay.py, where the constants are explained. tests/test_browser.py checks that they agree.
 */

import { intermediateSize } from "./contract.js";
import { pixelsOf } from "./picture.js";

const LIT_FROM = 15;
const LIT_TO = 25;
const LIT_SHARE = 0.02;
const CELLS = 64;
const DARKEST_LEVEL = 20;
const ABOVE_SURROUND = 0.2;
const SURROUND_AT_MOST = 0.35;
const FIELD_RAMP = 0.1;
const CAPTION_CELLS = 7;
/** In logits: a map whose cells sum to less is blank, because stretching it would make noise look like a finding. */
const BLANK_BELOW = 0.01;
const ANCHORS = [
  [0, [0, 30, 150]],
  [0.4, [10, 90, 240]],
  [0.75, [60, 205, 255]],
  [1, [250, 255, 255]],
];
const CLEAR_BELOW = 0.1;
const OPAQUE_FROM = 0.6;
const LINE_AT = Math.round(255 * 0.5);
/** Opacity, in percent, at which a map looks as retina-score and retina-gradcam draw it. */
export const USUAL_OPACITY = 50;
/** Side in pixels of the square in which a photograph and its maps are shown. */
export const TILE = 720;

/**
 * The part of a photograph that the network sees, in fractions of its width and height, and where it is lit.
 * @param {ImageBitmap} bitmap
 * @param {object} preprocessing of the contract
 * @returns {{left, top, right, bottom, side, lit: Float32Array}} lit is (side, side), 0 to 1, over the whole photograph
 */
export function findField(bitmap, preprocessing) {
  const side = intermediateSize(preprocessing);
  const brightest = brightestOf(pixelsOf(bitmap, side, side));
  const inField = preprocessing.surround === "black" ? fieldMask(brightestOf(pixelsOf(bitmap, CELLS, CELLS))) : null;
  const share = brightest.map((value, at) => {
    const [u, v] = [((at % side) + 0.5) / side, (Math.floor(at / side) + 0.5) / side];
    const seen = inField ? value * between(inField, CELLS, CELLS, u, v) : value;
    return ramp(seen, LIT_FROM, LIT_TO);
  });
  const lit = betweenLit(share, side);
  if (preprocessing.framing === "squash") return { left: 0, top: 0, right: 1, bottom: 1, side, lit };
  const columns = new Float32Array(side);
  const rows = new Float32Array(side);
  share.forEach((value, at) => {
    columns[at % side] += value / side;
    rows[Math.floor(at / side)] += value / side;
  });
  const isLit = [columns, rows].every((profile) => profile.some((value) => value >= LIT_SHARE));
  const edges = (profile) => (isLit ? [firstLit(profile), 1 - firstLit(profile.slice().reverse())] : [0, 1]);
  const [left, right] = edges(columns);
  const [top, bottom] = edges(rows);
  const { width, height } = bitmap;
  const square = Math.max((right - left) * width, (bottom - top) * height);
  const [x, y] = [(left + right) / 2, (top + bottom) / 2];
  const [halfX, halfY] = [square / width / 2, square / height / 2];
  return { left: x - halfX, top: y - halfY, right: x + halfX, bottom: y + halfY, side, lit };
}

/** The framed photograph on black, at most TILE pixels a side. */
export function frame(bitmap, field) {
  const [x, y] = [field.left * bitmap.width, field.top * bitmap.height];
  const [across, down] = [(field.right - field.left) * bitmap.width, (field.bottom - field.top) * bitmap.height];
  const scale = TILE / Math.max(across, down);
  const tile = new OffscreenCanvas(Math.round(across * scale), Math.round(down * scale));
  const pen = tile.getContext("2d", { alpha: false });
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, -x * scale, -y * scale, bitmap.width * scale, bitmap.height * scale);
  return tile.transferToImageBitmap();
}

/** Whether a map, (rows, columns) values in logits, is drawn blank. */
export const isBlank = ({ values }) => values.reduce((sum, value) => sum + value, 0) < BLANK_BELOW;

export const peak = ({ values }) => values.reduce((most, value) => Math.max(most, value), 0);

/** RGB and opacity, 0 to 255, of each of the scale's 256 colours; the page scales the opacity. */
export function colours() {
  return Array.from({ length: 256 }, (_, level) => {
    const at = level / 255;
    const above = Math.max(1, ANCHORS.findIndex(([stop]) => stop >= at));
    const [[from, dark], [to, light]] = [ANCHORS[above - 1], ANCHORS[above]];
    const share = (at - from) / (to - from);
    const rgb = dark.map((value, channel) => Math.round(value + share * (light[channel] - value)));
    return [...rgb, Math.round(255 * Math.min(1, Math.max(0, (at - CLEAR_BELOW) / (OPAQUE_FROM - CLEAR_BELOW))))];
  });
}

/**
 * Paint a map at the size of the framed photograph.
 * @returns {{tint: ImageData, line: ImageData}} the colours, and the white outline of what reaches half of the scale
 */
export function paint(map, field, width, height) {
  const level = new Uint8Array(width * height);
  const scale = 255 / peak(map);
  for (let y = 0, at = 0; y < height; y += 1) {
    const v = (y + 0.5) / height;
    const down = field.top + v * (field.bottom - field.top);
    for (let x = 0; x < width; x += 1, at += 1) {
      const u = (x + 0.5) / width;
      const across = field.left + u * (field.right - field.left);
      if (across < 0 || across > 1 || down < 0 || down > 1) continue;
      const value = between(map.values, map.columns, map.rows, u, v);
      level[at] = Math.round(Math.min(255, value * scale * between(field.lit, field.side, field.side, across, down)));
    }
  }
  const tint = new ImageData(width, height);
  const line = new ImageData(width, height);
  const table = colours();
  const inside = (x, y) => level[Math.min(height - 1, Math.max(0, y)) * width + Math.min(width - 1, Math.max(0, x))] >= LINE_AT;
  for (let at = 0; at < level.length; at += 1) {
    tint.data.set(table[level[at]], 4 * at);
    if (level[at] < LINE_AT) continue;
    const [x, y] = [at % width, Math.floor(at / width)];
    if (inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1)) continue;
    line.data.fill(255, 4 * at, 4 * at + 4);
  }
  return { tint, line };
}

/** A grid's value at fractions of its width and height, bilinear between its cells' centres. */
function between(grid, columns, rows, u, v) {
  const x = Math.min(columns - 1, Math.max(0, u * columns - 0.5));
  const y = Math.min(rows - 1, Math.max(0, v * rows - 0.5));
  const [left, top] = [Math.floor(x), Math.floor(y)];
  const [right, bottom] = [Math.min(left + 1, columns - 1), Math.min(top + 1, rows - 1)];
  const upper = grid[top * columns + left] * (1 - x + left) + grid[top * columns + right] * (x - left);
  const lower = grid[bottom * columns + left] * (1 - x + left) + grid[bottom * columns + right] * (x - left);
  return upper * (1 - y + top) + lower * (y - top);
}

function brightestOf(rgb) {
  return Float32Array.from({ length: rgb.length / 3 }, (_, at) => Math.max(rgb[3 * at], rgb[3 * at + 1], rgb[3 * at + 2]));
}

const ramp = (value, from, to) => Math.min(1, Math.max(0, (value - from) / (to - from)));

/** Which cells of a grid of CELLS x CELLS belong to the field, 0 to 1: the counterpart of _field_mask. */
function fieldMask(cells) {
  const sum = cells.reduce((so, value) => so + value, 0);
  const squares = cells.reduce((so, value) => so + value * value, 0);
  const level = Math.max(squares / Math.max(sum, 1), DARKEST_LEVEL);
  const dark = cells.reduce((least, value) => Math.min(least, value), Infinity);
  const threshold = Math.min(dark + ABOVE_SURROUND * (level - dark), SURROUND_AT_MOST * level);
  const half = (FIELD_RAMP * level) / 2;
  const lit = cells.map((value) => ramp(value, threshold - half, threshold + half));
  const narrowed = mostAround(lit.map((value) => -value), CAPTION_CELLS).map((value) => -value);
  const broad = mostAround(narrowed, CAPTION_CELLS);
  return broad.some((value) => value >= 0.5) ? mostAround(betweenLit(broad, CELLS), 3) : cells.fill(1);
}

/** The maximum over a square of width cells around each cell, padded with zeros beyond the edge. */
function mostAround(cells, width) {
  const reach = (width - 1) / 2;
  return cells.map((_, at) => {
    const [column, row] = [at % CELLS, Math.floor(at / CELLS)];
    let most = -Infinity;
    for (let y = row - reach; y <= row + reach; y += 1) {
      for (let x = column - reach; x <= column + reach; x += 1) {
        const isInside = x >= 0 && x < CELLS && y >= 0 && y < CELLS;
        most = Math.max(most, isInside ? cells[y * CELLS + x] : 0);
      }
    }
    return most;
  });
}

/** Fills every pixel that lies between lit pixels both in its row and in its column. */
function betweenLit(share, side) {
  const filled = new Float32Array(share.length).fill(1);
  const run = (first, step) => {
    const before = new Float32Array(side);
    const most = (from, to, by, use) => {
      for (let k = from, so = 0; k !== to; k += by) use(k, (so = Math.max(so, share[first + k * step])));
    };
    most(0, side, 1, (k, so) => (before[k] = so));
    most(side - 1, -1, -1, (k, so) => {
      const at = first + k * step;
      filled[at] = Math.min(filled[at], before[k], so);
    });
  };
  for (let k = 0; k < side; k += 1) {
    run(k * side, 1);
    run(k, side);
  }
  return filled;
}

/** Where a profile first reaches LIT_SHARE, interpolated between neighbours. */
function firstLit(profile) {
  const first = profile.findIndex((value) => value >= LIT_SHARE);
  const before = first ? profile[first - 1] : 0;
  const back = (profile[first] - LIT_SHARE) / Math.max(profile[first] - before, 1e-6);
  return Math.min(1, Math.max(0, (first + 0.5 - back) / profile.length));
}
