// Small charts of plain elements. The number stands beside each as text, so that they are silent.
import { element } from "../elements.js";

/** A bar to the right of the middle for a positive number, to the left for a negative one. */
export function bar(value, largest) {
  const share = largest ? Math.min(1, Math.abs(value) / largest) : 0;
  const fill = element("span", {
    className: value < 0 ? "diverging-fill down" : "diverging-fill up",
    style: { "--share": share },
  });
  return element("span", { className: "diverging", aria: { hidden: "true" } }, fill);
}

/** A mark on a line from 0 to 1. */
export function strip(share) {
  const mark = element("span", { className: "strip-mark", style: { "--share": share } });
  return element("span", { className: "strip", aria: { hidden: "true" } }, mark);
}

/** A value with its interval on a line between two ends. */
export function interval({ value, low, high }, [begin, end]) {
  const place = (number) => Math.min(1, Math.max(0, (number - begin) / (end - begin)));
  const range = element("span", {
    className: "interval-range",
    style: { "--from": place(low), "--to": place(high) },
  });
  const mark = element("span", { className: "strip-mark", style: { "--share": place(value) } });
  return element("span", { className: "strip", aria: { hidden: "true" } }, range, mark);
}

/** A filled share of a line. */
export function level(share, kind = "") {
  const fill = element("span", { className: `level-fill ${kind}`, style: { "--share": share } });
  return element("span", { className: "level", aria: { hidden: "true" } }, fill);
}
