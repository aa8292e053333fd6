// What is known of the molecules: what came with them, and what was answered.

const WAITING = 0;
const ANSWERED = 1;
const FAILED = 2;

/** Molecules and their answers, by row in the order of the upload. */
export class Results {
  /**
   * Args:
   *   columns: names of the upload's columns.
   *   options: `molecule` and `name`, indices of the columns of the molecule and of its name; -1
   *     for none.
   */
  constructor(columns, { molecule, name = -1 } = {}) {
    this.columns = [...columns];
    this.molecule = molecule;
    this.nameColumn = name;
    this.cells = this.columns.map(() => []);
    this.count = 0;
    this.isWhole = true; // false if there are more than were loaded
    this.texts = [];
    this.smiles = [];
    this.errors = [];
    this.states = [];
    this.values = new Map(); // from a label's column to its numbers
    this.searched = []; // lower-case text of a row, made when it is first searched
    this.percentiles = new Map(); // from a row to the percentiles among drugs, by label's column
    this.alerts = new Map(); // from a row to its structural alerts, or why they are not known
  }

  /** Return the results of a sheet, none of them answered. */
  static of(sheet) {
    const made = new Results(sheet.columns, { molecule: sheet.molecule, name: sheet.name });
    sheet.rows.forEach((row, k) => {
      made.addRow(row, row[sheet.molecule] ?? "");
      if (sheet.problems.has(k)) made.fail(k, { code: "invalid_row", message: sheet.problems.get(k) });
    });
    return made;
  }

  /** Add a row that is not answered yet. */
  addRow(cells, text) {
    for (let k = 0; k < this.columns.length; k += 1) this.cells[k].push(cells[k] ?? null);
    this.texts.push(text);
    this.smiles.push(null);
    this.errors.push(null);
    this.states.push(WAITING);
    this.count += 1;
    return this.count - 1;
  }

  /** Add a row whose cells have names; names that are new become columns. */
  addNamedRow(named, text) {
    for (const name of Object.keys(named)) {
      if (this.columns.includes(name)) continue;
      this.columns.push(name);
      this.cells.push(new Array(this.count).fill(null));
    }
    return this.addRow(this.columns.map((name) => named[name] ?? null), text);
  }

  /** Put the item of an answer into a row: its numbers of the given labels, or its error. */
  put(row, item, labels) {
    if (item.error) {
      this.fail(row, item.error);
      return;
    }
    this.smiles[row] = item.smiles;
    this.states[row] = ANSWERED;
    this.errors[row] = null;
    this.searched[row] = undefined;
    for (const label of labels) {
      const value = item.tasks[label.task.name]?.[label.name];
      if (value !== undefined) this.numbersOf(label.column)[row] = value;
    }
  }

  /** Note why a row has no answer. */
  fail(row, error) {
    this.states[row] = FAILED;
    this.errors[row] = error;
    this.searched[row] = undefined;
  }

  /** Return the numbers of a label by row, NaN where there is none; they may be longer than there
   * are rows. */
  numbersOf(column) {
    let numbers = this.values.get(column);
    if (!numbers || numbers.length < this.count) {
      const longer = new Float64Array(Math.max(this.count, 2 * (numbers?.length ?? 0))).fill(NaN);
      if (numbers) longer.set(numbers);
      numbers = longer;
      this.values.set(column, numbers);
    }
    return numbers;
  }

  /** Return a label's number of a row; NaN if it has none. */
  valueOf(row, column) {
    return this.values.get(column)?.[row] ?? NaN;
  }

  /** Return the rows that have no number of one of the labels, and no error. */
  missing(labels) {
    const rows = [];
    for (let row = 0; row < this.count; row += 1) {
      if (this.states[row] === FAILED) continue;
      if (labels.some((label) => Number.isNaN(this.valueOf(row, label.column)))) rows.push(row);
    }
    return rows;
  }

  /** True if a row has its answer. */
  isAnswered(row) {
    return this.states[row] === ANSWERED;
  }

  /** True if a row has an error in place of an answer. */
  hasFailed(row) {
    return this.states[row] === FAILED;
  }

  /** What a row is called: its name in the upload, or its number. */
  nameOf(row) {
    const name = this.nameColumn < 0 ? null : this.cells[this.nameColumn][row];
    return name || `#${row + 1}`;
  }

  /** The cells of a row by the names of their columns, null where there is none. */
  cellsOf(row) {
    return Object.fromEntries(this.columns.map((name, k) => [name, this.cells[k][row]]));
  }

  /** Lower-case text of a row: its cells, its SMILES and its error. */
  searchTextOf(row) {
    this.searched[row] ??= [
      ...this.cells.map((cells) => cells[row] ?? ""),
      this.texts[row],
      this.smiles[row] ?? "",
      this.errors[row]?.message ?? "",
    ]
      .join("\n")
      .toLowerCase();
    return this.searched[row];
  }

  /** Numbers of rows that are answered and that failed. */
  get counts() {
    let [answered, failed] = [0, 0];
    for (const state of this.states) {
      if (state === ANSWERED) answered += 1;
      else if (state === FAILED) failed += 1;
    }
    return { answered, failed };
  }
}
