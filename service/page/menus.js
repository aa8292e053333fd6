// Buttons that open a short list of actions.
import { element } from "./elements.js";

/**
 * Create a menu.
 *
 * Args: `actions` is a list of `{ text, act, id }`. The result has `menu`, the element, and
 * `buttons`, those of the actions by id.
 */
export function menuOf(title, actions) {
  const buttons = {};
  const menu = element("details", { className: "menu" }, element("summary", { className: "button" }, title));
  const list = actions.map(({ id, text, act }) => {
    buttons[id] = element("button", { type: "button", id, on: { click: () => close(menu, act) } }, text);
    return buttons[id];
  });
  menu.append(element("div", { className: "list" }, ...list));
  document.addEventListener("click", (event) => {
    if (!menu.contains(event.target)) menu.open = false;
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    event.stopPropagation();
    menu.open = false;
    menu.firstChild.focus();
  });
  return { menu, buttons };
}

function close(menu, act) {
  menu.open = false;
  act();
}
