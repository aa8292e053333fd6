// Pictures of molecules that follow the theme.
import { post } from "../api.js";
import { element } from "../elements.js";
import { picture } from "../pictures.js";

const redraws = new WeakMap();

document.addEventListener("themechange", () => {
  for (const image of document.querySelectorAll("img.drawing")) redraws.get(image)?.();
});

/**
 * Return an image of a molecule.
 *
 * Args: `alt` is what a screen reader says; `width`, `height` in pixels; `weights` colours atoms.
 */
export function drawing(smiles, { alt = "", width = 180, height = 130, weights = null } = {}) {
  const image = element("img", { className: "drawing", alt, width, height });
  redraw(image, smiles, { width, height, weights });
  return image;
}

/** Show another molecule, or other weights, in an image of `drawing`. */
export function redraw(image, smiles, style) {
  const show = async () => {
    const address = await picture(smiles, style);
    if (redraws.get(image) !== show) return; // another was asked for since
    image.classList.toggle("undrawn", address === null);
    if (address === null) image.removeAttribute("src");
    else image.src = address;
  };
  redraws.set(image, show);
  show();
}

/** Return a picture that is drawn for white paper when the page is printed. */
export function printable(smiles, options) {
  const paper = element("img", { className: "drawing print-only", alt: "", width: options.width, height: options.height });
  drawnLight(smiles, options).then((address) => {
    if (address) paper.src = address;
  });
  return element("span", { className: "printable" }, drawing(smiles, options), paper);
}

/** Return the address of a picture in the light theme. */
async function drawnLight(smiles, { width, height }) {
  try {
    const { pictures } = await post("depict", { smiles: [smiles], width, height, theme: "light" });
    const [{ svg }] = pictures;
    return svg ? URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" })) : null;
  } catch {
    return null; // the paper then has no picture, but the SMILES
  }
}
