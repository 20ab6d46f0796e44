/**
 * Scoring by the service that served this page, if onnxruntime-web is not installed beside it.
 */

/** A request that the service refused or did not answer; status is the HTTP status, 0 without an answer. */
export class ServiceError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** @returns {Promise<object?>} the service's facts about its model (GET /model); null if there is no service */
export async function findService(headers) {
  const health = await fetch("health").catch(() => null);
  if (!health?.ok || !health.headers.get("content-type")?.includes("json")) return null;
  const facts = await fetch("model", { headers });
  if (!facts.ok) throw await refusal(facts);
  return facts.json();
}

/**
 * @param {File} file
 * @param {object} contract
 * @param {HeadersInit} headers
 * @returns {Promise<{answer: object?, error: string}>} the answer in the worker's form, or the reason why there is none
 * @throws {ServiceError} the service refused the request, or does not answer
 */
export async function scoreByService(file, contract, headers) {
  const body = new FormData();
  body.append("photographs", file);
  const response = await fetch("score?maps=true", { method: "POST", body, headers }).catch(() => null);
  if (!response) throw new ServiceError(0, "the service does not answer");
  if (response.status === 429) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(response.headers.get("retry-after")) || 1)));
    return scoreByService(file, contract, headers);
  }
  if (response.status !== 200 && response.status !== 422) throw await refusal(response);
  const [row] = (await response.json()).photographs;
  if (row.status !== "ok") return { answer: null, error: row.error };
  const mapOf = ({ target, values }) => ({ target, rows: values.length, columns: values[0].length, values: values.flat() });
  const answer = {
    grade: row.dr_grade,
    drProbs: contract.dr_grades.map((grade) => row.dr_probs[grade]),
    meRisk: row.me_risk,
    meProb: row.me_prob,
    referable: row.referable,
    referableProb: row.referable_prob,
    referableMe: row.referable_me,
    unfamiliar: row.unfamiliar ?? false,
    maps: row.maps ? { dr: mapOf(row.maps.dr), me: mapOf(row.maps.me) } : null,
  };
  return { answer, error: "" };
}

async function refusal(response) {
  const { detail } = await response.json().catch(() => ({}));
  return new ServiceError(response.status, detail ?? `the service answered ${response.status}`);
}
