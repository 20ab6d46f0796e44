/**
 * The page: turns files into rows of the table, and shows the details of the selected row.
 */

import { gradeInWords, gradeName, meThresholds, percent } from "./contract.js";
import { chosen, dropped } from "./files.js";
import { colours, isBlank, paint, peak, USUAL_OPACITY } from "./overlay.js";
import { findService, scoreByService, ServiceError } from "./service.js";
import { toCsv } from "./table.js";

const MODEL = "model.onnx";
/** RGB of an average retina, under the colour scale, so that it looks as on the photograph. */
const RETINA = [150, 72, 34];
const $ = (id) => document.getElementById(id);

/** @type {{name: string, file: File, state: "waiting" | "scoring" | "done", answer: object?, error: string}[]} */
let rows = [];
let selected = null;
let contract = null;
let byService = false;
let headers = {};
let running = false;
/** How often a row was selected, and the look at the photograph of one, which the next waits for. */
let selections = 0;
let looking = Promise.resolve();

// ---- the worker

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let asked = 0;

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(Object.assign(new Error(error.message), { kind: error.kind }));
  else resolve(result);
};

/** Rejects all that is asked of a worker that cannot be loaded. */
let broken = null;

worker.onerror = () => {
  broken = Object.assign(new Error("worker.js could not be loaded from beside this page. Reload the page."), { kind: "NoWorker" });
  for (const { reject } of waiting.values()) reject(broken);
  waiting.clear();
};

function ask(task, given, transfer = []) {
  if (broken) return Promise.reject(broken);
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, task, given }, transfer);
  });
}

// ---- the model

async function begin() {
  $("trouble").hidden = true;
  loading("Loading");
  try {
    const runtime = await ask("start").catch((err) => {
      if (err === broken) throw err;
      return null;
    });
    if (runtime) await openModel(await fetchModel(), `${runtime.threads} ${runtime.threads === 1 ? "thread" : "threads"}`);
    else await useService();
  } catch (err) {
    loading(null);
    if (err instanceof ServiceError && err.status === 401) return askForToken();
    trouble(err.message, { model: !byService && !["NoRuntime", "NoWorker"].includes(err.kind) });
  }
}

