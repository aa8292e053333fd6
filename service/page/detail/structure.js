// Atoms, bonds and groups of a molecule, read from the canonical SMILES of the service.

const TOKEN =
  /\[\d*(?<bracket>[A-Z][a-z]?|[a-z][a-z]?|\*)[^\]]*\]|(?<plain>Br|Cl|[BCNOPSFI*]|[bcnops])|(?<ring>%\(\d+\)|%\d\d|\d)|(?<bond>->|<-|[-=#$:/\\~])|(?<branch>[().])/g;
const ORDERS = { "=": 2, "#": 3, $: 4 };

/**
 * Read a SMILES.
 *
 * Returns: `{ atoms, bonds }` with `atoms[k] = { element, aromatic }` in the order of the SMILES
 *   and `bonds[k] = { ends: [a, b], order }`; an aromatic bond counts as 1.
 */
export function readStructure(smiles) {
  const atoms = [];
  const bonds = [];
  const stack = [];
  const open = new Map(); // ring closures that wait for their second end
  let last = null;
  let order = 1;
  const join = (a, b) => {
    bonds.push({ ends: [a, b], order });
    order = 1;
  };
  for (const { groups } of smiles.matchAll(TOKEN)) {
    const symbol = groups.bracket ?? groups.plain;
    if (symbol) {
      const aromatic = symbol !== "*" && symbol === symbol.toLowerCase();
      atoms.push({ element: symbol[0].toUpperCase() + symbol.slice(1), aromatic });
      if (last !== null) join(last, atoms.length - 1);
      last = atoms.length - 1;
    } else if (groups.bond) {
      order = ORDERS[groups.bond] ?? 1;
    } else if (groups.ring) {
      if (open.has(groups.ring)) {
        const begin = open.get(groups.ring);
        order = Math.max(order, begin.order); // it may stand at either end
        join(begin.atom, last);
        open.delete(groups.ring);
      } else {
        open.set(groups.ring, { atom: last, order });
        order = 1;
      }
    } else if (groups.branch === "(") {
      stack.push(last);
    } else if (groups.branch === ")") {
      last = stack.pop();
    } else {
      last = null;
    }
  }
  return { atoms, bonds };
}

/**
 * Divide a molecule into ring systems, functional groups and carbon chains.
 *
 * A functional group is a connected set of atoms outside rings that are no carbon, or carbon with
 * a multiple bond or two halogens (close to Ertl 2017, J. Cheminform. 9, 36). An atom that hangs
 * on a ring by a double bond belongs to the ring.
 *
 * Returns: `[{ name, atoms }]`; every atom is in one group.
 */
export function groupsOf(structure) {
  const { atoms, bonds } = structure;
  const inRing = ringBonds(structure);
  const kind = atoms.map(() => "chain");
  bonds.forEach(({ ends }, k) => {
    if (inRing[k]) for (const end of ends) kind[end] = "ring";
  });
  const degree = atoms.map((_, a) => bonds.filter(({ ends }) => ends.includes(a)).length);
  bonds.forEach(({ ends: [a, b], order }) => {
    for (const [from, to] of [[a, b], [b, a]]) {
      if (kind[from] === "ring" && order === 2 && degree[to] === 1) kind[to] = "ring";
    }
  });
  atoms.forEach((atom, a) => {
    if (kind[a] === "chain" && isFunctional(structure, a)) kind[a] = "functional";
  });
  const joined = bonds.filter(({ ends: [a, b] }, k) => {
    if (kind[a] !== kind[b]) return false;
    return kind[a] !== "ring" || inRing[k] || degree[a] === 1 || degree[b] === 1;
  });
  return components(atoms.length, joined).map((members) => ({
    name: nameOf(structure, kind[members[0]], members),
    atoms: members,
  }));
}

const HALOGENS = new Set(["F", "Cl", "Br", "I"]);

function isFunctional({ atoms, bonds }, a) {
  if (atoms[a].element !== "C") return true;
  const own = bonds.filter(({ ends }) => ends.includes(a));
  const others = own.map(({ ends }) => atoms[ends[0] === a ? ends[1] : ends[0]].element);
  return own.some(({ order }) => order > 1) || others.filter((e) => HALOGENS.has(e)).length > 1;
}

/** Return for every bond whether it is in a ring: whether its ends stay joined without it. */
function ringBonds({ atoms, bonds }) {
  const near = atoms.map(() => []);
  bonds.forEach(({ ends: [a, b] }, k) => {
    near[a].push([b, k]);
    near[b].push([a, k]);
  });
  const seen = atoms.map(() => -1); // the step at which an atom was reached
  const low = atoms.map(() => Infinity); // the earliest step that can be reached past it
  const inRing = bonds.map(() => true);
  let step = 0;
  const visit = (a, by) => {
    seen[a] = low[a] = step++;
    for (const [b, k] of near[a]) {
      if (k === by) continue;
      if (seen[b] < 0) visit(b, k);
      low[a] = Math.min(low[a], seen[b] < seen[a] ? seen[b] : low[b]);
    }
    if (by !== null && low[a] === seen[a]) inRing[by] = false;
  };
  atoms.forEach((_, a) => seen[a] < 0 && visit(a, null));
  return inRing;
}

function components(size, bonds) {
  const root = Array.from({ length: size }, (_, a) => a);
  const find = (a) => (root[a] === a ? a : (root[a] = find(root[a])));
  for (const { ends: [a, b] } of bonds) root[find(a)] = find(b);
  const sets = new Map();
  for (let a = 0; a < size; a += 1) sets.set(find(a), [...(sets.get(find(a)) ?? []), a]);
  return [...sets.values()];
}

// By composition and the highest bond order inside the group.
const NAMES = {
  "CO 2": "carbonyl", "CNO 2": "amide", "CN 3": "nitrile",
  "CN2O 2": "urea", "CNO2 2": "carbamate", "NO2 2": "nitro", "N 1": "amine nitrogen",
  "S 1": "sulfide", "O2S 2": "sulfonyl", "NO2S 2": "sulfonamide", "O3S 2": "sulfonic acid",
  "N2 2": "azo", "C2 2": "double bond", "C2 3": "triple bond", "CF3 1": "trifluoromethyl",
  "F 1": "fluorine", "Cl 1": "chlorine", "Br 1": "bromine", "I 1": "iodine",
};

function nameOf({ atoms, bonds }, kind, members) {
  const inside = bonds.filter(({ ends }) => ends.every((end) => members.includes(end)));
  const formula = formulaOf(members.map((a) => atoms[a].element));
  if (kind === "ring") {
    const rings = inside.length - members.length + 1;
    const aromatic = members.some((a) => atoms[a].aromatic);
    const shape = rings === 1 ? "ring" : `${rings} joined rings`;
    return `${aromatic ? "aromatic " : ""}${shape} ${formula}`;
  }
  if (kind === "chain") {
    return members.length === 1 ? "carbon" : `chain of ${members.length} carbons`;
  }
  const order = Math.max(1, ...inside.map((bond) => bond.order));
  if (formula === "CO2" && order === 2) {
    // an acid has an oxygen with a single bond and no other neighbour
    const ends = bonds.filter((bond) => bond.order === 1 && inside.includes(bond));
    const alone = (a) => bonds.filter((bond) => bond.ends.includes(a)).length === 1;
    return ends.some((bond) => bond.ends.some(alone)) ? "carboxylic acid" : "ester";
  }
  if (formula === "O") {
    const bondsOf = bonds.filter(({ ends }) => ends.includes(members[0])).length;
    return bondsOf === 1 ? "hydroxyl" : bondsOf === 2 ? "ether oxygen" : "oxygen";
  }
  return NAMES[`${formula} ${order}`] ?? `group ${formula}`;
}

/** Write a composition in Hill's order. */
function formulaOf(elements) {
  const counts = new Map();
  for (const one of elements) counts.set(one, (counts.get(one) ?? 0) + 1);
  const rank = (one) => (counts.has("C") && one === "C" ? "" : one);
  return [...counts.keys()]
    .sort((a, b) => (rank(a) < rank(b) ? -1 : 1))
    .map((one) => one + (counts.get(one) > 1 ? counts.get(one) : ""))
    .join("");
}

/** Write where atoms are, counted from 1 in the order of the SMILES: `3-5, 9`. */
export function placesOf(members) {
  const runs = [];
  for (const a of members) {
    const run = runs.at(-1);
    if (run && a === run[1] + 1) run[1] = a;
    else runs.push([a, a]);
  }
  return runs.map(([a, b]) => (a === b ? `${a + 1}` : `${a + 1}–${b + 1}`)).join(", ");
}

/** Return weights for a picture that colours these atoms alone: 1 (or `sign`) there, else 0. */
export function weightsOn({ atoms }, members, sign = 1) {
  const chosen = new Set(members);
  return atoms.map((_, a) => (chosen.has(a) ? sign : 0));
}
