// A part of the panel that asks the service when it is opened.
import { element } from "../elements.js";

/**
 * Return a `<details>` whose body is made when it is opened.
 *
 * Args: `title` for people; `name` of the section; `make` returns, as a promise, the elements.
 * The element has a method `renew`, which makes the body anew: now if it is open, or later.
 */
export function section(title, name, make) {
  const body = element("div", { className: "section-body" });
  const made = element(
    "details",
    { className: "section", data: { section: name } },
    element("summary", {}, element("h3", {}, title)),
    body,
  );
  let turn = 0;
  let fresh = false;
  const fill = async () => {
    if (!made.open || fresh) return;
    fresh = true;
    const mine = ++turn;
    body.setAttribute("aria-busy", "true");
    if (!body.hasChildNodes()) body.append(note("Asking the service …"));
    const parts = await make().catch((error) => failure(error, made));
    if (mine !== turn || parts === null) return;
    body.removeAttribute("aria-busy");
    body.replaceChildren(...parts);
  };
  made.addEventListener("toggle", fill);
  made.renew = () => {
    fresh = false;
    turn += 1;
    if (!made.open) body.replaceChildren();
    return fill();
  };
  return made;
}

/** What to show in place of something that could not be had; null if nobody waits for it. */
export function failure(error, made) {
  if (error.name === "AbortError") return null;
  if (error.status === 422) return [note(`The model does not offer this: ${error.message}.`)];
  const again = element("button", { type: "button", on: { click: () => made.renew() } }, "Try again");
  return [note(`That did not work: ${error.message}.`, "bad"), again];
}

/** A paragraph in small letters. */
export function note(text, kind = "") {
  return element("p", { className: `note ${kind}`.trim() }, text);
}