async function fetchModel() {
  const response = await fetch(MODEL, { headers }).catch(() => {
    throw new Error(`The model beside this page (${MODEL}) could not be loaded. Reload the page, or choose a model file.`);
  });
  if (response.status === 401) throw new ServiceError(401, "");
  if (!response.ok) throw new Error(`There is no model beside this page (${MODEL}). Choose one made by retina-export.`);
  const total = Number(response.headers.get("content-length"));
  const parts = [];
  let size = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    loading(`Loading the model: ${(size / 1e6).toFixed(0)} MB`, total ? size / total : undefined);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function openModel(bytes, how) {
  $("trouble").hidden = true;
  loading("Starting the model");
  const digest = await digestOf(bytes);
  contract = await ask("open", bytes, [bytes.buffer]);
  ready("Photographs stay on this computer", `${digest} Scored in this browser, ${how}.`);
  $("formats").textContent = "JPEG, PNG, WebP or BMP. Nothing is sent anywhere: the model runs in this browser.";
  $("model-change").hidden = false;
}

async function useService() {
  const facts = await findService(headers);
  if (!facts) {
    const said = "onnxruntime-web is not installed beside this page. Run  npm ci  in the page's folder, then reload.";
    throw Object.assign(new Error(said), { kind: "NoRuntime" });
  }
  byService = true;
  contract = await ask("adopt", facts.contract);
  ready(`Photographs are sent to ${location.host}`, `Model sha256 ${facts.sha256.slice(0, 12)}. Scored by the service.`);
  $("formats").textContent =
    `Without onnxruntime-web beside this page, the service at ${location.host} scores. It keeps no photographs. ` +
    "JPEG, PNG, TIFF, WebP, BMP, JPEG 2000 or DICOM.";
}

/** The model's digest as text; empty if the browser computes none, because the page is neither on https nor local. */
async function digestOf(bytes) {
  if (!crypto.subtle) return "";
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return `Model sha256 ${[...digest.subarray(0, 6)].map((byte) => byte.toString(16).padStart(2, "0")).join("")}.`;
}

function ready(privacy, how) {
  loading(null);
  $("trouble").hidden = true;
  $("privacy").textContent = privacy;
  $("privacy").className = byService ? "badge sent" : "badge";
  $("privacy").hidden = false;
  $("choose").hidden = false;
  begun(rows.length > 0);
  const { precision, preprocessing, caution = "" } = contract;
  $("caution-text").textContent = caution;
  $("caution").hidden = !caution;
  $("model-facts").textContent = `${how} ${precision}, ${preprocessing.image_size} pixels.`;
  say("Ready.");
}

function askForToken() {
  trouble("This service asks for an access token.", { token: true });
  $("token").focus();
}

// ---- files to rows

async function add(files) {
  const isModel = ({ name }) => name.toLowerCase().endsWith(".onnx");
  const model = byService ? undefined : files.find(isModel);
  const photographs = files.filter((file) => byService || !isModel(file)); // the service says what is none
  if ((model && !(await openFile(model.file))) || !contract || !photographs.length) return;
  $("trouble").hidden = true;
  rows.push(...photographs.map(({ name, file }) => ({ name, file, state: "waiting", answer: null, error: "" })));
  drawRows();
  await run();
}

/** Whether the model was opened; else the one before, and its rows, stay. */
async function openFile(file) {
  try {
    await openModel(new Uint8Array(await file.arrayBuffer()), `from ${file.name}`);
    clear(); // answers of the model before
    say("Ready.");
    return true;
  } catch (err) {
    loading(null);
    $("choose").hidden = !contract;
    trouble(`${file.name}: ${err.message}.`, { model: true });
    return false;
  }
}

async function run() {
  if (running) return;
  running = true;
  for (let row; (row = rows.find(({ state }) => state === "waiting")); ) {
    row.state = "scoring";
    drawRow(row);
    tellProgress();
    try {
      if (byService) Object.assign(row, await scoreByService(row.file, contract, headers));
      else row.answer = await ask("score", row.file);
    } catch (err) {
      row.error = err.message;
    }
    row.state = "done";
    if (!rows.includes(row)) continue; // the table was cleared meanwhile
    drawRow(row);
    if (!selected) await select(row);
  }
  running = false;
  tellProgress();
}

function clear() {
  rows = [];
  selected = null;
  selections += 1;
  $("detail").hidden = true;
  $("rows").replaceChildren();
  begun(false);
  say("");
}

/** Show what belongs before the first photograph, or after it. */
function begun(isBegun) {
  $("intro").hidden = isBegun || !contract;
  $("results").hidden = !isBegun;
  $("choose").classList.toggle("compact", isBegun);
}

function tellProgress() {
  const done = rows.filter(({ state }) => state === "done");
  const failed = done.filter(({ answer }) => !answer).length;
  const unfamiliar = done.filter(({ answer }) => answer?.unfamiliar).length;
  const unlike = unfamiliar ? `, ${unfamiliar} unfamiliar` : "";
  const unread = failed ? `, ${failed} could not be read` : "";
  if (!rows.length) say("");
  else if (done.length < rows.length) say(`Scoring ${done.length + 1} of ${rows.length}${unread}`);
  else say(`${done.length - failed} of ${rows.length} scored${unread}${unlike}`);
}

// ---- the table

function drawRows() {
  $("rows").replaceChildren(...rows.map((row) => (row.line ??= newLine(row))));
  begun(true);
  rows.forEach(drawRow);
}

function newLine(row) {
  const line = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  const button = document.createElement("button");
  button.className = "name";
  button.textContent = row.name;
  name.append(button);
  line.append(name);
  line.onclick = () => row.state === "done" && select(row, { focus: false });
  button.onkeydown = ({ key }) => {
    const other = rows[rows.indexOf(row) + ({ ArrowDown: 1, ArrowUp: -1 }[key] ?? NaN)];
    other?.line.querySelector("button").focus();
  };
  return line;
}

function drawRow(row) {
  const { answer, error, state, line } = row;
  const cells = [];
  if (state !== "done") cells.push(cell(state === "scoring" ? "scoring…" : "waiting", "quiet", 3));
  else if (!answer) cells.push(cell(error, "error", 3));
  else {
    cells.push(cell(text("b", answer.grade)));
    cells[0].append(" ", text("span", gradeName(answer.grade), "quiet wide"));
    cells.push(cell(mark(answer.referable ? "yes" : "no", answer.referable)));
    const onlyReferred = answer.referableMe && !answer.meRisk;
    cells.push(cell(mark(onlyReferred ? "refer" : answer.meRisk ? "yes" : "no", onlyReferred || answer.meRisk === 1)));
  }
  while (line.cells.length > 1) line.deleteCell(1);
  line.cells[0].querySelector(".mark")?.remove();
  if (answer?.unfamiliar) line.cells[0].append(mark("unfamiliar", true));
  line.append(...cells);
  line.classList.toggle("selected", row === selected);
  line.querySelector("button").setAttribute("aria-current", String(row === selected));
  $("download").disabled = rows.some((each) => each.state !== "done");
}

function cell(content, kind = "", span = 1) {
  const made = document.createElement("td");
  made.className = kind;
  made.colSpan = span;
  made.append(content);
  return made;
}

/** A finding in one word, marked by shape as well as by colour. */
function mark(word, raised) {
  const made = document.createElement("span");
  made.className = raised ? "mark raised" : "mark";
  made.textContent = word;
  return made;
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([toCsv(rows, contract.dr_grades)], { type: "text/csv" }));
  link.download = "test_predictions.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

// ---- one photograph

async function select(row, { focus = false } = {}) {
  const before = selected;
  const turn = ++selections;
  selected = row;
  for (const each of [before, row]) if (each?.line.isConnected) drawRow(each);
  const { name, answer, error } = row;
  $("detail").hidden = false;
  $("detail-name").textContent = name;
  $("detail-error").textContent = error;
  $("detail-error").hidden = !error;
  $("unfamiliar").hidden = !answer?.unfamiliar;
  $("findings").hidden = !answer;
  $("pictures").hidden = true;
  const at = rows.indexOf(row);
  $("previous").disabled = at === 0;
  $("next").disabled = at === rows.length - 1;
  if (focus) $("detail-name").focus();
  if (!answer) return;
  drawFindings(answer);
  // Rejected for the formats that the service reads and browsers do not.
  looking = looking.then(() => (turn === selections ? ask("look", row.file) : null)).catch(() => null);
  const seen = await looking;
  if (turn !== selections) return;
  $("pictures").hidden = !seen;
  if (seen) drawPictures(answer, seen, name);
}

function step(by) {
  const row = rows[rows.indexOf(selected) + by];
  if (row?.state === "done") select(row, { focus: true });
}

function drawFindings({ grade, drProbs, meRisk, meProb, referable, referableProb, referableMe }) {
  $("dr-answer").textContent = `Grade ${grade}`;
  $("dr-answer").append(" ", Object.assign(document.createElement("span"), { textContent: gradeName(grade) }));
  $("dr-bars").replaceChildren(
    ...contract.dr_grades.map((each, index) => {
      const item = document.createElement("li");
      item.classList.toggle("chosen", each === grade);
      item.append(text("span", `${each} ${gradeName(each)}`), gauge(drProbs[index]), text("b", percent(drProbs[index])));
      return item;
    }),
  );
  const rule = contract.thresholds.referable_dr;
  const likely = text("span", `probability: ${percent(referableProb)}`);
  $("referable-answer").replaceChildren(mark(referable ? "Yes" : "No", referable), " ", likely);
  $("referable-bar").replaceChildren(gauge(referableProb, rule.threshold));
  $("referable-rule").textContent = `Grade ${rule.from_grade ?? 2} or worse, from ${percent(rule.threshold)}`;
  const label = contract.me_labels[meRisk];
  const ofRisk = text("span", `${contract.me_labels[1]}: ${percent(meProb)}`);
  $("me-answer").replaceChildren(mark(label[0].toUpperCase() + label.slice(1), meRisk === 1), " ", ofRisk);
  const { risk, referral } = meThresholds(contract);
  $("me-bar").replaceChildren(gauge(meProb, risk, referral));
  const referred = `to be referred from ${percent(referral)}: ${referableMe ? "yes" : "no"}`;
  $("me-rule").textContent =
    `Counts as ${contract.me_labels[1]}` + (risk === referral ? `, ${referred}` : ` from ${percent(risk)}; ${referred}`);
}

/** A bar from 0 to 1, with marks at the thresholds. The numbers are beside it as text. */
function gauge(share, ...places) {
  const made = document.createElement("i");
  made.className = "gauge-bar";
  made.ariaHidden = "true";
  const filled = document.createElement("i");
  filled.style.width = `${100 * share}%`;
  made.append(filled);
  for (const place of new Set(places)) {
    const threshold = document.createElement("u");
    threshold.style.left = `${100 * place}%`;
    made.append(threshold);
  }
  return made;
}

function drawPictures({ drProbs, meProb, maps }, { field, tile }, name) {
  const { width, height } = tile;
  const photograph = $("tile-photograph");
  photograph.ariaLabel = `${name}, as the model frames it`;
  Object.assign(photograph, { width, height }).getContext("2d").drawImage(tile, 0, 0);
  $("slider").hidden = !maps;
  $("map-note").textContent = maps
    ? "A map shows what moved the model, not where lesions are."
    : "This model file has no Grad-CAM maps: retina-export --explain makes one that shows where answers come from.";
  for (const head of ["dr", "me"]) {
    const figure = $(`figure-${head}`);
    figure.hidden = !maps;
    if (!maps) continue;
    const map = maps[head];
    const answer = head === "dr" ? `DR ${gradeInWords(map.target)}` : `macular edema: ${contract.me_labels[map.target]}`;
    const dr = drProbs[contract.dr_grades.indexOf(map.target)];
    const probability = head === "dr" ? dr : map.target ? meProb : 1 - meProb;
    const base = layer(tile.width, tile.height, (pen) => pen.drawImage(tile, 0, 0));
    base.setAttribute("role", "img");
    base.ariaLabel = isBlank(map) ? `Blank map for ${answer}` : `Map of where ${answer} comes from`;
    const layers = [base];
    const caption = [text("strong", `Speaks for ${answer}`), " ", text("span", percent(probability), "quiet")];
    if (isBlank(map)) caption.push(text("p", "Blank map: no region speaks for this answer.", "quiet"));
    else {
      const painted = paint(map, field, width, height);
      for (const kind of ["tint", "line"]) {
        const drawn = layer(width, height, (pen) => pen.putImageData(painted[kind], 0, 0));
        drawn.className = kind;
        layers.push(drawn);
      }
      caption.push(scale(peak(map)));
    }
    figure.querySelector(".tile").replaceChildren(...layers);
    figure.querySelector("figcaption").replaceChildren(...caption);
  }
  fade();
}

function layer(width, height, draw) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  draw(canvas.getContext("2d"));
  return canvas;
}

