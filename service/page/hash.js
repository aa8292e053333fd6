// The part of the address after "#": the view of the table, or one of the other pages.
//
// It is never sent to the service, so a link may carry molecules. `#label=...`, `#model`,
// `#report=...` and `#compare=...` are pages of their own (`detail/`); everything else is a view.
import { readAddress } from "./detail/addresses.js";

/** True if the address is that of another page than the table. */
export function isOtherPage() {
  return readAddress(location.hash) !== null;
}

/**
 * Return the view that the address says; null for another page.
 *
 * `labels`: columns of labels, or null for the usual ones; `molecules`: the text of the input;
 * `job`: id of a job; `sort`: `{ column, descending }`; `filters`: a list of `{ column, min, max }`;
 * `text`, `smarts`: what to search for; `pictures`: whether there are pictures.
 */
export function readView() {
  if (isOtherPage()) return null;
  const said = new URLSearchParams(location.hash.slice(1));
  const sort = said.get("sort");
  return {
    labels: said.has("labels") ? said.getAll("labels") : null,
    molecules: said.get("molecules") ?? "",
    job: said.get("job"),
    sort: sort && { column: sort.replace(/^-/, ""), descending: sort.startsWith("-") },
    filters: said.getAll("filter").map(readFilter).filter(Boolean),
    text: said.get("text") ?? "",
    smarts: said.get("smarts") ?? "",
    pictures: said.get("pictures") !== "no",
  };
}

function readFilter(text) {
  const found = /^([^~]*)~([^~]*)~(.+)$/s.exec(text);
  if (!found) return null;
  const [min, max] = found.slice(1, 3).map((end) => (end === "" ? null : Number(end)));
  if (Number.isNaN(min) || Number.isNaN(max)) return null;
  return { column: found[3], min, max };
}

/** Return the "#..." of a view, as `readView` reads it. */
export function hashOf({ labels, molecules, job, sort, filters, text, smarts, pictures }) {
  const said = new URLSearchParams();
  if (molecules) said.set("molecules", molecules);
  if (job) said.set("job", job);
  for (const label of labels ?? []) said.append("labels", label);
  if (sort) said.set("sort", `${sort.descending ? "-" : ""}${sort.column}`);
  for (const { column, min, max } of filters) said.append("filter", `${min ?? ""}~${max ?? ""}~${column}`);
  if (text) said.set("text", text);
  if (smarts) said.set("smarts", smarts);
  if (!pictures) said.set("pictures", "no");
  const written = said.toString();
  return written && `#${written}`;
}

/** Put a view into the address, without a step in the history. */
export function writeView(view) {
  if (isOtherPage()) return;
  const { pathname, search } = location;
  history.replaceState(null, "", `${pathname}${search}${hashOf(view)}`);
}
