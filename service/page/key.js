// The dialog for the API key. The key stays in memory: it is gone with the page.
import { useKey } from "./api.js";
import { byId, element } from "./elements.js";

/** Connect the button of the header; `onKey` is called when there is a new key. */
export function startKey(onKey) {
  byId("key").addEventListener("click", () => askForKey("").then((isGiven) => isGiven && onKey()));
}

/** Ask for a key, and return true if one was given. */
export function askForKey(reason) {
  const field = element("input", {
    type: "password", id: "key-field", autocomplete: "off", spellcheck: false, required: true,
  });
  const cancel = element("button", { type: "button", on: { click: () => dialog.close() } }, "Cancel");
  const form = element(
    "form",
    { method: "dialog", on: { submit: () => useKey(field.value) } },
    element("h2", { id: "key-title" }, "API key"),
    reason && element("p", { className: "bad" }, reason),
    element("label", { for: "key-field" }, "Key"),
    field,
    element("p", { className: "soft" }, "It stays in the memory of this page, and is gone when you close or reload it."),
    element("div", { className: "actions" }, cancel, element("button", { className: "primary", value: "use" }, "Use the key")),
  );
  const dialog = element("dialog", { className: "small", aria: { labelledby: "key-title" } }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "use");
    });
  });
}
