// What leaves the page: files to download, and texts to copy.
import { send } from "./api.js";
import { requestOf, tasksOf } from "./run/chunks.js";

const FORMULA = /^[=+\-@\t\r\n]/;
const NUMBER = /^[+-][\d.,]+(?:[eE][+-]?\d+)?$/;
const TYPES = { csv: "text/csv", ndjson: "application/x-ndjson", sdf: "chemical/x-mdl-sdfile" };

/**
 * Return a table as CSV: the columns of the upload, the SMILES as it was read, the error, and a
 * column per label, as `POST /predict/file` writes them.
 *
 * Args: `beside`, a Set of "drugs" and "alerts", adds their columns.
 */
export function csvOf(results, rows, labels, beside = new Set()) {
  const names = labels.map(({ column, unit }) => (unit ? `${column} [${unit}]` : column));
  const header = [...results.columns, "gmerging_smiles", "gmerging_error", ...names];
  if (beside.has("drugs")) header.push(...labels.map(({ column }) => `${column} percentile among drugs`));
  if (beside.has("alerts")) header.push("gmerging_alerts");
  const lines = [header.map(cell).join(",")];
  for (const row of rows) {
    const error = results.errors[row];
    const cells = [
      ...results.cells.map((column) => cell(column[row])),
      cell(results.smiles[row]),
      cell(error && `${error.code}: ${error.message}`),
      ...labels.map(({ column }) => number(results.valueOf(row, column))),
    ];
    if (beside.has("drugs")) {
      const known = results.percentiles.get(row) ?? {};
      cells.push(...labels.map(({ column }) => number(known[column] ?? NaN)));
    }
    if (beside.has("alerts")) cells.push(cell(alertsText(results.alerts.get(row) ?? [])));
    lines.push(cells.join(","));
  }
  return `${lines.join("\n")}\n`;
}

// A text is why they could not be searched for.
function alertsText(alerts) {
  return typeof alerts === "string" ? alerts : [...new Set(alerts.map(({ name }) => name))].join("; ");
}

function number(value) {
  return Number.isNaN(value) ? "" : String(value);
}

/** Return a text as a cell of CSV. A formula gets an apostrophe, so that a spreadsheet shows it. */
export function cell(text) {
  if (text === null || text === undefined) return "";
  const shown = FORMULA.test(text) && !NUMBER.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(shown) ? `"${shown.replaceAll('"', '""')}"` : shown;
}

/** Return a table as NDJSON: the items of `/predict`, with the cells of the upload as `row`. */
export function ndjsonOf(results, rows, labels) {
  const lines = rows.map((row) => {
    const item = { index: row, smiles: results.smiles[row] };
    if (results.hasFailed(row)) item.error = results.errors[row];
    else if (results.isAnswered(row)) item.tasks = tasksAnswered(results, row, labels);
    item.row = results.cellsOf(row);
    return JSON.stringify(item);
  });
  return `${lines.join("\n")}\n`;
}

function tasksAnswered(results, row, labels) {
  const tasks = {};
  for (const { column, name, task } of labels) {
    const value = results.valueOf(row, column);
    if (!Number.isNaN(value)) (tasks[task.name] ??= {})[name] = value;
  }
  return tasks;
}

/** Return rows as a CSV file that `POST /predict/file` reads, and the name of its molecules' column. */
export function fileOf(results, rows) {
  const columns = [...results.columns];
  let { molecule } = results;
  if (molecule < 0) {
    molecule = columns.length;
    columns.push("gmerging_smiles");
  }
  const quoted = (text) => `"${(text ?? "").replaceAll('"', '""')}"`;
  const lines = [columns, ...rows.map((row) => columns.map((_, k) => results.cells[k]?.[row] ?? (k === molecule ? results.smiles[row] : null)))];
  const text = lines.map((cells) => cells.map(quoted).join(",")).join("\n");
  return { file: new File([`${text}\n`], "molecules.csv", { type: "text/csv" }), column: columns[molecule] };
}

/** Ask the service for an SDF of rows. */
export async function sdfOf(results, rows, labels, { signal } = {}) {
  const { file, column } = fileOf(results, rows);
  const query = new URLSearchParams({ output: "sdf", format: "csv", smiles_column: column, tasks: tasksOf(labels).join(",") });
  const body = new FormData();
  body.append("file", file);
  return send(`predict/file?${query}`, { method: "POST", body, signal });
}

/** Save a text or a Blob as a file. */
export function save(content, name) {
  const type = TYPES[name.split(".").pop()];
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const address = URL.createObjectURL(blob);
  const link = document.createElement("a");
  Object.assign(link, { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** Return the command that asks for what is on the screen; the key is a variable of the shell. */
export function curlOf(results, rows, labels, hasKey) {
  const key = hasKey ? ` -H "X-API-Key: $GMERGING_API_KEY"` : "";
  const body = JSON.stringify(requestOf(rows.map((row) => results.texts[row] || results.smiles[row]), labels));
  const quoted = `'${body.replaceAll("'", "'\\''")}'`;
  const address = new URL("predict", document.baseURI).href;
  return `curl -s ${address}${key} -H 'content-type: application/json' --data-binary ${quoted}`;
}

/** Return the command that sends a file as the page does. */
export function curlOfFile(name, labels, hasKey) {
  const key = hasKey ? ` -H "X-API-Key: $GMERGING_API_KEY"` : "";
  const query = new URLSearchParams({ tasks: tasksOf(labels).join(",") });
  const address = new URL(`predict/file?${query}`, document.baseURI).href;
  const quoted = `'file=@"${name.replaceAll(/["\\]/g, "\\$&").replaceAll("'", "'\\''")}"'`;
  return `curl -s '${address}'${key} -F ${quoted} > predictions.csv`;
}
