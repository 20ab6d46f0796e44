/**
 * The files that were dropped or chosen, with the names of their rows.
 */

/** Endings of the photographs that retina-score looks for in a folder. */
const ENDINGS = /\.(jpe?g|jpe|jfif|png|tiff?|bmp|webp|jp2|j2k|jpx|dcm)$/i;

/** @typedef {{name: string, file: File}} Named */

/**
 * All files that were dropped, of any kind, and the photographs in the folders that were dropped. The latter are named
 * by their path below the folder, preceded by the folder's own name if anything else was dropped with it, because the
 * folders of two patients may contain equal names.
 * @param {DataTransfer} transfer of a drop
 * @returns {Promise<Named[]>}
 */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return chosen(transfer.files);
  const found = [];
  for (const entry of entries) {
    if (entry.isDirectory) found.push(...(await below(entry, entries.length > 1 ? `${entry.name}/` : "")));
    else found.push({ name: entry.name, file: await fileOf(entry) });
  }
  return found;
}

/**
 * The files chosen with an input element; of a folder, only the photographs.
 * @param {FileList} list of an input element
 * @returns {Named[]}
 */
export function chosen(list) {
  const files = [...list];
  if (!files.some((file) => file.webkitRelativePath)) return files.map((file) => ({ name: file.name, file }));
  return files
    .map((file) => ({ name: file.webkitRelativePath.split("/").slice(1).join("/"), file }))
    .filter(({ name }) => isPicture(name));
}

const isPicture = (path) => ENDINGS.test(path) && !path.split("/").some((part) => part.startsWith("."));

async function below(folder, prefix) {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const entry of some) {
      const name = prefix + entry.name;
      if (entry.isDirectory && !entry.name.startsWith(".")) found.push(...(await below(entry, `${name}/`)));
      else if (entry.isFile && isPicture(entry.name)) found.push({ name, file: await fileOf(entry) });
    }
  }
}

const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));
