// The columns of the table: what their headings and cells show.
import { element } from "../elements.js";
import { picture } from "../pictures.js";
import { numberOf } from "./order.js";
import { directionOf, labelHint, valueText } from "./values.js";

const PICTURE = { width: 132, height: 88 };

/**
 * Return the columns of a table.
 *
 * Args:
 *   results: the `Results`.
 *   labels: the labels to show.
 *   options: `pictures`, whether there are pictures; `upload`, whether the columns of the upload are
 *     shown; `explained`, what is shown beside the numbers; `selected`, a Set of rows; `onSelect`;
 *     `isNarrow`, for a small screen.
 */
export function columnsOf(results, labels, options) {
  const { pictures, upload, explained, isNarrow } = options;
  const shown = upload ? results.columns.map((_, k) => k) : [];
  return [
    nameColumn(results, options),
    ...(pictures ? [pictureColumn(results)] : []),
    ...shown
      .filter((k) => k !== results.nameColumn && k !== results.molecule)
      .map((k) => uploadColumn(results, k)),
    ...(explained.has("alerts") ? [alertsColumn(results)] : []),
    ...labels.map((label) => labelColumn(results, label, explained, isNarrow)),
  ];
}

function sortButton(id, { isSorted, sort }, ...children) {
  const mark = isSorted ? (sort.descending ? "↓" : "↑") : "";
  const shown = element("span", { className: "sorted", "aria-hidden": "true" }, mark);
  return element("button", { type: "button", className: "sort", tabIndex: -1, data: { sort: id, focus: "" } }, ...children, shown);
}

function nameColumn(results, { selected, onSelect, isNarrow }) {
  return {
    id: "name",
    sort: true,
    width: isNarrow ? 140 : 230,
    className: "first",
    head: (cell, state) => cell.append(sortButton("name", state, "Molecule")),
    body: (cell, row) => {
      const name = results.nameOf(row);
      const box = element("input", {
        type: "checkbox",
        tabIndex: -1,
        checked: selected.has(row),
        aria: { label: `Compare ${name}` },
        on: { change: () => onSelect(row) },
      });
      const smiles = results.smiles[row] ?? firstLine(results.texts[row]);
      const texts = element(
        "span",
        { className: "texts" },
        element("span", { className: "name" }, name),
        element("span", { className: "smiles mono", title: smiles }, smiles),
      );
      cell.append(element("span", { className: "who" }, box, texts));
    },
  };
}

function firstLine(text) {
  return text.includes("\n") ? "mol block" : text;
}

function pictureColumn(results) {
  return {
    id: "picture",
    width: PICTURE.width + 8,
    className: "picture",
    head: (cell) => cell.append(element("span", { className: "title" }, "Structure")),
    body: () => {},
    rest: async (cell, row) => {
      const smiles = results.smiles[row];
      if (cell.dataset.asked || !smiles) return;
      cell.dataset.asked = "yes";
      const address = await picture(smiles, PICTURE);
      if (!address || !cell.isConnected) return;
      const { width, height } = PICTURE;
      cell.replaceChildren(element("img", { src: address, width, height, alt: `Structure of ${results.nameOf(row)}` }));
    },
  };
}

function uploadColumn(results, k) {
  const id = `upload:${results.columns[k]}`;
  const cells = results.cells[k];
  return {
    id,
    sort: true,
    width: 130,
    className: "upload",
    head: (cell, state) => {
      const title = element("span", { className: "title" }, results.columns[k]);
      cell.append(sortButton(id, state, title));
    },
    body: (cell, row) => {
      const text = cells[row] ?? "";
      cell.append(element("span", { className: "text", title: text }, text));
      if (!Number.isNaN(numberOf(cells[row]))) cell.classList.add("number");
    },
  };
}

function alertsColumn(results) {
  return {
    id: "alerts",
    width: 150,
    className: "alerts",
    isAnswer: true,
    head: (cell) => cell.append(element("span", { className: "title" }, "Structural alerts")),
    body: (cell, row) => {
      const alerts = results.alerts.get(row);
      if (!alerts) return;
      const names = typeof alerts === "string"
        ? [alerts]
        : [...new Set(alerts.map(({ catalog, name }) => `${catalog}: ${name.replaceAll("_", " ")}`))];
      const text = names.length ? names.join("; ") : "none";
      cell.append(element("span", { className: names.length ? "text alert" : "text soft", title: names.join("\n") }, text));
    },
  };
}

function labelColumn(results, label, explained, isNarrow) {
  const { mark, text } = directionOf(label);
  return {
    id: label.column,
    sort: true,
    isAnswer: true,
    width: isNarrow ? 104 : 128,
    className: `label high-is-${label.meaning.direction ?? "neither"}`,
    head: (cell, state) => {
      const title = element("span", { className: "title" }, label.title);
      const sort = sortButton(label.column, state, title);
      sort.title = labelHint(label);
      const about = element("a", { href: `#label=${encodeURIComponent(label.column)}`, tabIndex: -1, className: "about", aria: { label: `About ${label.title}` } }, "?");
      const facts = element(
        "span",
        { className: "facts" },
        mark && element("span", { className: "mark-of", title: text, role: "img", aria: { label: text } }, mark),
        element("span", { className: "unit" }, label.isProbability ? label.task.name : (label.unit ?? label.task.name)),
        about,
      );
      cell.append(sort, facts);
    },
    body: (cell, row) => {
      const value = results.valueOf(row, label.column);
      if (Number.isNaN(value)) return;
      const number = element("span", { className: "value" }, valueText(label, value));
      const percentile = results.percentiles.get(row)?.[label.column];
      const among = explained.has("drugs") && percentile !== undefined
        ? element("span", { className: "among", title: `higher than ${Math.round(percentile)} % of approved drugs` }, `P${Math.round(percentile)}`)
        : null;
      cell.append(element("span", { className: "numbers" }, number, among));
      if (label.isProbability) cell.append(bar(value));
    },
  };
}

function bar(value) {
  const filled = element("span", { style: { width: `${Math.round(100 * value)}%` } });
  return element("span", { className: "bar", "aria-hidden": "true" }, filled);
}
