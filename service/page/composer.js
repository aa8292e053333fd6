// Where molecules come in: typed, pasted, drawn, or as a file.
import { post } from "./api.js";
import { element, say } from "./elements.js";
import { ENDINGS, kindOf, textOf } from "./input/files.js";
import { isMolecule, readText } from "./input/reading.js";
import { count } from "./table/values.js";

const READ_BYTES = 8 * 1024 ** 2; // of a file; the rest is left to the service
const TYPING = 200;
const EXAMPLES = `CC(=O)Oc1ccccc1C(=O)O aspirin
Cn1cnc2c1c(=O)n(C)c(=O)n2C caffeine
CC(C)Cc1ccc(cc1)C(C)C(=O)O ibuprofen
CN(C)C(=N)NC(=N)N metformin
OC(=O)COCCN1CCN(CC1)C(c1ccccc1)c1ccc(Cl)cc1 cetirizine
CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc12 diazepam
CC(C)(C)c1ccc(cc1)C(O)CCCN1CCC(CC1)C(O)(c1ccccc1)c1ccccc1 terfenadine
COc1ccc2cc(ccc2c1)C(C)C(=O)O naproxen`;

/** The input at the top of the page. */
export class Composer {
  /**
   * Args: `section` is the element to fill; `onPredict` is called when the input is to be predicted;
   * `onChange` when it is another one; `controls`, elements to show beside the button.
   */
  constructor(section, { onPredict, onChange, controls }) {
    Object.assign(this, { section, onPredict, onChange });
    this.file = null; // { file, sheet, isWhole, kind }
    this.sheet = null; // of the text
    this.readFrom = ""; // the text that it was read from
    this.#build(controls);
    this.#connectDrop();
  }

  #build(controls) {
    this.text = element("textarea", {
      id: "molecules-text", rows: 6, spellcheck: false, autocapitalize: "off", autocomplete: "off",
      placeholder: "CC(=O)Oc1ccccc1C(=O)O aspirin\nCn1cnc2c1c(=O)n(C)c(=O)n2C caffeine",
      aria: { describedby: "molecules-hint molecules-read" },
      on: { input: () => this.#typed(), keydown: (event) => this.#key(event) },
    });
    this.picker = element("input", {
      type: "file", accept: ENDINGS, className: "hidden", tabIndex: -1, aria: { hidden: "true" },
      on: { change: () => this.picker.files[0] && this.open(this.picker.files[0]) },
    });
    const button = (text, act, props = {}) =>
      element("button", { type: "button", on: { click: act }, ...props }, text);
    this.predict = button("Predict", () => this.#ask(), { className: "primary", id: "predict", title: "Ctrl+Enter" });
    this.read = element("div", { id: "molecules-read", className: "read" });
    this.card = element("div", { className: "card", hidden: true });
    this.field = element(
      "div",
      { className: "field" },
      element("label", { for: "molecules-text", className: "hidden" }, "Molecules, one a line"),
      this.text,
      this.card,
    );
    this.section.replaceChildren(
      element(
        "div",
        { className: "intro" },
        element("h1", {}, "What does the molecule do?"),
        element("p", { id: "molecules-hint" }, "Paste SMILES, one a line, with names if you like; or drop a CSV, SMI or SDF file here. Nothing leaves this service, and nothing is stored."),
      ),
      this.field,
      this.read,
      element(
        "div",
        { className: "row bar-of-input" },
        button("Open file", () => this.picker.click()),
        button("Draw", () => this.#draw(), { id: "draw" }),
        button("Examples", () => this.setText(EXAMPLES), { className: "quiet" }),
        this.picker,
        element("span", { className: "grow" }),
        ...controls,
        this.predict,
      ),
    );
    this.#show();
  }

  /** The molecules, as a `Sheet`; of a long file its beginning. Null if there are none. */
  get current() {
    return this.file?.sheet ?? this.sheet;
  }

  /** Leave room for the results. */
  shrink() {
    [this.text.rows, this.text.scrollTop] = [3, 0];
  }

  /** The text, where no file is open. */
  get written() {
    return this.file ? "" : this.text.value;
  }

  /** Put a text into the field, in place of what was there. */
  setText(text) {
    this.#forget();
    this.text.value = text;
    this.#readText();
    this.text.focus();
  }

  /** Open a file. */
  async open(file) {
    try {
      const kind = kindOf(file.name);
      const { text, isWhole } = await textOf(file, READ_BYTES);
      const sheet = readText(text, kind === "smi" ? null : kind);
      this.file = { file, kind, sheet, isWhole };
      say(`${file.name} is open`);
    } catch (error) {
      say(error.message);
      this.file = null;
    }
    this.picker.value = "";
    this.#show();
    this.onChange();
  }

  #forget() {
    this.file = null;
    this.#show();
  }

  #typed() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.#readText(), TYPING);
  }

