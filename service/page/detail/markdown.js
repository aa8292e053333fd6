// Shows Markdown as elements: what model cards use of it. Nothing in a card can become HTML.
import { element } from "../elements.js";

const INLINE = /`(?<code>[^`]+)`|\*\*(?<strong>[^*]+)\*\*|\[(?<text>[^\]]*)\]\((?<address>[^)\s]*)\)/g;
const CELL = /(?:\\\||[^|])+/g;

/** Return the elements of a text; `top` is the level of its largest headings. */
export function rendered(markdown, top = 2) {
  const lines = markdown.replace(/\r\n?/g, "\n").split("\n");
  const made = [];
  let k = 0;
  while (k < lines.length) {
    const line = lines[k];
    const end = (test) => {
      let last = k;
      while (last < lines.length && test(lines[last])) last += 1;
      return last;
    };
    if (!line.trim()) {
      k += 1;
    } else if (line.startsWith("```")) {
      k += 1;
      const last = end((one) => !one.startsWith("```"));
      made.push(element("pre", { tabIndex: 0 }, element("code", {}, lines.slice(k, last).join("\n"))));
      k = last + 1;
    } else if (/^#{1,6} /.test(line)) {
      const marks = line.indexOf(" ");
      const level = Math.min(6, marks + top - 1);
      made.push(element(`h${level}`, {}, inline(line.slice(marks).trim())));
      k += 1;
    } else if (line.startsWith("|")) {
      const last = end((one) => one.startsWith("|"));
      made.push(table(lines.slice(k, last)));
      k = last;
    } else if (BULLET.test(line)) {
      const last = end((one) => BULLET.test(one) || /^\s+\S/.test(one));
      made.push(list(lines.slice(k, last)));
      k = last;
    } else {
      // At least this line: what begins no block is text.
      const last = Math.max(k + 1, end((one) => one.trim() && !/^(```|#{1,6} |\|)/.test(one) && !BULLET.test(one)));
      made.push(element("p", {}, inline(lines.slice(k, last).join(" "))));
      k = last;
    }
  }
  return made;
}

const BULLET = /^(?:[-*]|\d+\.) /;

function list(lines) {
  const items = [];
  for (const line of lines) {
    if (BULLET.test(line)) items.push(line.replace(BULLET, ""));
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  const tag = /^\d/.test(lines[0]) ? "ol" : "ul";
  return element(tag, {}, items.map((text) => element("li", {}, inline(text))));
}

function table(lines) {
  const rows = lines.map((line) => (line.slice(1).match(CELL) ?? []).map((cell) => cell.replaceAll("\\|", "|").trim()));
  const [head, ...rest] = rows;
  const body = rest.filter((row) => !row.every((cell) => /^:?-+:?$/.test(cell)));
  const row = (cells, tag, props) =>
    element("tr", {}, cells.map((cell) => element(tag, props, inline(cell))));
  const made = element(
    "table",
    {},
    element("thead", {}, row(head, "th", { scope: "col" })),
    element("tbody", {}, body.map((cells) => row(cells, "td", {}))),
  );
  const label = `Table: ${head.join(", ")}`;
  return element("div", { className: "scroll", tabIndex: 0, role: "region", aria: { label } }, made);
}

function inline(text) {
  const made = [];
  let begin = 0;
  for (const found of text.matchAll(INLINE)) {
    made.push(text.slice(begin, found.index));
    begin = found.index + found[0].length;
    const { code, strong, text: shown, address } = found.groups;
    if (code !== undefined) made.push(element("code", {}, code));
    else if (strong !== undefined) made.push(element("strong", {}, strong));
    else made.push(link(shown, address));
  }
  made.push(text.slice(begin));
  return made.filter((one) => one !== "");
}

/** Return a link to a web page; addresses of other kinds are shown as text. */
function link(text, address) {
  if (!/^https?:/.test(address)) return `${text} (${address})`;
  return element("a", { href: address, target: "_blank", rel: "noreferrer" }, text);
}
