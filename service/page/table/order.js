// Which rows the table shows, and in which order.

/**
 * Return the rows to show, in order.
 *
 * Args:
 *   results: the `Results`.
 *   view: `text`, which a row must contain; `filters`, a list of `{ column, min, max }`, null for an
 *     open end; `matched`, a Set of rows that have a substructure, or null; `sort`, `{ column,
 *     descending }` or null. A column is a label's, or that of the upload with "upload:" before it,
 *     "name" or "smiles".
 */
export function orderOf(results, { text = "", filters = [], matched = null, sort = null }) {
  const wanted = text.trim().toLowerCase();
  const set = filters.filter(({ min, max }) => min !== null || max !== null);
  const ranges = set.map(({ column, min, max }) => ({
    numbers: numbersOf(results, column),
    min: min ?? -Infinity,
    max: max ?? Infinity,
  }));
  const rows = [];
  for (let row = 0; row < results.count; row += 1) {
    if (wanted && !results.searchTextOf(row).includes(wanted)) continue;
    if (matched && !matched.has(row)) continue;
    if (!ranges.every(({ numbers, min, max }) => numbers(row) >= min && numbers(row) <= max)) continue;
    rows.push(row);
  }
  return sort === null ? rows : sorted(results, rows, sort);
}

function numbersOf(results, column) {
  const index = uploadIndex(results, column);
  if (index < 0) return (row) => results.valueOf(row, column);
  const cells = results.cells[index];
  return (row) => numberOf(cells[row]);
}

/** Return the number that a cell says; NaN if it says none. */
export function numberOf(cell) {
  return cell === null || !cell.trim() ? NaN : Number(cell);
}

function uploadIndex(results, column) {
  return column.startsWith("upload:") ? results.columns.indexOf(column.slice(7)) : -1;
}

function sorted(results, rows, { column, descending }) {
  const index = uploadIndex(results, column);
  const cells = index < 0 ? null : results.cells[index];
  if (column === "name" || column === "smiles") {
    const texts = rows.map((row) => (column === "name" ? results.nameOf(row) : results.smiles[row]));
    return byText(rows, texts, descending);
  }
  if (cells !== null && !rows.every((row) => !cells[row]?.trim() || !Number.isNaN(Number(cells[row])))) {
    return byText(rows, rows.map((row) => cells[row]), descending);
  }
  const numbers = numbersOf(results, column);
  return byNumber(rows, Float64Array.from(rows, numbers), descending);
}

// Both are stable, downwards too, and rows without a value come last.
function byNumber(rows, values, descending) {
  const places = [];
  const last = [];
  for (let k = 0; k < rows.length; k += 1) (Number.isNaN(values[k]) ? last : places).push(k);
  places.sort(descending ? (a, b) => values[b] - values[a] : (a, b) => values[a] - values[b]);
  return [...places, ...last].map((k) => rows[k]);
}

function byText(rows, texts, descending) {
  const { compare } = new Intl.Collator(undefined, { numeric: true });
  const places = rows.map((_, k) => k).filter((k) => texts[k]);
  const last = rows.map((_, k) => k).filter((k) => !texts[k]);
  places.sort(descending ? (a, b) => compare(texts[b], texts[a]) : (a, b) => compare(texts[a], texts[b]));
  return [...places, ...last].map((k) => rows[k]);
}
