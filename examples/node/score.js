/**
 * Score photographs in Node: the rows of retina-score, from the model file alone.
 *     node score.js MODEL.onnx eye.jpg ...           the table, on standard output
 *     node score.js MODEL.onnx --conformance kit/    checks this program against a kit of retina-export --conformance
 * Exit code 0: all done; 1: a photograph not readable, or an answer not the kit's; 2: failed. Not for clinical use.
 */
import { readFile } from "node:fs/promises";
import sharp from "sharp";
process.env.ORT_DISABLE_TELEMETRY ??= "1"; // before onnxruntime is loaded: it would report to Microsoft
const { default: ort } = await import("onnxruntime-node");

const RULES = { dr: ["argmax"], me: ["argmax", "at_least"], referable_dr: ["at_least"], referable_me: ["at_least"] };
const NAMED = ["Image name", "Pred DR grade (orig)", "True DR grade (orig)", "Pred ME risk", "True ME risk"];

/** The contract in a model file's bytes (key, 0x12, length, JSON), which onnxruntime-node does not expose. */
function readContract(bytes) {
  const key = "retina.contract\x12";
  let at = bytes.lastIndexOf(key, bytes.length, "latin1") + key.length;
  if (at < key.length) throw new Error("expected a model file of retina-export, found none or no contract in it");
  for (let scale = 1, length = 0; ; scale *= 128) {
    const byte = bytes[at++];
    length += (byte & 127) * scale;
    if (byte < 128) return JSON.parse(bytes.subarray(at, at + length));
  }
}
class Model {
  static async open(path) {
    const contract = readContract(await readFile(path));
    if (contract?.schema !== 1) throw new Error(`schema: expected 1, found ${JSON.stringify(contract?.schema)}`);
    contract.thresholds = { referable_me: { rule: "at_least", threshold: 0.5 }, ...contract.thresholds }; // if old
    for (const [task, known] of Object.entries(RULES)) {
      const { rule, threshold } = contract.thresholds[task] ?? {};
      const sound = rule === "argmax" || (typeof threshold === "number" && threshold >= 0 && threshold <= 1);
      if (!sound || !known.includes(rule))
        throw new Error(`contract thresholds.${task}: expected the rule ${known.join(" or ")}, threshold from 0 to 1`);
    }
    if (contract.caution) console.error(`Caution: ${contract.caution.replace(/\p{C}/gu, encodeURIComponent)}`);
    return Object.assign(new Model(), { contract, session: await ort.InferenceSession.create(path) });
  }
  /** Decoded RGB pixels -> a probability for each grade, and those of no ME risk and ME risk. */
  async probabilities({ data, height, width }) {
    const image = new ort.Tensor("uint8", data, [1, height, width, 3]);
    const { dr_probs: dr, me_probs: me } = await this.session.run({ image }, ["dr_probs", "me_probs"]);
    return { dr: [...dr.data], me: [...me.data] };
  }
  /** The decisions that the contract's rules make of the probabilities. */
  decide({ dr, me }) {
    const { dr_grades: grades, thresholds: rules } = this.contract;
    if (dr.length !== grades.length || me.length !== 2) throw new Error(`outputs: expected one for each of ${grades}`);
    const referred = dr.filter((_, i) => grades[i] >= (rules.referable_dr.from_grade ?? 2)).reduce((a, b) => a + b, 0);
    return {
      dr_grade: grades[dr.indexOf(Math.max(...dr))],
      me_risk: Number(rules.me.rule === "argmax" ? me[1] > me[0] : me[1] >= rules.me.threshold),
      referable: referred >= rules.referable_dr.threshold,
      referable_me: me[1] >= rules.referable_me.threshold,
    };
  }
}

/** Upright RGB as stored: no colour profile applied, transparent parts black, nothing resized. */
async function decode(path, minSide) {
  const picture = sharp(path, { ignoreIcc: true, failOn: "warning", limitInputPixels: 1e8 });
  const { space, depth } = await picture.metadata();
  // libvips would convert the one by a profile of its own, and cut the others off at 255.
  if (space === "cmyk" || !["uchar", "ushort"].includes(depth))
    throw new Error(`expected RGB or grey of 8 or 16 unsigned bits, found ${space} of ${depth}`);
  const upright = picture.autoOrient().flatten({ background: "#000" }).toColourspace("srgb");
  const { data, info } = await upright.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
  if (Math.min(info.width, info.height) < minSide) throw new Error(`too small: ${info.width} x ${info.height}`);
  return { data, height: info.height, width: info.width };
}

async function score(model, paths) {
  const probs = model.contract.dr_grades.map((grade) => `dr_prob_${grade}`);
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  const write = (cells) => process.stdout.write(cells.map(String).map(quoted).join(",") + "\n");
  write([...NAMED, ...probs, "me_prob", "status", "error"]);
  let failed = 0;
  for (const path of paths)
    try {
      const answer = await model.probabilities(await decode(path, model.contract.input.min_side));
      const { dr_grade: grade, me_risk: risk } = model.decide(answer);
      write([path, grade, "", risk, "", ...[...answer.dr, answer.me[1]].map((prob) => prob.toFixed(6)), "ok", ""]);
    } catch (err) {
      failed = 1;
      write([path, "", "", "", "", ...probs.map(() => ""), "", "error", err.message]);
    }
  return failed;
}

async function conform(model, kit) {
  let [index, faults, worst] = [JSON.parse(await readFile(`${kit}/index.json`)), [], 0];
  for (const { name, file, shape: [height, width] = [], decisions, ...probs } of [...index.pictures, ...index.cases]) {
    const given = { dr: probs.dr_probs, me: probs.me_probs };
    const answer = file ? await model.probabilities({ data: await readFile(`${kit}/${file}`), height, width }) : given;
    for (const [output, expected, found] of [["dr_probs", given.dr, answer.dr], ["me_probs", given.me, answer.me]])
      expected.forEach((value, i) => {
        worst = Math.max(worst, Math.abs(value - found[i]));
        if (!(Math.abs(value - found[i]) <= index.tolerance))
          faults.push(`${name}: ${output}[${i}]: expected ${value.toFixed(6)}, found ${found[i]?.toFixed(6)}`);
      });
    const decided = model.decide(answer);
    for (const [what, value] of Object.entries(decisions ?? {}))
      if (decided[what] !== value) faults.push(`${name}: ${what}: expected ${value}, found ${decided[what]}`);
  }
  const summary = `${index.pictures.length} pictures, largest difference ${worst}, ${faults.length} faults`;
  console.log([...faults, summary].join("\n"));
  return faults.length ? 1 : 0;
}

const [path, first, ...rest] = process.argv.slice(2);
try {
  if (!first || (first === "--conformance" && rest.length !== 1))
    throw new Error("usage: node score.js MODEL.onnx PICTURE... | node score.js MODEL.onnx --conformance DIR");
  const model = await Model.open(path);
  process.exitCode = await (first === "--conformance" ? conform(model, rest[0]) : score(model, [first, ...rest]));
} catch (err) {
  console.error(`score.js: ${path}: ${err.message}`);
  process.exitCode = 2;
}
