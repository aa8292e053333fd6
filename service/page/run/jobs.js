// Predicts files: as jobs of the service, or where it keeps none as one long answer.
import { get, send } from "../api.js";
import { nameColumn } from "../input/reading.js";
import { patiently, pause, tasksOf } from "./chunks.js";
import { Results } from "./results.js";

/** Most rows that are loaded. */
export const MOST_ROWS = 200_000;
const SHORTEST_POLL = 0.25;
const LONGEST_POLL = 2;

/**
 * Send a file to be predicted.
 *
 * Args:
 *   file: a `File`.
 *   options: `format`, csv, tsv, smi or sdf; `column`, of the molecules in a table, or null;
 *     `labels`, whose tasks are asked for; `signal`.
 *
 * Returns `{ job }`, as of `GET /jobs/{id}`, or `{ response }`, whose body has the answers.
 */
export async function sendFile(file, { format, column, labels, signal, onWait }) {
  const query = new URLSearchParams({ output: "ndjson", format, tasks: tasksOf(labels).join(",") });
  if (column !== null) query.set("smiles_column", column);
  const upload = () => {
    const body = new FormData();
    body.append("file", file, file.name);
    const headers = { Prefer: "respond-async" };
    return send(`predict/file?${query}`, { method: "POST", body, headers, signal });
  };
  const response = await patiently(upload, { signal, onWait });
  return response.status === 202 ? { job: await response.json() } : { response };
}

/** Wait until a job is over, and return it. `onJob` gets it whenever it was asked for. */
export async function follow(id, { signal, onJob }) {
  for (let seconds = SHORTEST_POLL; ; seconds = Math.min(1.5 * seconds, LONGEST_POLL)) {
    const job = await patiently(() => get(`jobs/${encodeURIComponent(id)}`, { signal }), { signal });
    onJob(job);
    if (job.state !== "queued" && job.state !== "running") return job;
    await pause(seconds, signal);
  }
}

/** Stop a job, or forget one that is over. */
export async function deleteJob(id) {
  await send(`jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
}

/** Ask for the answers of a job that is done. */
export function resultOf(id, { signal } = {}) {
  return send(`jobs/${encodeURIComponent(id)}/result`, { signal });
}

/** Reads the lines of an answer into `Results`, no more than `MOST_ROWS` of them. */
export class Answers {
  /** Args: `column`, of the molecules, null for an SDF; `labels`, whose numbers are kept. */
  constructor({ column, labels }) {
    Object.assign(this, { column, labels });
    this.results = new Results([], { molecule: -1 });
  }

  /** Read a response of `sendFile` or `resultOf`; `onRows` is called now and then. */
  async read(response, onRows) {
    try {
      for await (const lines of linesOf(response.body)) {
        this.results.isWhole = lines.every((line) => this.#add(JSON.parse(line)));
        onRows();
        if (!this.results.isWhole) break;
      }
    } finally {
      this.#nameColumns();
    }
  }

  /** Add an item, and return true; false if there are enough. */
  #add(item) {
    const { results } = this;
    if (item.index === undefined) throw new Error(item.error?.message ?? "the answer broke off");
    if (results.count === MOST_ROWS) return false;
    const cells = item.row ?? {};
    const text = (this.column === null ? item.smiles : cells[this.column]) ?? "";
    results.put(results.addNamedRow(cells, text), item, this.labels);
    return true;
  }

  #nameColumns() {
    const { results } = this;
    const sample = Array.from({ length: Math.min(results.count, 50) }, (_, row) =>
      results.cells.map((cells) => cells[row]),
    );
    results.molecule = results.columns.indexOf(this.column);
    results.nameColumn = nameColumn(results.columns, sample, results.molecule);
  }
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      yield lines.filter(Boolean);
    }
    if (rest) yield [rest];
  } finally {
    await reader.cancel().catch(() => {});
  }
}
