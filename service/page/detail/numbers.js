// How numbers are written.

/** Write a number with three significant digits and a true minus sign. */
export function written(number) {
  const size = Math.abs(number);
  const plain = size === 0 || (size >= 1e-3 && size < 1e5);
  const text = plain ? String(Number(number.toPrecision(3))) : number.toExponential(1);
  return text.replace("-", "−");
}

/** Write a number with a number of decimals. */
export function fixed(number, decimals = 3) {
  const text = number.toFixed(decimals);
  return /^-0\.?0*$/.test(text) ? text.slice(1) : text.replace("-", "−");
}

/** Write a number with its sign, also where that is a plus. */
export function signed(number, decimals = 3) {
  const text = fixed(number, decimals);
  return number > 0 && !text.startsWith("−") ? `+${text}` : text;
}

/** Write the answer of a label: a probability with three decimals, another number as it is. */
export function answer(label, value) {
  return label.isProbability ? fixed(value) : written(value);
}

/** Return the probability that belongs to log-odds. */
export function probability(logOdds) {
  return 1 / (1 + Math.exp(-logOdds));
}

/** Write a share as per cent. */
export function percent(share, decimals = 0) {
  return `${fixed(100 * share, decimals)} %`;
}

/** Begin a text with a capital letter, but leave names such as `hERG`. */
export function sentence(text) {
  return /^[a-z][A-Z]/.test(text) ? text : text.slice(0, 1).toUpperCase() + text.slice(1);
}

/** Write how many there are of something. */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
