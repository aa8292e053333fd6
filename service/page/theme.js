// Light or dark: what the system says, until the button says otherwise.
import { byId } from "./elements.js";

const system = matchMedia("(prefers-color-scheme: dark)");
const NAMES = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };
const ORDER = Object.keys(NAMES);
let chosen = "auto";

/** True if the page is dark now. */
export function isDark() {
  return chosen === "auto" ? system.matches : chosen === "dark";
}

/** Connect the button, and dispatch `themechange` on the document when the theme changes. */
export function startTheme() {
  const button = byId("theme");
  const show = () => {
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
    button.textContent = { auto: "◐", light: "☀", dark: "☾" }[chosen];
    button.title = NAMES[chosen];
    button.setAttribute("aria-label", NAMES[chosen]);
    document.dispatchEvent(new CustomEvent("themechange"));
  };
  button.addEventListener("click", () => {
    chosen = ORDER[(ORDER.indexOf(chosen) + 1) % ORDER.length];
    show();
  });
  system.addEventListener("change", show);
  show();
}
