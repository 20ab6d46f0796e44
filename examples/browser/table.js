/**
 * A table with the same columns as retina-score's, for programs that read that one.
 */

const NOTEBOOK_COLUMNS = ["Image name", "Pred DR grade (orig)", "True DR grade (orig)", "Pred ME risk", "True ME risk"];

/**
 * @param {{name: string, answer: object?, error: string}[]} rows
 * @param {number[]} grades of the contract
 * @returns {string} CSV, a line per photograph, sorted by name as in retina-score; both True columns are empty
 */
export function toCsv(rows, grades) {
  const header = [...NOTEBOOK_COLUMNS, ...grades.map((grade) => `dr_prob_${grade}`), "me_prob", "status", "error"];
  const sorted = [...rows].sort((one, other) => byCodePoint(one.name, other.name));
  return [header, ...sorted.map((row) => cells(row, grades))].map((line) => line.map(quoted).join(",") + "\n").join("");
}

function cells({ name, answer, error }, grades) {
  if (!answer) return [name, "", "", "", "", ...grades.map(() => ""), "", "error", error];
  const probs = [...answer.drProbs, answer.meProb].map((prob) => prob.toFixed(6));
  return [name, String(answer.grade), "", String(answer.meRisk), "", ...probs, "ok", ""];
}

const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

/** Compare by code points, as Python does; JavaScript compares strings by 16-bit units. */
function byCodePoint(one, other) {
  const [a, b] = [Array.from(one), Array.from(other)];
  const at = a.findIndex((char, index) => char !== b[index]);
  if (at < 0) return a.length - b.length;
  return at >= b.length ? 1 : a[at].codePointAt(0) - b[at].codePointAt(0);
}
