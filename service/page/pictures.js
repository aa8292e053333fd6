// Pictures of molecules, drawn by the service and shown as images: in the page itself an SVG would
// lose its colours to the policy on styles.
import { post } from "./api.js";
import { isDark } from "./theme.js";

const MOST_AT_ONCE = 24;
const MOST_KEPT = 600;
const kept = new Map(); // from what was asked to the address of the picture
const waiting = new Map(); // by size and theme, pictures to be asked for together

/**
 * Return the address of the picture of a molecule, for an `<img>`; null if it cannot be drawn.
 *
 * Pictures that are asked for at the same time come in one request. `weights` colours atoms in the
 * order of the canonical SMILES, vermilion up and blue down.
 */
export function picture(smiles, { width = 180, height = 130, weights = null } = {}) {
  const theme = isDark() ? "dark" : "light";
  const style = JSON.stringify([width, height, theme]);
  const name = JSON.stringify([smiles, style, weights]);
  if (!kept.has(name)) {
    kept.set(name, new Promise((resolve) => wait(style, { smiles, weights, resolve })));
    forget();
  }
  return kept.get(name);
}

function wait(style, drawing) {
  if (!waiting.has(style)) {
    waiting.set(style, []);
    setTimeout(() => flush(style), 20);
  }
  waiting.get(style).push(drawing);
}

async function flush(style) {
  const drawings = waiting.get(style);
  waiting.delete(style);
  for (let begin = 0; begin < drawings.length; begin += MOST_AT_ONCE) {
    await draw(style, drawings.slice(begin, begin + MOST_AT_ONCE));
  }
}

async function draw(style, drawings) {
  const [width, height, theme] = JSON.parse(style);
  const asked = { smiles: drawings.map((one) => one.smiles), width, height, theme };
  if (drawings.some((one) => one.weights)) asked.weights = drawings.map((one) => one.weights);
  let pictures = [];
  try {
    ({ pictures } = await post("depict", asked));
  } catch {
    // without a picture the molecule is still there as text
  }
  drawings.forEach((one, k) => {
    const svg = pictures[k]?.svg;
    one.resolve(svg ? URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" })) : null);
  });
}

async function forget() {
  if (kept.size <= MOST_KEPT) return;
  const [oldest, address] = kept.entries().next().value;
  kept.delete(oldest);
  const made = await address;
  if (made) URL.revokeObjectURL(made);
}