/** The colour scale as it looks on a retina, from nothing to this many logits. */
function scale(most) {
  const made = document.createElement("div");
  made.className = "scale";
  const strip = layer(256, 1, (pen) => {
    colours().forEach(([r, g, b, opacity], level) => {
      const share = (opacity / 255) * (USUAL_OPACITY / 100);
      const mixed = [r, g, b].map((value, channel) => value * share + RETINA[channel] * (1 - share));
      pen.fillStyle = `rgb(${mixed.map(Math.round).join(" ")})`;
      pen.fillRect(level, 0, 1, 1);
    });
    pen.fillStyle = "white";
    pen.fillRect(127, 0, 2, 1);
  });
  strip.ariaHidden = "true";
  made.append(strip, text("span", "nothing"), text("span", "half: white line"), text("span", `most: ${most.toPrecision(2)} logits`));
  return made;
}

function fade() {
  const percentage = Number($("opacity").value);
  $("opacity-value").textContent = `${percentage}%`;
  for (const tint of document.querySelectorAll("canvas.tint")) tint.style.opacity = percentage / 100;
  for (const line of document.querySelectorAll("canvas.line")) line.style.opacity = Math.min(1, percentage / USUAL_OPACITY);
}

// ---- small things

function text(tag, content, kind = "") {
  return Object.assign(document.createElement(tag), { textContent: content, className: kind });
}

