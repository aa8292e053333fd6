// What this service offers, as its OpenAPI document says.
import { get } from "./api.js";

let asked = null;

/** Return what the service offers: `matches`, whether it finds substructures; `outputs`, a Set of
 * formats of files. */
export function features() {
  asked ??= ask();
  return asked;
}

async function ask() {
  const { paths } = await get("openapi.json");
  const parameters = paths["/predict/file"].post.parameters;
  const output = parameters.find(({ name }) => name === "output").schema;
  return { matches: "/match" in paths, outputs: new Set(output.enum) };
}
