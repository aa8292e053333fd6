// The results: search, filters, the table itself, and what can be done with its rows.
import { element, say } from "../elements.js";
import { columnsOf } from "./columns.js";
import { explainRows } from "./beside.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import { orderOf } from "./order.js";
import { count } from "./values.js";

const ROWS_OF_PAGE = 150_000; // more are higher than browsers let an element be
const MOST_COMPARED = 6;
const MOST_UPLOAD_COLUMNS = 3; // shown unasked
const TALL = 92;
const LOW = 30;
const narrow = matchMedia("(max-width: 40rem)");

/** The section of the results. */
export class Table {
  /**
   * Args:
   *   section: the element to fill.
   *   catalogue: the `Catalogue`.
   *   view: as of `readView`; changed here, and `onView` is called then.
   *   actions: `onOpen(row)`, `onCompare(rows)`, and `menus`, elements for the end of the toolbar.
   */
  constructor(section, { catalogue, view, onView, onOpen, onCompare, menus }) {
    Object.assign(this, { section, catalogue, view, onView, onOpen, onCompare });
    this.selected = new Set();
    this.explained = new Set();
    this.upload = null; // whether its columns are shown; null until there are any
    this.page = 0;
    this.results = null;
    this.labels = [];
    this.#build(menus);
    this.filters = new Filters(this.filterBar, this.ranges, { view, limits: catalogue.model.limits, onChange: () => this.#viewChanged(), onMatch: () => this.refresh() });
    narrow.addEventListener("change", () => this.#drawColumns());
    document.addEventListener("themechange", () => this.#drawColumns());
  }

  #build(menus) {
    const toggle = (id, text, act) =>
      element("button", { type: "button", className: "toggle", id, aria: { pressed: "false" }, on: { click: act } }, text);
    this.pictures = toggle("pictures", "Pictures", () => this.#togglePictures());
    this.uploadToggle = toggle("upload-columns", "", () => this.#toggleUpload());
    this.drugs = toggle("among-drugs", "Among drugs", () => this.#toggleExplained("drugs"));
    this.alerts = toggle("alerts", "Alerts", () => this.#toggleExplained("alerts"));
    const explains = new Set(this.catalogue.tasks.flatMap((task) => task.explanations ?? []));
    this.drugs.hidden = !explains.has("drugs");
    this.alerts.hidden = !explains.has("alerts");
    this.compare = element("button", { type: "button", id: "compare", hidden: true, on: { click: () => this.onCompare([...this.selected]) } });
    this.filterBar = element("div", { className: "filters" });
    this.ranges = element("div", { className: "ranges" });
    this.summary = element("span", { className: "summary", id: "summary" });
    this.pages = element("span", { className: "pages", hidden: true });
    this.scroller = element("div", { className: "scroller", tabIndex: -1, role: "region", aria: { label: "Table of predictions" } });
    this.nothing = element("p", { className: "nothing", hidden: true }, "No molecule passes the filters.");
    this.section.replaceChildren(
      element("h2", { className: "hidden" }, "Predictions"),
      element("div", { className: "row tools" }, this.filterBar, element("span", { className: "grow" }), this.compare, this.pictures, this.uploadToggle, this.drugs, this.alerts, ...menus),
      element("div", { className: "facts-line" }, this.summary, this.pages, this.ranges),
      this.scroller,
      this.nothing,
    );
    this.grid = new Grid(this.scroller, {
      caption: "Predictions, a row for every molecule",
      onSort: (column) => this.#sortBy(column),
      onOpen: (row) => this.onOpen(row),
      onSelect: (row) => this.#select(row),
      errorOf: (row) => this.#errorOf(row),
    });
    this.scroller.addEventListener("scroll", () => this.#explainSoon(), { passive: true });
  }

  /** Say what the service offers, as `features` returns it. */
  offer({ matches }) {
    this.filters.offerSubstructures(matches);
  }

  /** Show results, and labels of them. */
  show(results, labels) {
    const isOther = results !== this.results;
    Object.assign(this, { results, labels });
    if (isOther) {
      this.selected.clear();
      this.page = 0;
      this.upload = null;
      this.scroller.scrollTop = 0;
      this.filters.forgetMatches();
    }
    this.section.hidden = false;
    this.filters.show(results, labels);
    this.#drawColumns();
    this.refresh();
  }

  /** Show what has been answered since. */
  refresh() {
    if (!this.results) return;
    const { results, view } = this;
    this.order = orderOf(results, { ...view, matched: this.filters.matched });
    const lastPage = Math.max(0, Math.ceil(this.order.length / ROWS_OF_PAGE) - 1);
    this.page = Math.min(this.page, lastPage);
    const offset = this.page * ROWS_OF_PAGE;
    const rows = lastPage ? this.order.slice(offset, offset + ROWS_OF_PAGE) : this.order;
    this.grid.showRows(rows, { sort: view.sort, offset, total: this.order.length });
    this.#describe(lastPage);
    this.#explainSoon();
    this.filters.matchNew();
  }

  /** Give the focus to the row of the table that had it last. */
  focus() {
    this.grid.focus();
  }

  #describe(lastPage) {
    this.nothing.hidden = this.order.length > 0;
    const { answered, failed } = this.results.counts;
    const facts = [`${count(this.results.count)} ${this.results.count === 1 ? "molecule" : "molecules"}`];
    if (this.order.length !== this.results.count) facts.push(`${count(this.order.length)} shown`);
    if (failed) facts.push(`${count(failed)} could not be read`);
    const waiting = this.results.count - answered - failed;
    if (waiting) facts.push(`${count(waiting)} not predicted`);
    this.summary.textContent = facts.join(" · ");
    this.pages.hidden = !lastPage;
    if (!lastPage) return;
    const step = (by, text) =>
      element("button", { type: "button", className: "quiet", disabled: this.page + by < 0 || this.page + by > lastPage, on: { click: () => this.#turn(by) } }, text);
    this.pages.replaceChildren(step(-1, "Previous"), `page ${this.page + 1} of ${lastPage + 1}`, step(1, "Next"));
  }

  #turn(by) {
    this.page += by;
    this.scroller.scrollTop = 0;
    this.refresh();
  }

  #drawColumns() {
    const { results, labels } = this;
    if (!results) return;
    const others = results.columns.filter((_, k) => k !== results.molecule && k !== results.nameColumn);
    this.upload ??= others.length <= MOST_UPLOAD_COLUMNS && !narrow.matches;
    this.uploadToggle.hidden = !others.length;
    this.uploadToggle.textContent = `Your ${others.length === 1 ? "column" : `${others.length} columns`}`;
    const { pictures } = this.view;
    press(this.pictures, pictures);
    press(this.uploadToggle, this.upload);
    press(this.drugs, this.explained.has("drugs"));
    press(this.alerts, this.explained.has("alerts"));
    this.section.classList.toggle("tall", pictures);
    const columns = columnsOf(results, labels, {
      pictures,
      upload: this.upload,
      explained: this.explained,
      selected: this.selected,
      onSelect: (row) => this.#select(row),
      isNarrow: narrow.matches,
    });
    this.grid.showColumns(columns, pictures ? TALL : LOW);
    this.#describeSelection();
  }

  #togglePictures() {
    const place = this.scroller.scrollTop / (this.view.pictures ? TALL : LOW);
    this.view.pictures = !this.view.pictures;
    this.#drawColumns();
    this.scroller.scrollTop = place * (this.view.pictures ? TALL : LOW);
    this.onView();
  }

  #toggleUpload() {
    this.upload = !this.upload;
    this.#drawColumns();
  }

  #toggleExplained(name) {
    if (!this.explained.delete(name)) this.explained.add(name);
    this.#drawColumns();
    this.#explainSoon();
  }

  #explainSoon() {
    if (!this.explained.size) return;
    clearTimeout(this.explaining);
    this.explaining = setTimeout(() => this.#explain(), 150);
  }

  /** Ask for what is shown beside the numbers of some rows, and return true if any of it is new. */
  explain(rows) {
    const { limits } = this.catalogue.model;
    return explainRows(this.results, rows, this.labels, this.explained, { limits });
  }

  async #explain() {
    const rows = [...this.grid.drawn.keys()].map((place) => this.grid.rows[place]);
    try {
      if (await this.explain(rows)) this.grid.redraw();
    } catch (error) {
      say(error.message);
    }
  }

  #sortBy(column) {
    const { sort } = this.view;
    if (sort?.column !== column) this.view.sort = { column, descending: false };
    else this.view.sort = sort.descending ? null : { column, descending: true };
    this.#viewChanged();
    const { sort: now } = this.view;
    say(now ? `sorted, ${now.descending ? "the largest" : "the smallest"} first` : "in the order of the upload");
  }

  #viewChanged() {
    this.refresh();
    this.onView();
  }

  #select(row) {
    if (!this.selected.delete(row)) {
      if (this.selected.size === MOST_COMPARED) say(`At most ${MOST_COMPARED} molecules can be compared`);
      else this.selected.add(row);
    }
    this.grid.redraw();
    this.#describeSelection();
  }

  #describeSelection() {
    const number = this.selected.size;
    this.compare.hidden = number === 0;
    this.compare.disabled = number < 2;
    this.compare.textContent = number < 2 ? "Compare: choose another" : `Compare ${number}`;
  }

  #errorOf(row) {
    if (!this.results.hasFailed(row)) return null;
    return this.results.errors[row].message;
  }
}

function press(button, isPressed) {
  button.setAttribute("aria-pressed", String(isPressed));
}