function say(message) {
  $("status").textContent = message;
}

function loading(message, share) {
  $("loading").hidden = message === null;
  $("loading-text").textContent = message ?? "";
  if (share === undefined) $("loading-bar").removeAttribute("value");
  else $("loading-bar").value = share;
}

function trouble(message, { token = false, model = false } = {}) {
  $("trouble").hidden = false;
  $("trouble-text").textContent = message;
  $("token-form").hidden = !token;
  $("model-choice").hidden = !model;
}

$("files").onchange = $("folder").onchange = ({ target }) => {
  add(chosen(target.files));
  target.value = "";
};
$("model-file").onchange = $("other-model").onchange = ({ target }) => {
  add(chosen(target.files));
  target.value = "";
};
$("token-form").onsubmit = (event) => {
  event.preventDefault();
  headers = { Authorization: `Bearer ${$("token").value}` };
  begin();
};
$("download").onclick = download;
$("clear").onclick = () => {
  clear();
  $("files").focus();
  say("Cleared.");
};
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("opacity").value = USUAL_OPACITY;
$("opacity").oninput = fade;

addEventListener("dragover", (event) => {
  event.preventDefault();
  $("choose").classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? $("choose").classList.remove("over"));
addEventListener("drop", async (event) => {
  event.preventDefault();
  $("choose").classList.remove("over");
  add(await dropped(event.dataTransfer));
});

begin();
