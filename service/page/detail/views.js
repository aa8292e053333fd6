// Pages beside the table: of a label, of the model, a report, a comparison. The hash says which.
import { element } from "../elements.js";
import { readAddress } from "./addresses.js";
import { comparePage } from "./compare.js";
import { labelPage } from "./label.js";
import { modelPage } from "./model.js";
import { reportPage } from "./report.js";

const PAGES = { label: labelPage, model: modelPage, report: reportPage, compare: comparePage };
const TITLE = document.title;
const view = element("article", { className: "view", id: "view", hidden: true });
let behind = null; // what had the focus, and how far the page was scrolled, before a view was shown
let close = () => {};
let home = ""; // the hash of the table's state, to which a view leads back

/** Show the view that the hash names, now and whenever it changes. */
export function startViews(catalogue) {
  document.querySelector("main").append(view);
  const show = (from) => {
    if (!readAddress(from)) home = from;
    const found = readAddress(location.hash);
    if (found) openView(found, catalogue);
    else if (!view.hidden) closeView();
  };
  addEventListener("hashchange", (event) => show(new URL(event.oldURL).hash));
  show("");
}

function openView({ view: name, fields }, catalogue) {
  close();
  behind ??= { focused: document.activeElement, top: scrollY };
  const { title, parts, tools = [], stop = () => {} } = PAGES[name](fields, catalogue);
  close = stop;
  const back = element("a", { href: home || "#" }, "← All molecules");
  const heading = element("h1", { tabIndex: -1 }, title);
  view.dataset.view = name;
  view.replaceChildren(element("div", { className: "view-bar" }, back, ...tools), heading, ...parts);
  view.hidden = false;
  view.parentElement.classList.add("with-view");
  document.title = `${title} · ${TITLE}`;
  scrollTo(0, 0);
  heading.focus({ preventScroll: true });
}

function closeView() {
  close();
  close = () => {};
  view.hidden = true;
  view.replaceChildren();
  view.parentElement.classList.remove("with-view");
  document.title = TITLE;
  const { focused, top } = behind;
  behind = null;
  scrollTo(0, top);
  if (focused?.isConnected) focused.focus({ preventScroll: true });
}
