// Pages beside the table: of a label, of the model, a report, a comparison. The hash says which.
import { element } from "../elements.js";
import { readAddress } from "./addresses.js";
import { failure } from "./section.js";

// Loaded when they are opened.
const PAGES = {
  label: async () => (await import("./label.js")).labelPage,
  model: async () => (await import("./model.js")).modelPage,
  report: async () => (await import("./report.js")).reportPage,
  compare: async () => (await import("./compare.js")).comparePage,
};
const TITLE = document.title;
const view = element("article", { className: "view", id: "view", hidden: true });
let behind = null; // what had the focus, and how far the page was scrolled, before a view was shown
let close = () => {};
let turn = 0; // counts changes of the address
let home = ""; // the hash of the table's state, to which a view leads back

/** Show the view that the hash names, now and whenever it changes. */
export function startViews(catalogue) {
  document.querySelector("main").append(view);
  const show = (from) => {
    if (!readAddress(from)) home = from;
    turn += 1;
    const found = readAddress(location.hash);
    if (found) openView(found, catalogue);
    else if (!view.hidden) closeView();
  };
  addEventListener("hashchange", (event) => show(new URL(event.oldURL).hash));
  show("");
}

async function openView({ view: name, fields }, catalogue) {
  close();
  behind ??= { focused: document.activeElement, top: scrollY };
  const mine = turn;
  const page = await PAGES[name]().catch((error) => () => unloaded(error, name));
  if (mine !== turn) return; // another view was opened since
  const { title, parts, tools = [], stop = () => {} } = page(fields, catalogue);
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

function unloaded(error, name) {
  return { title: name, parts: failure(error, { renew: () => location.reload() }) };
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
