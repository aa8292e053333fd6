// Files as text: their kind, their encoding, and gzip.

const KINDS = {
  csv: "csv", tsv: "tsv", tab: "tsv", smi: "smi", smiles: "smi", cxsmiles: "smi", txt: "smi",
  sdf: "sdf", sd: "sdf", mol: "sdf",
};

/** Endings of the files that can be opened, as `accept` of a file field has them. */
export const ENDINGS = [...Object.keys(KINDS), "gz"].map((ending) => `.${ending}`).join(",");

/** Return the kind of a file by its name: csv, tsv, smi or sdf. Raises: Error if it has none. */
export function kindOf(name) {
  const ending = name.toLowerCase().replace(/\.gz$/, "").split(".").pop();
  if (Object.hasOwn(KINDS, ending)) return KINDS[ending];
  throw new Error(`${name} is no file of molecules: expected CSV, TSV, SMI, TXT or SDF, also with .gz`);
}

/**
 * Return the text of a file, unpacked and decoded, and whether that is all of it.
 *
 * At most `mostBytes` are read, up to the last whole line.
 */
export async function textOf(file, mostBytes) {
  const magic = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  const isPacked = magic[0] === 0x1f && magic[1] === 0x8b;
  let stream = file.stream();
  if (isPacked) stream = stream.pipeThrough(new DecompressionStream("gzip"));
  const { bytes, isWhole } = await firstBytes(stream, mostBytes);
  const text = decoded(bytes);
  if (isWhole) return { text, isWhole };
  return { text: text.slice(0, Math.max(text.lastIndexOf("\n"), 0)), isWhole };
}

async function firstBytes(stream, most) {
  const reader = stream.getReader();
  const blocks = [];
  let length = 0;
  let isWhole = true;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    blocks.push(value);
    length += value.length;
    if (length > most) {
      isWhole = false;
      await reader.cancel();
      break;
    }
  }
  return { bytes: new Uint8Array(await new Blob(blocks).arrayBuffer()), isWhole };
}

function decoded(bytes) {
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return new TextDecoder("utf-16le").decode(bytes);
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return new TextDecoder("utf-16be").decode(bytes);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder("windows-1252").decode(bytes);
  }
}
