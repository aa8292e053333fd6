// The menus "Download" and "Copy" of the table.
import { hasKey } from "./api.js";
import { say } from "./elements.js";
import { menuOf } from "./menus.js";
import { resultOf } from "./run/jobs.js";
import { csvOf, curlOf, curlOfFile, ndjsonOf, save, sdfOf } from "./out.js";

const LONGEST_COMMAND = 1000; // molecules; more go as a file

/** Downloads and copies of what the page shows. */
export class Downloads {
  /** Args: `page` returns the page, whose results, labels, table and link are taken. */
  constructor(page) {
    this.page = page;
    this.download = menuOf("Download", [
      { id: "download-csv", text: "CSV", act: () => this.#save("csv") },
      { id: "download-ndjson", text: "NDJSON", act: () => this.#save("ndjson") },
      { id: "download-sdf", text: "SDF", act: () => this.#save("sdf") },
      { id: "download-shown", text: "CSV, only the rows shown", act: () => this.#save("csv", true) },
    ]);
    this.copy = menuOf("Copy", [
      { id: "copy-curl", text: "As curl", act: () => this.#copyCurl() },
      { id: "copy-link", text: "Link to this view", act: () => this.#copy(page().link, "The link") },
    ]);
    this.download.buttons["download-sdf"].hidden = true;
    this.menus = [this.copy.menu, this.download.menu];
  }

  /** Say what the service offers, as `features` returns it. */
  offer({ outputs }) {
    this.download.buttons["download-sdf"].hidden = !outputs.has("sdf");
  }

  #rows(onlyShown) {
    const { results, table } = this.page();
    return onlyShown ? table.order : Array.from({ length: results.count }, (_, row) => row);
  }

  async #save(kind, onlyShown = false) {
    const { results, labels, table } = this.page();
    const rows = this.#rows(onlyShown);
    const name = `predictions.${kind}`;
    try {
      if (kind === "ndjson") save(await this.#ndjson(rows), name);
      else if (kind === "sdf") {
        say("The service writes the SDF");
        save(await (await sdfOf(results, rows, labels)).blob(), name);
      } else {
        if (table.explained.size) {
          say("Asking for percentiles and alerts");
          await table.explain(rows);
        }
        save(csvOf(results, rows, labels, table.explained), name);
      }
      say(`${name} is saved`);
    } catch (error) {
      say(error.message);
    }
  }

  async #ndjson(rows) {
    const { results, labels, view } = this.page();
    if (!results.isWhole && view.job) return (await resultOf(view.job)).blob();
    return ndjsonOf(results, rows, labels);
  }

  #copyCurl() {
    const { results, labels, composer } = this.page();
    const rows = this.#rows(false);
    const command = rows.length > LONGEST_COMMAND
      ? curlOfFile(composer.file?.file.name ?? "molecules.csv", labels, hasKey())
      : curlOf(results, rows, labels, hasKey());
    this.#copy(command, "The command");
  }

  async #copy(text, what) {
    try {
      await navigator.clipboard.writeText(text);
      say(`${what} is copied`);
    } catch {
      say(`${what} could not be copied: the browser does not let the page write to the clipboard`);
    }
  }
}
