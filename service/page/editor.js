// The editor: a canvas to draw in, and beside it a text box for those who do not draw.
import { element } from "./elements.js";

const LIBRARY = "./vendor/openchemlib-9.25.0.js"; // 1.1 MB: loaded when somebody draws

/**
 * Let a person draw a molecule, or edit one.
 *
 * Args: `smiles` is what the editor begins with; empty for nothing.
 * Returns: null if the person gave up. Otherwise `{ smiles, molBlock }`. After a change in the
 *   canvas `molBlock` is the drawing as a V3000 mol block, which is what should be predicted:
 *   `smiles` is then the library's SMILES, which loses stereo of one molecule in forty. After
 *   a change in the text box, or none, `smiles` is that text and `molBlock` is null.
 */
export function openEditor({ smiles = "" } = {}) {
  return new Promise((resolve) => new Editor(smiles.trim(), resolve).open());
}

class Editor {
  #canvas = null;
  #library = null;
  #drawn = false; // true if the last change was made in the canvas
  #result = null;

  constructor(smiles, resolve) {
    this.sheet = element("div", { className: "editor-sheet" });
    this.message = element("p", { className: "editor-message", role: "status" }, "Loading the editor …");
    this.text = element("input", {
      id: "editor-text", type: "text", value: smiles, spellcheck: false, autocomplete: "off",
      on: { input: () => this.#read() },
    });
    this.use = element("button", { type: "submit", className: "primary" }, "Use this molecule");
    const cancel = element("button", { type: "button", on: { click: () => this.dialog.close() } }, "Cancel");
    const form = element(
      "form",
      { method: "dialog", on: { submit: () => this.#accept() } },
      element("h2", { id: "editor-title" }, "Draw a molecule"),
      this.sheet,
      element("label", { for: "editor-text" }, "Or type SMILES"),
      this.text,
      this.message,
      element("div", { className: "editor-actions" }, cancel, this.use),
    );
    this.dialog = element("dialog", { className: "editor", aria: { labelledby: "editor-title" } }, form);
    this.dialog.addEventListener("close", () => {
      this.#canvas?.destroy();
      this.dialog.remove();
      resolve(this.#result);
    });
  }

  async open() {
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.text.focus();
    try {
      this.#library = await import(LIBRARY);
    } catch {
      this.message.textContent = "The editor could not be loaded; SMILES can be typed.";
      return;
    }
    if (!this.dialog.open) return;
    this.#canvas = new this.#library.CanvasEditor(this.sheet);
    const area = this.sheet.firstElementChild?.shadowRoot?.querySelector("canvas[tabindex]");
    area?.setAttribute("role", "application");
    area?.setAttribute("aria-label", "Drawing area; the text box below does the same by keyboard");
    this.#canvas.setOnChangeListener((event) => {
      if (event.type === "molecule" && event.isUserEvent) this.#drew();
    });
    this.#read();
  }

  /** Show the molecule of the text box in the canvas. */
  #read() {
    this.#drawn = false;
    if (!this.#library) return;
    try {
      const typed = this.text.value.trim();
      const molecule = this.#library.Molecule.fromSmiles(typed);
      this.#canvas.setMolecule(molecule);
      this.#say("");
    } catch {
      // The service may read it all the same: its reader is another.
      this.#say("The canvas cannot show this text.");
    }
  }

  /** Write the molecule of the canvas into the text box. */
  #drew() {
    this.#drawn = true;
    this.text.value = this.#canvas.getMolecule().toIsomericSmiles();
    this.#say("");
  }

  #accept() {
    const smiles = this.text.value.trim();
    if (!smiles) return;
    const molBlock = this.#drawn ? this.#canvas.getMolecule().toMolfileV3() : null;
    this.#result = { smiles, molBlock };
  }

  #say(text) {
    this.message.textContent = text;
  }
}
