// Pictures of molecules that follow the theme.
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
