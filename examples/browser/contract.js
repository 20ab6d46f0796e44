/**
 * A model file's contract, read from the file itself, and the decisions that its rules make of probabilities.
 */

const METADATA_KEY = "retina.contract";
const SCHEMA = 1;
/** The rules that this page knows for each decision. */
const RULES = { dr: ["argmax"], me: ["argmax", "at_least"], referable_dr: ["at_least"], referable_me: ["at_least"] };
/** Names of the grades 0 to 4 of the International Clinical Diabetic Retinopathy scale. */
const GRADE_NAMES = ["no retinopathy", "mild", "moderate", "severe", "proliferative"];

/** A model file that does not keep the contract; the message is shown to the user. */
export class ModelFileError extends Error {}

/**
 * The contract in an ONNX file's metadata. onnxruntime-web does not expose it, so the outermost protobuf fields of the
 * file are parsed here: field 14 of a ModelProto is a key and a value.
 * @param {Uint8Array} bytes the whole file
 * @throws {ModelFileError} not an ONNX file, not made by retina-export, or of another schema
 */
export function readContract(bytes) {
  const text = new TextDecoder();
  try {
    for (const entry of fieldsOf(bytes)) {
      if (entry.number !== 14) continue;
      const pair = [...fieldsOf(entry.content)].map((part) => text.decode(part.content));
      if (pair[0] === METADATA_KEY) return checked(JSON.parse(pair[1]));
    }
  } catch (err) {
    if (err instanceof ModelFileError) throw err;
    throw new ModelFileError("expected an ONNX model, found a damaged file or one of another kind");
  }
  throw new ModelFileError(
    `expected a contract under the metadata key ${METADATA_KEY}, found none: only files made by retina-export can be used`,
  );
}

/**
 * Check that this page supports a contract, and return it.
 * @throws {ModelFileError} another schema, or rules that this page does not know
 */
export function checked(contract) {
  if (contract?.schema !== SCHEMA) {
    throw new ModelFileError(`contract schema: expected ${SCHEMA}, found ${JSON.stringify(contract?.schema)}`);
  }
  const thresholds = { referable_me: { rule: "at_least", threshold: 0.5 }, ...contract.thresholds }; // not in the oldest
  for (const [task, known] of Object.entries(RULES)) {
    const found = thresholds[task]?.rule;
    if (!known.includes(found)) {
      throw new ModelFileError(`contract thresholds.${task}: expected the rule ${known.join(" or ")}, found ${found ?? "none"}`);
    }
    // What a rule lacks would have to be guessed; nothing is at least undefined, so that nobody would be referred.
    const { threshold, from_grade: grade } = thresholds[task];
    if (found === "at_least" && !(typeof threshold === "number" && threshold >= 0 && threshold <= 1)) {
      throw new ModelFileError(`contract thresholds.${task}: expected a threshold from 0 to 1, found ${JSON.stringify(threshold)}`);
    }
    if (![undefined, null, 0, 1, 2, 3, 4].includes(grade)) {
      throw new ModelFileError(`contract thresholds.${task}: expected from_grade from 0 to 4, found ${JSON.stringify(grade)}`);
    }
  }
  const { unfamiliar_from: level = null } = contract;
  if (level !== null && !(Number.isFinite(level) && level > 0)) {
    throw new ModelFileError(`contract unfamiliar_from: expected a number above 0, found ${JSON.stringify(level)}`);
  }
  return { ...contract, thresholds, unfamiliar_from: level };
}

/**
 * Apply the contract's rules.
 * @param {object} contract
 * @param {ArrayLike<number>} drProbs one for each of contract.dr_grades
 * @param {ArrayLike<number>} meProbs of "no risk" and "risk"
 * @param {number?} novelty how unlike the training photographs it is; null if the model file cannot tell
 * @returns an answer: the content of a row of the table and of the page's figures
 */
export function decide(contract, drProbs, meProbs, novelty = null) {
  const { me, referable_dr: referable } = contract.thresholds;
  const from = referable.from_grade ?? 2;
  const grades = contract.dr_grades;
  const referableProb = grades.reduce((sum, grade, index) => sum + (grade >= from ? drProbs[index] : 0), 0);
  return {
    grade: grades[argmax(drProbs)],
    drProbs: [...drProbs],
    meRisk: me.rule === "argmax" ? argmax(meProbs) : Number(meProbs[1] >= me.threshold),
    meProb: meProbs[1],
    referable: referableProb >= referable.threshold,
    referableProb,
    referableMe: meProbs[1] >= meThresholds(contract).referral,
    unfamiliar: novelty !== null && novelty >= contract.unfamiliar_from,
    maps: null,
  };
}

/** The probabilities from which ME counts as a risk, and from which it is referred. */
export const meThresholds = ({ thresholds: { me, referable_me: referred } }) => ({
  risk: me.threshold ?? 0.5,
  referral: referred.threshold ?? 0.5,
});

/** Side in pixels of the square that the graph first resizes a photograph to. */
export const intermediateSize = ({ framing, image_size: size }) => (framing === "field" ? Math.ceil(1.5 * size) : size);

export function argmax(values) {
  let best = 0;
  for (let index = 1; index < values.length; index += 1) if (values[index] > values[best]) best = index;
  return best;
}

/** "grade 2 (moderate)" */
export const gradeInWords = (grade) => `grade ${grade}` + (grade in GRADE_NAMES ? ` (${GRADE_NAMES[grade]})` : "");

export const gradeName = (grade) => GRADE_NAMES[grade] ?? "";

/** A probability as a percentage, never "0%" or "100%", so that no reader takes the model to be certain. */
export function percent(probability) {
  if (probability > 0.99) return ">99%";
  return probability < 0.01 ? "<1%" : `${Math.round(100 * probability)}%`;
}

/** The length-delimited fields of one protobuf message, as numbers and contents; fields of other types are skipped. */
function* fieldsOf(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (at >= bytes.length || scale > 2 ** 63) throw new RangeError("varint");
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    const kind = tag % 8;
    if (kind === 2) {
      const length = varint();
      if (at + length > bytes.length) throw new RangeError("length");
      yield { number, content: bytes.subarray(at, at + length) };
      at += length;
    } else if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else throw new RangeError("wire type");
  }
}
