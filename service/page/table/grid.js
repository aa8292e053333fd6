// A table that draws the rows in sight only, as a grid for the keyboard and for screen readers.
import { element } from "../elements.js";

const SPARE_ROWS = 6;
const REST = 90; // ms without scrolling, after which pictures are asked for

/**
 * A table of many rows.
 *
 * Columns are objects `{ id, width, head(cell), body(cell, row), rest(cell, row) }`: `head` and
 * `body` fill a cell, `rest`, which may be left out, adds what is slow once scrolling rests. `sort`
 * in one makes its heading a button. The first column stays in sight.
 */
export class Grid {
  /**
   * Args:
   *   scroller: the element that scrolls.
   *   options: `caption`; `onSort(id)`; `onOpen(row)`, for Enter and clicks; `onSelect(row)`, for
   *     the space bar; `errorOf(row)`, text that takes the place of a row's `isAnswer` cells, or
   *     null.
   */
  constructor(scroller, { caption, onSort, onOpen, onSelect, errorOf }) {
    Object.assign(this, { scroller, onSort, onOpen, onSelect, errorOf });
    this.columns = [];
    this.rows = [];
    this.drawn = new Map(); // from a place to its row of the table
    this.active = { place: 0, column: 0 };
    this.rowHeight = 28;
    this.offset = 0;
    this.sort = null;
    this.columnGroup = element("colgroup");
    this.head = element("thead");
    this.body = element("tbody");
    this.above = spacer();
    this.below = spacer();
    this.table = element(
      "table",
      { role: "grid", className: "grid" },
      element("caption", { className: "hidden" }, caption),
      this.columnGroup,
      this.head,
      this.body,
    );
    scroller.replaceChildren(this.table);
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.table.addEventListener("keydown", (event) => this.#key(event));
    this.table.addEventListener("click", (event) => this.#clicked(event));
    this.table.addEventListener("focusin", (event) => this.#focused(event));
    new ResizeObserver(() => this.draw()).observe(scroller);
  }

  /** Show columns; widths are in pixels. */
  showColumns(columns, rowHeight) {
    this.columns = columns;
    this.rowHeight = rowHeight;
    this.columnGroup.replaceChildren(
      ...columns.map(({ width }) => element("col", { style: { width: `${width}px` } })),
    );
    const total = columns.reduce((sum, { width }) => sum + width, 0);
    this.table.style.setProperty("width", `${total}px`);
    this.table.style.setProperty("--row", `${rowHeight}px`);
    this.table.setAttribute("aria-colcount", columns.length);
    this.#drawHead();
    this.redraw();
  }

  /**
   * Show rows, in order.
   *
   * Args:
   *   rows: what `body` of the columns gets.
   *   options: `sort`, `{ column, descending }` or null; `offset`, the place of the first one among
   *     `total`, where a page shows some of them.
   */
  showRows(rows, { sort, offset = 0, total = rows.length }) {
    Object.assign(this, { rows, sort, offset });
    this.active.place = Math.min(this.active.place, Math.max(0, rows.length - 1));
    this.table.setAttribute("aria-rowcount", total + 1);
    this.#drawHead();
    this.redraw();
  }

  /** Draw all cells in sight again. */
  redraw() {
    const hadFocus = this.#hasFocus();
    this.drawn.clear();
    this.body.replaceChildren(this.above, this.below);
    this.draw();
    if (hadFocus) this.focus();
  }

  /** Draw the rows that came into sight. */
  draw() {
    const height = this.scroller.clientHeight || 600;
    const top = Math.max(0, this.scroller.scrollTop - this.head.offsetHeight);
    const first = Math.max(0, Math.floor(top / this.rowHeight) - SPARE_ROWS);
    const last = Math.min(this.rows.length, Math.ceil((top + height) / this.rowHeight) + SPARE_ROWS);
    const lostFocus = this.#hasFocus() && !this.#isHeadActive();
    for (const [place, line] of this.drawn) {
      if (place >= first && place < last) continue;
      line.remove();
      this.drawn.delete(place);
    }
    for (let place = first; place < last; place += 1) {
      if (!this.drawn.has(place)) this.#insert(place, this.#line(place));
    }
    setHeight(this.above, first * this.rowHeight);
    setHeight(this.below, (this.rows.length - last) * this.rowHeight);
    if (lostFocus && !this.#hasFocus()) this.scroller.focus({ preventScroll: true });
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.#rest(), REST);
  }

  /** Give the focus to the active cell, and scroll to it. */
  focus() {
    this.#scrollTo(this.active);
    this.draw();
    this.#mark();
    const cell = this.#cellOf(this.active);
    (cell?.querySelector("[data-focus]") ?? cell)?.focus({ preventScroll: true });
  }

  #hasFocus() {
    return this.table.contains(document.activeElement);
  }

  #isHeadActive() {
    return this.active.place < 0;
  }

  #insert(place, line) {
    let next = place + 1;
    while (next < place + 80 && !this.drawn.has(next)) next += 1;
    this.body.insertBefore(line, this.drawn.get(next) ?? this.below);
    this.drawn.set(place, line);
  }

  #drawHead() {
    const hadFocus = this.head.contains(document.activeElement);
    const cells = this.columns.map((column, k) => {
      const cell = element("th", { scope: "col", className: column.className ?? "" });
      cell.setAttribute("aria-colindex", k + 1);
      if (column.sort) cell.setAttribute("aria-sort", this.#sortOf(column));
      column.head(cell, { isSorted: this.sort?.column === column.id, sort: this.sort });
      return cell;
    });
    const line = element("tr", { aria: { rowindex: 1 } }, ...cells);
    this.head.replaceChildren(line);
    this.#mark();
    if (hadFocus) this.focus();
  }

  #sortOf({ id }) {
    if (this.sort?.column !== id) return "none";
    return this.sort.descending ? "descending" : "ascending";
  }

