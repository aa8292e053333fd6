// The page: connects its parts.
import { loadCatalogue } from "./catalogue.js";
import { byId, say } from "./elements.js";
import { startTheme } from "./theme.js";

async function start() {
  startTheme();
  const catalogue = await loadCatalogue();
  const chip = byId("model");
  chip.textContent = `${catalogue.model.name} ${catalogue.model.version}`;
  chip.hidden = false;
}

start().catch((error) => say(error.message));
