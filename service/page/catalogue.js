// The model and its tasks, as `GET /model` and `GET /tasks` describe them.
import { get } from "./api.js";

/** One label of a task: what the columns of the table and the panels show. */
class Label {
  constructor(task, name) {
    this.task = task;
    this.name = name;
    this.column = `${task.name}.${name}`;
    this.unit = task.units?.[name] ?? null;
    this.meaning = task.meaning?.labels?.[name] ?? {};
  }

  /** True if the answer is a probability. */
  get isProbability() {
    return this.task.target !== "regression";
  }

  /** What people call it. */
  get title() {
    return this.meaning.name ?? this.name;
  }
}

/** The model and its tasks. */
export class Catalogue {
  constructor(model, tasks) {
    this.model = model;
    this.tasks = tasks.filter((task) => task.level === "graph");
    this.labels = new Map();
    for (const task of this.tasks) {
      for (const name of task.labels) {
        const label = new Label(task, name);
        this.labels.set(label.column, label);
      }
    }
  }

  /** Return the labels of a task. */
  of(taskName) {
    return [...this.labels.values()].filter((label) => label.task.name === taskName);
  }
}

/** Ask the service for its default model. */
export async function loadCatalogue(options = {}) {
  const [model, { tasks }] = await Promise.all([get("model", options), get("tasks", options)]);
  return new Catalogue(model, tasks);
}
