// Requests to the service. Addresses are relative: a proxy may add a prefix.

let key = ""; // in memory only: gone with the page

/** Use an API key from now on; an empty text for none. */
export function useKey(text) {
  key = text.trim();
}

/** True if there is a key. */
export function hasKey() {
  return key !== "";
}

/** An answer that is not a success, as a problem of RFC 9457, or no answer at all (status 0). */
export class ServiceError extends Error {
  constructor(status, code, message, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/**
 * Send a request and return the response.
 *
 * Args: `json` is sent as the body; `body`, `headers` and `signal` are as of `fetch`.
 * Raises: ServiceError, or AbortError if the signal stopped it.
 */
export async function send(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (json !== undefined) sent["Content-Type"] = "application/json";
  if (key) sent["X-API-Key"] = key;
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: sent,
      body: json === undefined ? body : JSON.stringify(json),
      signal,
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "unreachable", "the service does not answer");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const after = Number(response.headers.get("Retry-After")) || null;
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // a proxy's own page
  }
  const message = problem.detail ?? `the service answered ${response.status}`;
  return new ServiceError(response.status, problem.code ?? "unknown", message, after);
}

/** Send a JSON body by POST, and return the JSON of the answer. */
export async function post(path, json, options = {}) {
  return (await send(path, { method: "POST", json, ...options })).json();
}

/** Return the JSON of an address. */
export async function get(path, options = {}) {
  return (await send(path, options)).json();
}
