// What the service answers about a few molecules; asked for when it is needed, and kept.
import { post } from "../api.js";

const MOST_KEPT = 80;
const kept = new Map(); // from molecules and question to the promise of the answer

/** Questions about molecules, which stop together. */
export class Inquiry {
  #stop = new AbortController();
  #open = new Set();

  /** Args: `smiles` is one canonical SMILES or a list. */
  constructor(smiles) {
    this.smiles = [smiles].flat();
  }

  /**
   * Return `{ model, items }` for the fields of a `POST /predict`, such as `tasks` and `explain`.
   *
   * Raises: ServiceError; AbortError after `close`.
   */
  ask(question) {
    const name = JSON.stringify([this.smiles, question]);
    if (!kept.has(name)) {
      this.#open.add(name);
      const answered = this.#send(question);
      kept.set(name, answered);
      answered.catch(() => kept.delete(name)).finally(() => this.#open.delete(name));
      if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
    }
    return kept.get(name);
  }

  /** Return `{ model, item }` of the one molecule. */
  async askOne(question) {
    const { model, items } = await this.ask(question);
    const [item] = items;
    if (item.error) throw new Error(item.error.message);
    return { model, item };
  }

  async #send(question) {
    const body = { smiles: this.smiles, ...question };
    const { model, predictions } = await post("predict", body, { signal: this.#stop.signal });
    return { model, items: predictions };
  }

  /** Stop what is still being asked. */
  close() {
    for (const name of this.#open) kept.delete(name);
    this.#stop.abort();
  }
}

/** Return an explanation of an item. Raises: Error with the reason where there is none. */
export function explanationOf(item, name) {
  if (item[name] !== undefined) return item[name];
  throw new Error(item.explanation_errors?.[name]?.message ?? "the service has no answer to this");
}

/** Return the names of the labels' tasks, each once. */
export function tasksOf(labels) {
  return [...new Set(labels.map((label) => label.task.name))];
}

/** Return the answer of a label in an item. */
export function valueOf(item, label) {
  return item.tasks[label.task.name][label.name];
}

/** Return those explanations of `names` that the model offers for one of the labels' tasks. */
export function offered(names, labels) {
  return names.filter((name) => labels.some(({ task }) => task.explanations.includes(name)));
}