  #key(event) {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    this.#ask();
  }

  /** Predict what is in the field now, also what was pasted a moment ago. */
  #ask() {
    if (!this.file && this.text.value !== this.readFrom) this.#readText();
    if (!this.predict.disabled) this.onPredict();
  }

  #readText() {
    clearTimeout(this.typing);
    const text = (this.readFrom = this.text.value);
    this.sheet = text.trim() ? readText(text) : null;
    this.#show();
    this.onChange();
  }

  #show() {
    const { file } = this;
    this.text.hidden = file !== null;
    this.card.hidden = file === null;
    if (file) {
      const size = file.file.size < 1e6 ? `${Math.ceil(file.file.size / 1e3)} kB` : `${(file.file.size / 1e6).toFixed(1)} MB`;
      const close = element("button", { type: "button", className: "quiet", on: { click: () => this.#closeFile() } }, "Remove");
      this.card.replaceChildren(element("strong", {}, file.file.name), element("span", { className: "soft" }, size), close);
    }
    const sheet = this.current;
    this.predict.disabled = !sheet?.rows.length;
    this.read.replaceChildren(...(sheet ? this.#described(sheet) : []));
  }

  #closeFile() {
    this.#forget();
    this.#readText();
    this.text.focus();
  }

  #described(sheet) {
    const number = sheet.rows.length;
    const least = this.file && !this.file.isWhole ? "more than " : "";
    const shown = [element("span", {}, `${least}${count(number)} ${number === 1 ? "molecule" : "molecules"}`)];
    if (sheet.kind !== "sdf" && sheet.kind !== "smi") {
      shown.push(this.#columnChoice(sheet, "molecule", "in"), this.#columnChoice(sheet, "name", "called by"));
    }
    const doubtful = sheet.rows.slice(0, 50).filter((row) => !isMolecule(row[sheet.molecule] ?? "")).length;
    if (doubtful && doubtful === Math.min(50, number)) {
      shown.push(element("span", { className: "bad" }, "these do not look like molecules"));
    }
    return shown;
  }

  #columnChoice(sheet, role, words) {
    const none = role === "name" ? [element("option", { value: "-1" }, "number")] : [];
    const options = sheet.columns.map((name, k) => element("option", { value: String(k) }, name || `column ${k + 1}`));
    const choice = element("select", {
      on: {
        change: () => {
          sheet[role] = Number(choice.value);
          this.onChange();
        },
      },
    });
    choice.append(...none, ...options);
    choice.value = String(sheet[role]);
    return element("label", {}, words, " ", choice);
  }

  #connectDrop() {
    const over = (isOver) => this.section.classList.toggle("over", isOver);
    addEventListener("dragover", (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      over(true);
    });
    addEventListener("dragleave", (event) => event.relatedTarget === null && over(false));
    addEventListener("drop", (event) => {
      over(false);
      const [file] = event.dataTransfer.files;
      if (!file) return;
      event.preventDefault();
      this.open(file);
    });
  }

  async #draw() {
    const lines = this.text.value.split("\n").filter((line) => line.trim());
    const only = !this.file && lines.length === 1 ? lines[0] : "";
    try {
      const { openEditor } = await import("./editor.js");
      const drawn = await openEditor({ smiles: only.split(/\s/, 1)[0] });
      if (!drawn) return;
      // The service reads the mol block: an editor's SMILES may have another stereochemistry.
      const read = drawn.molBlock ? { mol_block: [drawn.molBlock] } : { smiles: [drawn.smiles] };
      const { pictures } = await post("depict", { ...read, width: 20, height: 20 });
      const smiles = pictures[0].smiles;
      const name = only.split(/\s+(.*)/s)[1] ?? "";
      this.setText(only ? `${smiles} ${name}`.trim() : [...lines, smiles].join("\n"));
    } catch (error) {
      say(`The drawing could not be read: ${error.message}`);
    }
  }
}
