// Builds DOM elements. Text is always set as text, so that nothing from a file can become HTML.

/**
 * Create an element.
 *
 * `props` sets properties; `on` in it is an object of listeners by event, `aria`, `data` and
 * `style` objects of attributes and CSS properties; other names with a hyphen are attributes.
 */
export function element(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Create an element of an inline picture; all properties are attributes. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child != null));
  return made;
}

function fill(made, { on = {}, aria = {}, data = {}, style = {}, ...props }, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value == null) continue;
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  for (const [name, value] of Object.entries(style)) made.style.setProperty(name, value);
  for (const [name, listener] of Object.entries(on)) made.addEventListener(name, listener);
  Object.assign(made.dataset, data);
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

/** Return the element with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Say something in the line at the foot of the page; screen readers read it out. */
export function say(text) {
  byId("status").textContent = text;
}
