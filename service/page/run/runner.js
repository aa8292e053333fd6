// Runs a prediction from the input to the results: in chunks, or as a file.
import { ServiceError } from "../api.js";
import { fileOf } from "../out.js";
import { predictRows } from "./chunks.js";
import { count } from "../table/values.js";
import { Answers, MOST_ROWS, deleteJob, follow, resultOf, sendFile } from "./jobs.js";
import { Results } from "./results.js";

const MOST_IN_CHUNKS = 1000; // rows; more are a job, which outlives the page
const REFRESH = 200;

/** One run at a time, whose state the page shows. */
export class Runner {
  /**
   * Args: `limits` of the service; `progress`, a `Progress`; `onResults(results, labels)`, called
   * when there are other results; `onRefresh()`, when more of them are answered; `onJob(id)`, when the run became a job,
   * null when it is over; `say(text)`.
   */
  constructor({ limits, progress, onResults, onRefresh, onJob, say }) {
    Object.assign(this, { limits, progress, onResults, onRefresh, onJob, say });
    this.stop = null;
    this.job = null;
  }

  /** True while a run is under way. */
  get isRunning() {
    return this.stop !== null;
  }

  /** Stop the run; a job is forgotten. */
  cancel() {
    this.stop?.abort();
  }

  /** Predict an input of the `Composer`. */
  async start({ sheet, file }, labels) {
    const isFile = sheet.rows.length > MOST_IN_CHUNKS || (file && !file.isWhole);
    if (isFile) {
      await this.#run(null, (signal) => this.#predictFile(uploadOf(sheet, file), labels, signal));
      return;
    }
    const results = Results.of(sheet);
    this.onResults(results, labels);
    await this.fill(results, labels);
  }

  /** Predict what is missing of some labels. */
  async fill(results, labels) {
    const rows = results.missing(labels);
    if (!rows.length) return;
    if (rows.length > MOST_IN_CHUNKS) {
      const all = Array.from({ length: results.count }, (_, row) => row);
      const upload = { ...fileOf(results, all), format: "csv" };
      await this.#run(null, (signal) => this.#predictFile(upload, labels, signal));
      return;
    }
    await this.#run(rows.length, async (signal) => {
      let done = 0;
      const onAnswered = (number) => {
        done += number;
        this.progress.update(done);
        this.#refreshSoon();
      };
      const onWait = (seconds) => this.#waiting(seconds);
      const wanted = labels.filter((label) => rows.some((row) => Number.isNaN(results.valueOf(row, label.column))));
      const { limits } = this;
      await predictRows(results, rows, wanted, { limits, signal, onAnswered, onWait });
    });
  }

  /** Go on with a job that was started before the page was loaded. */
  async resume(id, labels) {
    await this.#run(null, (signal) => this.#followJob(id, labels, signal));
  }

  async #run(total, act) {
    this.cancel();
    const stop = (this.stop = new AbortController());
    this.progress.begin(total);
    document.body.classList.add("running");
    try {
      await act(stop.signal);
    } catch (error) {
      await this.#ended(error);
    } finally {
      if (this.stop === stop) {
        this.stop = null;
        this.progress.end();
        document.body.classList.remove("running");
      }
      this.onRefresh();
    }
  }

  async #ended(error) {
    const { job } = this;
    const isCancelled = error.name === "AbortError";
    // A job that cannot be asked for just now goes on, and a reloaded page finds it again.
    const isOver = isCancelled || error.status === 404 || !(error instanceof ServiceError);
    if (job && isOver) this.#setJob(null);
    if (!isCancelled) {
      this.say(error.message);
      if (error.status === 401) throw error;
      return;
    }
    this.say(job ? "Cancelled; the job is forgotten." : "Cancelled; what was answered stays.");
    if (job) await deleteJob(job).catch((problem) => this.say(problem.message));
  }

  #waiting(seconds) {
    this.progress.note(`The service is busy; going on in ${Math.ceil(seconds)} s`);
  }

  #setJob(id) {
    this.job = id;
    this.onJob(id);
  }

  async #predictFile({ file, format, column }, labels, signal) {
    this.progress.note(`Sending ${file.name}`);
    const onWait = (seconds) => this.#waiting(seconds);
    const { job, response } = await sendFile(file, { format, column, labels, signal, onWait });
    if (job) {
      await this.#followJob(job.id, labels, signal);
      return;
    }
    const used = response.headers.get("X-Smiles-Column");
    const read = used === null ? null : decodeURIComponent(used);
    await this.#readResult(response, { column: read, labels, total: null });
  }

  async #followJob(id, labels, signal) {
    this.#setJob(id);
    const job = await follow(id, {
      signal,
      onJob: ({ state, answered, total }) => {
        if (state === "queued") this.progress.note("Waiting for the jobs before it");
        else this.progress.update(answered, total);
      },
    });
    if (job.state !== "done") throw new Error(job.error ?? `The job was ${job.state}`);
    const response = await resultOf(id, { signal });
    await this.#readResult(response, { column: job.smiles_column, labels, total: job.total });
  }

  async #readResult(response, { column, labels, total }) {
    const answers = new Answers({ column, labels });
    try {
      await answers.read(response, () => this.progress.update(answers.results.count, total));
    } finally {
      // also what came before it was cancelled or broke off
      if (answers.results.count) this.onResults(answers.results, labels);
    }
    if (!answers.results.isWhole) {
      const others = this.job ? "; the download as NDJSON has all" : "";
      this.say(`The table has the first ${count(MOST_ROWS)} rows${others}.`);
    }
  }

  #refreshSoon() {
    this.refreshing ??= setTimeout(() => {
      this.refreshing = null;
      this.onRefresh();
    }, REFRESH);
  }
}

/** What is sent of an input: the file as it is, or a CSV of what was read where it has no header. */
function uploadOf(sheet, opened) {
  if (opened && sheet.hasHeader) {
    const column = sheet.kind === "sdf" || sheet.kind === "smi" ? null : sheet.columns[sheet.molecule];
    return { file: opened.file, format: opened.kind, column };
  }
  const results = Results.of(sheet);
  const rows = Array.from({ length: results.count }, (_, row) => row);
  return { ...fileOf(results, rows), format: "csv" };
}
