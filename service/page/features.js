// What this service offers, as its OpenAPI document says.
import { get } from "./api.js";

let asked = null;

/**
 * Return what the service offers: `explains`, a Set of explanations; `matches`, whether it finds
 * substructures; `outputs`, a Set of formats of files.
 */
export function features() {
  asked ??= ask();
  return asked;
}

async function ask() {
  const { paths, components } = await get("openapi.json");
  const explain = components.schemas.PredictRequest.properties.explain.items;
  const parameters = paths["/predict/file"].post.parameters;
  const output = parameters.find(({ name }) => name === "output").schema;
  return {
    explains: new Set(explain.enum),
    matches: "/match" in paths,
    outputs: new Set(output.enum),
  };
}
