/**
 * Decodes a file by the rules of retina-score, as far as a browser can: orientation applied, colour profiles ignored,
 * transparent parts black, and no incomplete pictures.
 */

const MAX_PIXELS = 100_000_000;

/** A file that is not a photograph this browser can read; the message is shown in its row. */
export class PictureError extends Error {}

const starts = (bytes, ...prefix) => prefix.every((byte, index) => bytes[index] === byte);
const word = (bytes, at) => String.fromCharCode(...bytes.subarray(at, at + 4));
const little32 = (bytes, at) => new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);

/**
 * Formats by their first bytes, and whether a file is complete: browsers show the part of a truncated file that they
 * have, but half a retina must not be graded.
 */
const FORMATS = [
  // In a JPEG's pixel data 0xff is always followed by 0 or a restart marker, so ff d9 after the last ff da is its end.
  { name: "JPEG", is: (b) => starts(b, 0xff, 0xd8, 0xff), isWhole: (b) => last(b, 0xff, 0xd9) > last(b, 0xff, 0xda) },
  { name: "PNG", is: (b) => starts(b, 0x89, 0x50, 0x4e, 0x47), isWhole: (b) => last(b, 0x49, 0x45, 0x4e, 0x44) > 0 },
  {
    name: "WebP",
    is: (b) => word(b, 0) === "RIFF" && word(b, 8) === "WEBP",
    isWhole: (b) => little32(b, 4) + 8 <= b.length,
  },
  { name: "BMP", is: (b) => starts(b, 0x42, 0x4d), isWhole: (b) => b.length >= 54 && little32(b, 2) <= b.length },
];
const ELSEWHERE = [
  { name: "TIFF", is: (b) => /^(II[*+]\0|MM\0[*+])/.test(word(b, 0)) },
  { name: "JPEG 2000", is: (b) => starts(b, 0xff, 0x4f, 0xff, 0x51) || word(b, 4) === "jP  " },
  { name: "DICOM", is: (b) => word(b, 128) === "DICM" },
];

/**
 * @param {Blob} file
 * @param {number} minSide of the contract
 * @returns {Promise<ImageBitmap>} upright, in full size; the caller closes it
 * @throws {PictureError} not a file of these formats, cut short, damaged, too small or too large
 */
export async function decode(file, minSide) {
  const bytes = new Uint8Array(await file.arrayBuffer().catch(() => refuse("cannot be read")));
  if (!bytes.length) refuse("empty file");
  const format = FORMATS.find(({ is }) => is(bytes));
  if (!format) {
    const other = ELSEWHERE.find(({ is }) => is(bytes));
    const found = other?.name ?? `a file that starts with ${hex(bytes.subarray(0, 8))}`;
    const hint = other ? ": convert it, or use retina-score, which reads it" : "";
    refuse(`not a photograph that this browser reads: expected JPEG, PNG, WebP or BMP, found ${found}${hint}`);
  }
  if (!format.isWhole(bytes)) refuse(`damaged ${format.name} file: cut short`);
  if (format.name === "WebP" && isTurned(bytes)) {
    refuse("WebP with an EXIF orientation, which browsers may not apply: convert it, or use retina-score, which does");
  }
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes]), options).catch(() =>
    refuse(`damaged ${format.name} file, or one that this browser cannot read`),
  );
  const { width, height } = bitmap;
  const found = `found ${width} x ${height}`;
  if (Math.min(width, height) < minSide) refuse(`too small: expected at least ${minSide} pixels a side, ${found}`);
  if (width * height > MAX_PIXELS) refuse(`too large: expected at most ${MAX_PIXELS} pixels, ${found}`);
  return bitmap;
}

/**
 * @param {ImageBitmap} bitmap
 * @param {number} width
 * @param {number} height to which it is resized, smoothly
 * @returns {Uint8Array} RGB, (height, width, 3)
 */
export function pixelsOf(bitmap, width = bitmap.width, height = bitmap.height) {
  const rgb = new Uint8Array(width * height * 3);
  // In strips, so that there is no second copy of a camera original, with four channels.
  const strip = width === bitmap.width && height === bitmap.height ? Math.min(height, 256) : height;
  const canvas = new OffscreenCanvas(width, strip);
  const pen = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  for (let top = 0, to = 0; top < height; top += strip) {
    pen.fillRect(0, 0, width, strip); // black behind transparent parts
    pen.drawImage(bitmap, 0, -top, width, height);
    const { data } = pen.getImageData(0, 0, width, Math.min(strip, height - top));
    for (let from = 0; from < data.length; from += 4) {
      rgb[to++] = data[from];
      rgb[to++] = data[from + 1];
      rgb[to++] = data[from + 2];
    }
  }
  return rgb;
}

function refuse(reason) {
  throw new PictureError(reason);
}

const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

/** Whether a WebP has an EXIF orientation other than upright. */
function isTurned(bytes) {
  const riff = new DataView(bytes.buffer, bytes.byteOffset);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = riff.getUint32(at + 4, true);
    if (word(bytes, at) === "EXIF") return orientation(bytes.subarray(at + 8, at + 8 + size)) !== 1;
    at += 8 + size + (size % 2);
  }
  return false;
}

/** The orientation in EXIF data, 1 to 8; 1 if it has none, or is damaged. */
function orientation(exif) {
  const tiff = exif.subarray(word(exif, 0) === "Exif" ? 6 : 0);
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.length);
  const little = word(tiff, 0).startsWith("II");
  try {
    const first = view.getUint32(4, little);
    for (let entry = 0; entry < view.getUint16(first, little); entry += 1) {
      const at = first + 2 + 12 * entry;
      if (view.getUint16(at, little) === 0x0112) return view.getUint16(at + 8, little);
    }
  } catch (err) {
    if (!(err instanceof RangeError)) throw err;
  }
  return 1;
}

/** The last position of a sequence of bytes; -1 if it does not occur. */
function last(bytes, ...sought) {
  for (let at = bytes.lastIndexOf(sought[0]); at >= 0; at = at ? bytes.lastIndexOf(sought[0], at - 1) : -1) {
    if (sought.every((byte, index) => bytes[at + index] === byte)) return at;
  }
  return -1;
}
