// The page: connects its parts.
import { get, hasKey } from "./api.js";
import { loadCatalogue } from "./catalogue.js";
import { chooseLabels, usualLabels } from "./choice.js";
import { Composer } from "./composer.js";
import { closeMolecule, openMolecule } from "./detail/panel.js";
import { startViews } from "./detail/views.js";
import { byId, element, say } from "./elements.js";
import { features } from "./features.js";
import { hashOf, isOtherPage, readView, writeView } from "./hash.js";
import { askForKey, startKey } from "./key.js";
import { Downloads } from "./downloads.js";
import { Progress } from "./run/progress.js";
import { Runner } from "./run/runner.js";
import { count } from "./table/values.js";
import { Table } from "./table/table.js";
import { startTheme } from "./theme.js";

const LONGEST_IN_ADDRESS = 4000; // characters of molecules

class Page {
  constructor(catalogue) {
    this.catalogue = catalogue;
    this.view = readView() ?? { labels: null, molecules: "", job: null, sort: null, filters: [], text: "", smarts: "", pictures: true };
    this.labels = this.#labelsOf(this.view);
    this.properties = element("button", { type: "button", id: "properties", on: { click: () => this.#choose() } });
    this.composer = new Composer(byId("composer"), {
      onPredict: () => this.predict(),
      onChange: () => {},
      controls: [this.properties],
    });
    this.downloads = new Downloads(() => this);
    this.table = new Table(byId("molecules"), {
      catalogue,
      view: this.view,
      onView: () => this.#remember(),
      onOpen: (row) => this.#open(row),
      onCompare: (rows) => this.#compare(rows),
      menus: this.downloads.menus,
    });
    this.runner = new Runner({
      limits: catalogue.model.limits,
      progress: new Progress(byId("run"), () => this.runner.cancel()),
      onResults: (results, labels) => this.#show(results, labels),
      onRefresh: () => this.table.refresh(),
      onJob: (id) => this.#setJob(id),
      say,
    });
    this.#sayProperties();
  }

  #labelsOf({ labels }) {
    if (labels === null) return usualLabels(this.catalogue);
    const known = labels.map((column) => this.catalogue.labels.get(column)).filter(Boolean);
    return known.length ? known : usualLabels(this.catalogue);
  }

  /** Do what the address says. */
  async open() {
    const { molecules, job } = this.view;
    if (molecules) this.composer.setText(molecules);
    if (job) await this.#guarded(() => this.runner.resume(job, this.labels));
    else if (molecules) await this.predict();
  }

  /** Predict what is in the input. */
  async predict() {
    const sheet = this.composer.current;
    if (!sheet?.rows.length || !this.labels.length) return;
    const { written } = this.composer;
    this.view.molecules = written.length <= LONGEST_IN_ADDRESS ? written : "";
    this.view.job = null;
    this.#remember();
    say("");
    this.composer.shrink();
    await this.#guarded(() => this.runner.start({ sheet, file: this.composer.file }, this.labels));
  }

  /** Do something that needs a key where the service has keys. */
  async #guarded(act) {
    try {
      await act();
    } catch (error) {
      if (error.status !== 401) throw error;
      if (await askForKey(error.message)) await this.#guarded(act);
    }
  }

  #show(results, labels) {
    this.results = results;
    document.body.classList.add("with-results");
    this.table.show(results, labels);
    if (!this.isOffered) this.#offer();
    const { failed } = results.counts;
    if (failed) say(`${count(failed)} could not be read`);
  }

  async #offer() {
    this.isOffered = true;
    try {
      const offered = await features();
      this.table.offer(offered);
      this.downloads.offer(offered);
    } catch (error) {
      say(error.message);
    }
  }

  async #choose() {
    const chosen = await chooseLabels(this.catalogue, this.labels);
    if (!chosen?.length) return;
    this.labels = chosen;
    const usual = new Set(usualLabels(this.catalogue));
    const isUsual = chosen.length === usual.size && chosen.every((label) => usual.has(label));
    this.view.labels = isUsual ? null : chosen.map(({ column }) => column);
    this.#sayProperties();
    this.#remember();
    if (!this.results) return;
    this.table.show(this.results, chosen);
    if (!this.runner.isRunning) await this.#guarded(() => this.runner.fill(this.results, chosen));
  }

  #sayProperties() {
    const all = this.catalogue.labels.size;
    this.properties.textContent = `${count(this.labels.length)} of ${count(all)} properties`;
  }

  #setJob(id) {
    if (id === null) this.view.job = null;
    else [this.view.job, this.view.molecules] = [id, ""];
    this.#remember();
  }

  #remember() {
    writeView(this.view);
  }

  /** The address of this view. */
  get link() {
    return `${location.origin}${location.pathname}${hashOf(this.view)}`;
  }

  #open(row) {
    const { results, labels } = this;
    if (!results.isAnswered(row)) {
      say(results.errors[row]?.message ?? "This molecule is not predicted yet");
      return;
    }
    const molecule = {
      smiles: results.smiles[row],
      text: results.texts[row],
      name: results.nameOf(row),
      cells: results.cellsOf(row),
    };
    openMolecule(molecule, labels, this.catalogue);
  }

  async #compare(rows) {
    const molecules = rows.filter((row) => this.results.isAnswered(row)).map((row) => ({
      smiles: this.results.smiles[row],
      text: this.results.texts[row],
      name: this.results.nameOf(row),
      cells: this.results.cellsOf(row),
    }));
    try {
      const { openCompare } = await import("./detail/compare.js");
      openCompare(molecules, this.labels, this.catalogue);
    } catch (error) {
      say(error.message);
    }
  }

  /** Escape closes the panel, and the table has the focus again. */
  connectKeys() {
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || byId("panel").hidden || document.querySelector("dialog[open]")) return;
      closeMolecule();
      if (!byId("molecules").hidden) this.table.focus();
    });
  }
}

async function catalogueWithKey() {
  try {
    return await loadCatalogue();
  } catch (error) {
    if (error.status !== 401) throw error;
    if (!(await askForKey(hasKey() ? error.message : "This service asks for a key."))) throw error;
    return catalogueWithKey();
  }
}

/** Show the link to the documentation where the service has it. */
async function showGuide() {
  const { links } = await get("./", { headers: { Accept: "application/json" } });
  byId("guide").hidden = !("documentation" in links);
}

async function start() {
  startTheme();
  const catalogue = await catalogueWithKey();
  const chip = byId("model");
  chip.textContent = `${catalogue.model.name} ${catalogue.model.version}`;
  chip.hidden = false;
  showGuide().catch((error) => say(error.message));
  const page = new Page(catalogue);
  startKey(() => say("The key is in use."));
  page.connectKeys();
  startViews(catalogue);
  addEventListener("hashchange", () => {
    // Another view, typed or followed: what is there belongs to the old one.
    if (!isOtherPage() && location.hash !== hashOf(page.view)) location.reload();
  });
  await page.open();
}

start().catch((error) => say(error.message));