  #line(place) {
    const row = this.rows[place];
    const error = this.errorOf(row);
    const line = element("tr", { aria: { rowindex: this.offset + place + 2 }, data: { place } });
    let taken = null;
    this.columns.forEach((column, k) => {
      if (error !== null && column.isAnswer) {
        if (taken) taken.colSpan += 1;
        else taken = line.appendChild(this.#errorCell(error, k));
        return;
      }
      const cell = element(k === 0 ? "th" : "td", { className: column.className ?? "" });
      if (k === 0) cell.scope = "row";
      cell.tabIndex = -1;
      cell.setAttribute("aria-colindex", k + 1);
      column.body(cell, row);
      line.append(cell);
    });
    if (place === this.active.place) this.#markLine(line);
    return line;
  }

  #errorCell(error, k) {
    const text = element("span", { className: "error" }, error);
    return element("td", { className: "failed", tabIndex: -1, aria: { colindex: k + 1 } }, text);
  }

  #rest() {
    for (const [place, line] of this.drawn) {
      for (const [k, column] of this.columns.entries()) {
        if (column.rest && line.cells[k]) column.rest(line.cells[k], this.rows[place]);
      }
    }
  }

  #scrolled() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  #cellOf({ place, column }) {
    const line = place < 0 ? this.head.rows[0] : this.drawn.get(place);
    if (!line) return null;
    return [...line.cells].findLast((cell) => Number(cell.getAttribute("aria-colindex")) <= column + 1);
  }

  /** Only the active cell can be reached by Tab. */
  #mark() {
    for (const marked of this.table.querySelectorAll("[tabindex='0']")) marked.tabIndex = -1;
    const line = this.#isHeadActive() ? this.head.rows[0] : this.drawn.get(this.active.place);
    if (line) this.#markLine(line);
  }

  #markLine(line) {
    const cells = [...line.cells];
    const at = cells.findLast((cell) => Number(cell.getAttribute("aria-colindex")) <= this.active.column + 1);
    const controls = at?.querySelectorAll("button, a, input") ?? [];
    if (at?.querySelector("[data-focus]") === null || at?.querySelector("[data-focus]") === undefined) {
      if (at) at.tabIndex = 0;
    }
    for (const control of controls) control.tabIndex = 0;
  }

  #focused(event) {
    const cell = event.target.closest("td, th");
    if (!cell) return;
    const line = cell.parentElement;
    const place = line.parentElement === this.head ? -1 : Number(line.dataset.place);
    const column = Number(cell.getAttribute("aria-colindex")) - 1;
    if (place === this.active.place && column === this.active.column) return;
    this.active = { place, column };
    this.#mark();
  }

  #clicked(event) {
    const sort = event.target.closest("[data-sort]");
    if (sort) this.onSort(sort.dataset.sort);
    else if (!event.target.closest("a, button, input, label")) {
      const line = event.target.closest("tbody tr[data-place]");
      if (line && getSelection().isCollapsed) this.onOpen(this.rows[line.dataset.place]);
    }
  }

  #key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { place, column } = this.active;
    const step = Math.max(1, Math.floor(this.scroller.clientHeight / this.rowHeight) - 2);
    const moves = {
      ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
      PageUp: [-step, 0], PageDown: [step, 0], Home: [0, -column],
      End: [0, this.columns.length],
    };
    const isControl = event.target.matches("a, button, input");
    if (event.key in moves) {
      const [down, right] = moves[event.key];
      const last = this.rows.length - 1;
      const lowest = event.key === "ArrowUp" || place < 0 ? -1 : 0;
      this.active = {
        place: down ? Math.max(lowest, Math.min(last, place + down)) : place,
        column: Math.max(0, Math.min(this.columns.length - 1, column + right)),
      };
      this.focus();
    } else if (place >= 0 && event.key === "Enter" && !isControl) {
      this.onOpen(this.rows[place]);
    } else if (place >= 0 && event.key === " " && !isControl) {
      this.onSelect(this.rows[place]);
    } else return;
    event.preventDefault();
  }

  #scrollTo({ place, column }) {
    const { scroller } = this;
    const head = this.head.offsetHeight;
    if (place >= 0) {
      const top = place * this.rowHeight;
      const sight = scroller.clientHeight - head - this.rowHeight;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      else if (top > scroller.scrollTop + sight) scroller.scrollTop = top - sight;
    }
    const widths = this.columns.map(({ width }) => width);
    if (column === 0) return;
    const left = widths.slice(0, column).reduce((sum, width) => sum + width, 0);
    const right = left + widths[column];
    if (left - widths[0] < scroller.scrollLeft) scroller.scrollLeft = left - widths[0];
    else if (right > scroller.scrollLeft + scroller.clientWidth) {
      scroller.scrollLeft = right - scroller.clientWidth;
    }
  }
}

function spacer() {
  return element("tr", { className: "spacer", "aria-hidden": "true" }, element("td"));
}

function setHeight(line, height) {
  line.hidden = height <= 0;
  line.firstChild.style.setProperty("height", `${Math.max(0, height)}px`);
}
