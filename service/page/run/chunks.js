// Predicts rows in chunks of `POST /predict`.
import { ServiceError, post } from "../api.js";

const MOST_ROWS = 100;
const MOST_CHARACTERS = 1_000_000;
const IN_FLIGHT = 2;
const MOST_TRIES = 6;
const BUSY = new Set([429, 503]);

/** Return the names of the tasks of some labels, each once. */
export function tasksOf(labels) {
  return [...new Set(labels.map((label) => label.task.name))];
}

/** The body of `POST /predict` for some molecules. */
export function requestOf(texts, labels) {
  return { smiles: texts, tasks: tasksOf(labels) };
}

/**
 * Predict rows of `Results`, and put the answers into them.
 *
 * A row that cannot be read gets its error. Answers that came before the signal, or before an error
 * of the whole request, stay.
 *
 * Args:
 *   results, rows: the `Results`, and indices of the rows to predict.
 *   labels: whose numbers are kept; their tasks are asked for.
 *   options: `limits` of the service; `signal` stops it; `onAnswered(count)` is called after each chunk; `onWait(seconds)`
 *     when the service asks to come back later.
 * Raises: ServiceError, or AbortError.
 */
export async function predictRows(results, rows, labels, { limits, signal, onAnswered, onWait }) {
  const chunks = chunksOf(results, rows, limits);
  const stop = new AbortController();
  const both = AbortSignal.any([signal, stop.signal]);
  const work = async () => {
    for (;;) {
      const chunk = chunks.next();
      if (chunk.done) return;
      await predictChunk(results, chunk.value, labels, { signal: both, onWait });
      onAnswered(chunk.value.length);
    }
  };
  try {
    await Promise.all(Array.from({ length: IN_FLIGHT }, work));
  } finally {
    stop.abort(); // of two in flight, one may have failed
  }
}

function* chunksOf(results, rows, limits) {
  const mostRows = Math.min(MOST_ROWS, limits.max_molecules);
  const mostCharacters = Math.min(MOST_CHARACTERS, limits.max_body_bytes / 2);
  let chunk = [];
  let characters = 0;
  for (const row of rows) {
    const length = results.texts[row].length;
    if (chunk.length && (chunk.length === mostRows || characters + length > mostCharacters)) {
      yield chunk;
      [chunk, characters] = [[], 0];
    }
    chunk.push(row);
    characters += length;
  }
  if (chunk.length) yield chunk;
}

async function predictChunk(results, chunk, labels, options) {
  const body = requestOf(chunk.map((row) => results.texts[row]), labels);
  let answer;
  try {
    answer = await patiently(() => post("predict", body, { signal: options.signal }), options);
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    if (chunk.length === 1 && isOfMolecule(error)) {
      results.fail(chunk[0], { code: error.code, message: error.message });
      return;
    }
    if (chunk.length > 1 && (error.status === 413 || error.status === 504)) {
      const middle = chunk.length >> 1;
      await predictChunk(results, chunk.slice(0, middle), labels, options);
      await predictChunk(results, chunk.slice(middle), labels, options);
      return;
    }
    throw error;
  }
  answer.predictions.forEach((item, k) => results.put(chunk[k], item, labels));
}

// A request with one molecule only has the molecule's problem as its own.
function isOfMolecule({ status, code }) {
  const ofRequest = ["invalid_request", "unknown_task", "unknown_model", "too_many_molecules"];
  return status === 413 || status === 504 || (status === 422 && !ofRequest.includes(code));
}

/** Try again while the service is busy, after the time that it asks for. */
export async function patiently(ask, { signal, onWait = () => {} }) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask();
    } catch (error) {
      if (!BUSY.has(error.status) || tries === MOST_TRIES) throw error;
      const seconds = Math.min(error.retryAfter ?? 2 ** (tries - 1), 60);
      onWait(seconds);
      await pause(seconds, signal);
    }
  }
}

/** Wait some seconds. Raises: AbortError if the signal comes first. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, 1000 * seconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
