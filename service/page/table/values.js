// Numbers of labels as people read them.

const DIRECTIONS = {
  good: { mark: "▲", text: "high is good" },
  bad: { mark: "▼", text: "high is bad" },
  neither: { mark: "", text: "high is neither good nor bad" },
};
const METRICS = {
  roc_auc: "ROC-AUC", auprc: "AUPRC", recall: "recall", mae: "mean absolute error",
  spearman: "Spearman", forces_mae: "MAE of forces",
};

/** Return the text of a label's number: a probability with two decimals, a value with three digits. */
export function valueText(label, value) {
  if (Number.isNaN(value)) return "";
  if (label.isProbability) return value.toFixed(2);
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

/** Return the mark and the text of whether a high answer is good. */
export function directionOf(label) {
  return DIRECTIONS[label.meaning.direction] ?? { mark: "", text: "" };
}

/** Return the main test score of a label with its interval, or "" where there is none. */
export function scoreText(label) {
  const score = label.meaning.scores?.[0];
  if (!score) return "";
  const [value, low, high] = [score.value, score.low, score.high].map((one) => short(one));
  return `${METRICS[score.metric] ?? score.metric} ${value} (${low} to ${high})`;
}

function short(value) {
  return Math.abs(value) >= 10 ? value.toFixed(0) : value.toFixed(2);
}

/** Return all that a label's heading says, in some lines. */
export function labelHint(label) {
  return [
    label.column,
    label.meaning.measured,
    label.meaning.one && `1 = ${label.meaning.one}`,
    directionOf(label).text,
    label.unit && `in ${label.unit}`,
    scoreText(label) && `test: ${scoreText(label)}`,
  ]
    .filter(Boolean)
    .join("\n");
}

/** Return a count with separators, such as 10,000. */
export function count(number) {
  return number.toLocaleString("en");
}
