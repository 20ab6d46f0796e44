/**
 * A table with the same columns as retina-score's, for programs that read that one.
 */

const NOTEBOOK_COLUMNS = ["Image name", "Pred DR grade (orig)", "True DR grade (orig)", "Pred ME risk", "True ME risk"];

/**
 * @param {{name: string, answer: object?, error: string}[]} rows
 * @param {object} contract
 * @returns {string} CSV, a line per photograph, sorted by name as in retina-score; both True columns are empty, and there
 *   are those of novelty if the model file has it
 */
export function toCsv(rows, { dr_grades: grades, unfamiliar_from: level }) {
  const novelty = level === null ? [] : ["novelty", "unfamiliar"];
  const header = [...NOTEBOOK_COLUMNS, ...grades.map((grade) => `dr_prob_${grade}`), "me_prob", "status", "error", ...novelty];
  const sorted = [...rows].sort((one, other) => byCodePoint(one.name, other.name));
  return [header, ...sorted.map((row) => cells(row, grades, novelty))].map((line) => line.map(quoted).join(",") + "\n").join("");
}

function cells({ name, answer, error }, grades, novelty) {
  if (!answer) return [name, "", "", "", "", ...grades.map(() => ""), "", "error", error, ...novelty.map(() => "")];
  const told = novelty.length ? [answer.novelty.toFixed(6), String(Number(answer.unfamiliar))] : [];
  const probs = [...answer.drProbs, answer.meProb].map((prob) => prob.toFixed(6));
  return [name, String(answer.grade), "", String(answer.meRisk), "", ...probs, "ok", "", ...told];
}

const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

/** Compare by code points, as Python does; JavaScript compares strings by 16-bit units. */
function byCodePoint(one, other) {
  const [a, b] = [Array.from(one), Array.from(other)];
  const at = a.findIndex((char, index) => char !== b[index]);
  if (at < 0) return a.length - b.length;
  return at >= b.length ? 1 : a[at].codePointAt(0) - b[at].codePointAt(0);
}
