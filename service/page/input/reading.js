// Reads molecules from text and files into a `Sheet`: tables, lines of SMILES, mol blocks and SDF.

const DELIMITERS = [",", ";", "\t", "|"];
const SAMPLE = 50;
const ATOM = /\[[^\]\s]+\]|Br|Cl|[BCNOPSFIbcnops*]/;
const SMILES = /^(?:\[[^\]\s]+\]|Br|Cl|[BCNOPSFIbcnops*]|[-=#$:/\\.~()%0-9])+$/;
const BLOCK = /^M {2}END|V[23]000/m;
const EXTENSION = /^(\|.*?\|)(?:\s+(.*))?$/s;
const MOLECULE_NAMES = /smiles|\bsmi\b|inchi(?! ?key)|mol ?block|mol ?file|ctab/;
const GENERIC_NAMES = /^(mol|romol|structure|chemical structure|molecule|drug|compound|ligand)$/;
const NO_MOLECULES = /key|error|valid|length|count|hash/;
const NAME_NAMES = /\b(name|title|id|identifier|code|compound|molecule|drug|cas|no|number)\b/;

/** Molecules with everything that came with them. */
export class Sheet {
  /**
   * Args:
   *   columns: names, each once.
   *   rows: a list of texts for every record, one per column; null where an SDF lacks a field.
   *   options: `molecule`, index of the molecules' column; `problems`, a Map from the index of a
   *     row to why it cannot be read; `kind`, of the file; `hasHeader`, false if the names are ours.
   */
  constructor(columns, rows, { molecule, problems = new Map(), kind, hasHeader = true }) {
    Object.assign(this, { columns, rows, molecule, problems, kind, hasHeader });
    this.name = nameColumn(columns, rows, molecule);
  }

  /** Text of the molecule of a row. */
  textOf(row) {
    return this.rows[row][this.molecule] ?? "";
  }
}

/** Return the column that names the molecules; -1 if there is none. */
export function nameColumn(columns, rows, molecule) {
  const others = columns.map((_, k) => k).filter((k) => k !== molecule);
  const called = others.filter((k) => NAME_NAMES.test(plain(columns[k])));
  const filled = (k) => rows.slice(0, SAMPLE).some((row) => row[k]);
  return called.find(filled) ?? -1;
}

/** True if a text has the form of a SMILES, an InChI or a mol block. */
export function isMolecule(text) {
  const trimmed = text.trim();
  if (trimmed.startsWith("InChI=") || BLOCK.test(trimmed)) return true;
  const space = trimmed.search(/\s/);
  const smiles = space < 0 ? trimmed : trimmed.slice(0, space);
  if (space >= 0 && !trimmed.slice(space).trim().startsWith("|")) return false;
  if (/^[a-z]+$/.test(smiles)) return false; // aromatic atoms, but no ring
  return ATOM.test(smiles) && SMILES.test(smiles);
}

/**
 * Read a text.
 *
 * Args: `kind` is csv, tsv, smi or sdf; null for pasted text, whose kind is found out.
 */
export function readText(text, kind = null) {
  const body = text.replace(/^\uFEFF/, "");
  if (kind === "sdf" || (kind !== "csv" && kind !== "tsv" && startsWithBlock(body))) {
    return readSdf(body);
  }
  const delimiter = delimiterOf(body, kind);
  return delimiter === null ? readLines(body) : readTable(body, delimiter, kind ?? "csv");
}

function startsWithBlock(text) {
  return text.split(/\r\n|\n|\r/, 5).some((line) => /V[23]000\s*$/.test(line));
}

/** Return the delimiter of a table; null for lines of SMILES. */
function delimiterOf(text, kind) {
  const excel = /^"?sep=(.)"?/i.exec(text);
  if (excel) return excel[1];
  if (kind === "tsv") return "\t";
  const head = text.slice(0, 65536);
  const fitness = DELIMITERS.map((delimiter) => fit(head, delimiter));
  const best = fitness.indexOf(Math.max(...fitness));
  if (fitness[best] > 0) return DELIMITERS[best];
  return kind === "csv" ? "," : null;
}

function fit(head, delimiter) {
  const { records } = split(head, delimiter, SAMPLE + 1);
  const width = records[0]?.length ?? 0;
  if (width < 2) return 0;
  const [header, ...rows] = records;
  const isNamed = !header.some(isMolecule) && header.some((name) => MOLECULE_NAMES.test(plain(name)));
  // A comma of an InChI, and a name after a SMILES with a comma in it, make no table.
  const molecules = [0, 1].filter((row) => records[row]?.some(isMolecule));
  if (!isNamed && !molecules.length) return 0;
  if (!isNamed && header.join(delimiter).startsWith("InChI=") && delimiter === ",") return 0;
  const same = rows.filter((row) => row.length === width).length / Math.max(1, rows.length);
  return (isNamed ? 4 : 0) + same + Math.min(width, 100) / 1000 + (delimiter === "\t" ? 0.5 : 0);
}

function readTable(text, delimiter, kind) {
  let start = 0;
  if (/^"?sep=.*/i.test(text)) start = text.search(/[\r\n]/) + 1;
  const { records, open } = split(text.slice(start), delimiter);
  if (!records.length) return new Sheet(["smiles"], [], { molecule: 0, kind });
  const hasHeader = !records[0].some(isMolecule);
  const width = records[0].length;
  const names = hasHeader ? records.shift().map((name) => name.trim()) : [];
  const columns = uniqueNames(hasHeader ? names : invented(records, width));
  const problems = new Map();
  records.forEach((record, k) => {
    if (open.has(record)) problems.set(k, "got a quote that opens a cell, expected one that closes it");
    const surplus = record.slice(width);
    if (surplus.some((cell) => cell.trim())) {
      problems.set(k, `got ${record.length} cells, expected ${width}, one per column`);
    }
    record.length = Math.min(record.length, width);
    while (record.length < width) record.push("");
  });
  return new Sheet(columns, records, {
    molecule: moleculeColumn(columns, records),
    problems,
    kind,
    hasHeader,
  });
}

function invented(records, width) {
  const molecule = Math.max(0, records[0].findIndex(isMolecule));
  const others = Array.from({ length: width }, (_, k) => `column ${k + 1}`);
  others[molecule] = "smiles";
  if (width === 2) others[1 - molecule] = "name";
  return others;
}

/**
 * Split a table into records as of RFC 4180. Blank lines are no records.
 *
 * A quote that nobody closes spoils its own line only; such records are in the set `open`.
 */
export function split(text, delimiter, most = Infinity) {
  const records = [];
  const open = new Set();
  let at = 0;
  while (at < text.length && records.length < most) {
    const { record, next } = recordAt(text, at, delimiter) ?? brokenRecordAt(text, at, delimiter, open);
    if (record.length > 1 || record[0].trim() || text[at] === '"') records.push(record);
    at = next;
  }
  return { records, open };
}

/** Return the record that starts at `at`, and where the next one starts; null if a quote is open. */
function recordAt(text, at, delimiter) {
  const record = [];
  for (;;) {
    let cell = "";
    if (text[at] === '"') {
      for (at += 1; ; at += 1) {
        const close = text.indexOf('"', at);
        if (close < 0) return null;
        cell += text.slice(at, close);
        at = close + 1;
        if (text[at] !== '"') break;
        cell += '"';
      }
    }
    const end = endOfCell(text, at, delimiter);
    record.push(cell + text.slice(at, end));
    at = end;
    if (text[at] === delimiter) {
      at += 1;
      continue;
    }
    return { record, next: text[at] === "\r" && text[at + 1] === "\n" ? at + 2 : at + 1 };
  }
}

function brokenRecordAt(text, at, delimiter, open) {
  let end = at;
  while (end < text.length && text[end] !== "\n" && text[end] !== "\r") end += 1;
  const record = text.slice(at, end).split(delimiter);
  open.add(record);
  return { record, next: text[end] === "\r" && text[end + 1] === "\n" ? end + 2 : end + 1 };
}

function endOfCell(text, at, delimiter) {
  while (at < text.length) {
    const letter = text[at];
    if (letter === delimiter || letter === "\n" || letter === "\r") break;
    at += 1;
  }
  return at;
}

function moleculeColumn(columns, rows) {
  const sample = rows.slice(0, SAMPLE);
  const share = (k) => {
    const filled = sample.map((row) => row[k] ?? "").filter((cell) => cell.trim());
    return filled.filter(isMolecule).length / Math.max(1, filled.length);
  };
  const length = (k) => sample.reduce((sum, row) => sum + (row[k]?.length ?? 0), 0) / sample.length;
  const ranks = columns.map((name) => {
    const words = plain(name);
    if (NO_MOLECULES.test(words)) return 0;
    return MOLECULE_NAMES.test(words) ? 3 : GENERIC_NAMES.test(words) ? 1.5 : 0;
  });
  const fitness = columns.map((_, k) => {
    const held = share(k);
    return (held > 0 ? ranks[k] : ranks[k] / 100) + held + Math.min(length(k) || 0, 99) / 1000;
  });
  return Math.max(0, fitness.indexOf(Math.max(...fitness)));
}

function plain(name) {
  const words = name.replace(/([a-z])(?=[A-Z])/g, "$1 ").replace(/In ?Ch ?I/g, "inchi");
  return (words.toLowerCase().match(/[a-z0-9]+/g) ?? []).join(" ");
}

/** Make names distinct as the service does: "a", "a.1", ... */
export function uniqueNames(names) {
  const used = new Set(names);
  const seen = new Map();
  return names.map((name) => {
    let unique = name;
    if (seen.has(name)) {
      for (let k = seen.get(name); used.has(unique); k += 1) {
        unique = `${name}.${k}`;
        seen.set(name, k + 1);
      }
      used.add(unique);
    } else seen.set(name, 1);
    return unique;
  });
}

function readLines(text) {
  const rows = [];
  for (const line of text.split(/\r\n|\n|\r/)) {
    if (!line.trim()) continue;
    const [, first, rest] = /^\s*(\S+)\s*(.*?)\s*$/s.exec(line);
    if (!rows.length && MOLECULE_NAMES.test(plain(first)) && !isMolecule(first)) continue;
    const extension = EXTENSION.exec(rest);
    rows.push(extension ? [`${first} ${extension[1]}`, extension[2] ?? ""] : [first, rest]);
  }
  const columns = rows.some((row) => row[1]) ? ["smiles", "name"] : ["smiles"];
  const cells = columns.length === 1 ? rows.map(([smiles]) => [smiles]) : rows;
  return new Sheet(columns, cells, { molecule: 0, kind: "smi" });
}

function readSdf(text) {
  const records = text.split(/^\${4}.*(?:\r\n|\n|\r|$)/m).filter((record) => record.trim());
  const names = new Set();
  const read = records.map((record) => {
    const end = /^M {2}END.*$/m.exec(record);
    const block = end ? record.slice(0, end.index + end[0].length) : record;
    const fields = new Map();
    const data = end ? record.slice(end.index + end[0].length) : "";
    for (const [, name, value] of data.matchAll(/^>[^<\n]*<(.*?)>[^\n]*\n([\s\S]*?)(?=\n\s*\n|\n>|$(?![\s\S]))/gm)) {
      fields.set(name, value.replace(/\r/g, "").trim());
      names.add(name);
    }
    return { block: block.replace(/\r\n?/g, "\n"), title: block.split(/\r\n|\n|\r/, 1)[0].trim(), fields };
  });
  const columns = uniqueNames(["molecule", "name", ...names]);
  const rows = read.map(({ block, title, fields }) => [
    block,
    title,
    ...[...names].map((name) => fields.get(name) ?? null),
  ]);
  return new Sheet(columns, rows, { molecule: 0, kind: "sdf" });
}
