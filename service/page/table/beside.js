// What is shown beside the numbers, asked for when its rows come into sight: percentiles among
// drugs, and structural alerts.
import { post } from "../api.js";
import { patiently, requestOf } from "../run/chunks.js";

const MOST_AT_ONCE = 50;

/**
 * Ask for percentiles and alerts of some rows, and put them into the results.
 *
 * Args:
 *   results, rows: the `Results`, and rows of them; those that have them already are not asked for.
 *   labels: of the percentiles.
 *   wanted: a Set of "drugs" and "alerts".
 *   options: `limits` of the service; `signal`.
 *
 * Returns true if anything new is known.
 */
export async function explainRows(results, rows, labels, wanted, { limits, signal }) {
  const names = new Set(wanted); // the buttons change theirs while this one waits
  const asked = rows.filter((row) => results.isAnswered(row) && lacks(results, row, labels, names));
  const step = Math.min(MOST_AT_ONCE, limits.max_molecules);
  for (let begin = 0; begin < asked.length; begin += step) {
    const chunk = asked.slice(begin, begin + step);
    const body = {
      ...requestOf(chunk.map((row) => results.smiles[row]), labels),
      explain: [...names],
      explain_labels: labels.map((label) => label.column),
    };
    const { predictions } = await patiently(() => post("predict", body, { signal }), { signal });
    predictions.forEach((item, k) => put(results, chunk[k], item, labels, names));
  }
  return asked.length > 0;
}

function lacks(results, row, labels, names) {
  const known = results.percentiles.get(row);
  const lacksDrugs = names.has("drugs") && !labels.every(({ column }) => known && column in known);
  return lacksDrugs || (names.has("alerts") && !results.alerts.has(row));
}

function put(results, row, item, labels, names) {
  if (names.has("alerts")) results.alerts.set(row, item.alerts ?? item.explanation_errors?.alerts?.message ?? []);
  if (!names.has("drugs")) return;
  const known = { ...results.percentiles.get(row) };
  for (const label of labels) {
    // undefined: the service has no drugs to compare this label with
    known[label.column] = item.drugs?.[label.task.name]?.[label.name];
  }
  results.percentiles.set(row, known);
}
