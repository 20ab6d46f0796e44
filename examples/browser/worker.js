/**
 * A web worker, so that the page stays responsive: opens the model, scores, and finds where the maps lie.
 */

import { checked, decide, argmax, ModelFileError, readContract } from "./contract.js";
import { findField, frame } from "./overlay.js";
import { decode, pixelsOf } from "./picture.js";

const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
/** More threads than this gain nothing on a network of this size. */
const MOST_THREADS = 4;

let ort;
let session;
let contract;

const tasks = {
  /** Loads onnxruntime-web; rejects if it is not installed. */
  async start() {
    ort = await import(RUNTIME);
    // Threads need shared memory, which browsers only allow if the server's headers isolate the page.
    ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
    ort.env.logLevel = "error";
    return { threads: ort.env.wasm.numThreads };
  },

  /** @param {Uint8Array} bytes of the model file */
  async open(bytes) {
    const read = readContract(bytes);
    const opened = await ort.InferenceSession.create(bytes).catch((err) => {
      throw new ModelFileError(`expected a model that onnxruntime can run, found: ${String(err.message ?? err).slice(0, 200)}`);
    });
    const expected = read.outputs.map(({ name }) => name);
    // A later version may add outputs without raising the schema.
    if (!expected.every((name) => opened.outputNames.includes(name)) || String(opened.inputNames) !== "image") {
      throw new ModelFileError(`outputs: expected ${expected}, found ${opened.outputNames}`);
    }
    for (const [name, length] of [["dr_probs", read.dr_grades.length], ["me_probs", 2]]) {
      const { shape } = opened.outputMetadata.find((output) => output.name === name);
      if (shape[1] !== length) throw new ModelFileError(`outputs: expected ${length} of ${name}, found the shape [${shape}]`);
    }
    await session?.release();
    [session, contract] = [opened, read];
    return contract;
  },

  /** Takes over the contract of the service, which then scores instead of this worker. */
  async adopt(given) {
    contract = checked(given);
    return contract;
  },

  /** @returns an answer, with the maps of the most probable classes if the model file has them */
  async score(file) {
    const bitmap = await decode(file, contract.input.min_side);
    const shape = [1, bitmap.height, bitmap.width, 3];
    const image = new ort.Tensor("uint8", pixelsOf(bitmap), shape);
    bitmap.close();
    const wanted = ["dr_probs", "me_probs", ...(contract.explain ? ["dr_cam", "me_cam"] : [])];
    if (contract.unfamiliar_from !== null) wanted.push("novelty");
    const outputs = await session.run({ image }, wanted);
    const [dr, me] = [outputs.dr_probs.data, outputs.me_probs.data];
    const novelty = outputs.novelty?.data[0] ?? null;
    if (![...dr, ...me, novelty ?? 0].every(Number.isFinite)) {
      throw new ModelFileError(`expected finite numbers, found ${dr}, ${me} and ${novelty}`);
    }
    const answer = decide(contract, dr, me, novelty);
    if (contract.explain) {
      const mapOf = ({ dims, data }, target) => ({ target, rows: dims[1], columns: dims[2], values: [...data] });
      answer.maps = { dr: mapOf(outputs.dr_cam, contract.dr_grades[argmax(dr)]), me: mapOf(outputs.me_cam, argmax(me)) };
    }
    return answer;
  },

  /** @returns the photograph as the network frames it (tile), and where it lies on the whole one (field) */
  async look(file) {
    const bitmap = await decode(file, contract.input.min_side);
    const field = findField(bitmap, contract.preprocessing);
    const tile = frame(bitmap, field);
    bitmap.close();
    return { field, tile };
  },
};

let turn = Promise.resolve();

onmessage = ({ data: { id, task, given } }) => {
  // One at a time: two camera originals at once would need twice the memory.
  turn = turn.then(async () => {
    try {
      const result = await tasks[task](given);
      postMessage({ id, result }, result?.tile ? [result.tile] : []);
    } catch (err) {
      postMessage({ id, error: { kind: err.constructor.name, message: err.message ?? String(err) } });
    }
  });
};
