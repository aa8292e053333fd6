"""The page in Chromium: what the first view loads and how long it takes, and the table with 10,000
rows of 40 columns.

    python -m benchmarks.page

Writes `results/page.json`. Times are wall times: upper bounds, where others use the machine too.
"""

import importlib.metadata
import time
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from benchmarks.browser import chromium
from benchmarks.measuring import RESULTS, machine, summary
from benchmarks.own_service import served
from merging.data.files import write_json

ROWS, COLUMNS, ROUNDS = 10_000, 40, 9
_TABLE = """async ([count, width, rounds]) => {
  const load = (name) => import(new URL(`page/${name}`, document.baseURI));
  const [{ Results }, { Table }, { loadCatalogue }] = await Promise.all(
    [load("run/results.js"), load("table/table.js"), load("catalogue.js")],
  );
  const catalogue = await loadCatalogue();
  const labels = [...catalogue.labels.values()].slice(0, width);
  const lines = Array.from({ length: count }, (_, k) => JSON.stringify({
    index: k, smiles: "C".repeat(1 + (k % 20)), row: { id: `m${k}` },
    tasks: Object.groupBy(labels, ({ task }) => task.name),
  }, (key, value) => Array.isArray(value)
    ? Object.fromEntries(value.map(({ name }, n) => [name, ((k * 7919 + n * 104729) % 1e4) / 1e4]))
    : value));
  const section = document.createElement("section");
  section.className = "results";
  document.querySelector("main").append(section);
  const seconds = { read: [], built: [], sorted: [], scrolled: [] };
  let cells = 0;
  for (let round = 0; round <= rounds; round += 1) {
    const view = { sort: null, filters: [], text: "", smarts: "", pictures: false };
    const times = [performance.now()];
    const step = () => { section.offsetHeight; times.push(performance.now()); };
    const results = new Results(["id"], { molecule: -1, name: 0 });
    for (const line of lines) {
      const item = JSON.parse(line);
      results.put(results.addNamedRow(item.row, item.smiles), item, labels);
    }
    step();
    const nothing = () => {};
    const actions = { onView: nothing, onOpen: nothing, onCompare: nothing, menus: [] };
    const table = new Table(section, { catalogue, view, ...actions });
    table.show(results, labels);
    step();
    section.querySelector(`[data-sort="${labels[round % width].column}"]`).click();
    step();
    table.grid.scroller.scrollTop = 150_000 + round;
    table.grid.draw();
    step();
    cells = section.querySelectorAll("td, th").length;
    if (!round) continue; // a warm-up
    Object.values(seconds).forEach((list, k) => list.push((times[k + 1] - times[k]) / 1000));
  }
  return { seconds, cells };
}"""


def first_view(browser: Browser, address: str) -> dict[str, Any]:
    """Load the page without a cache: seconds until it can be used, and bytes on the wire."""
    seconds, sizes, kinds = [], [], {}
    for round_ in range(ROUNDS + 1):
        context = browser.new_context()
        page = context.new_page()
        network = context.new_cdp_session(page)
        network.send("Network.enable")
        bytes_of: dict[str, int] = {}
        urls: dict[str, str] = {}
        network.on(
            "Network.responseReceived",
            lambda event, urls=urls: urls.update({event["requestId"]: event["response"]["url"]}),
        )
        network.on(
            "Network.loadingFinished",
            lambda event, found=bytes_of: found.update(
                {event["requestId"]: int(event["encodedDataLength"])}
            ),
        )
        started = time.perf_counter()
        page.goto(address)
        page.locator("#model").wait_for()
        page.locator("#properties").wait_for()
        if round_:  # not the warm-up
            seconds.append(time.perf_counter() - started)
            sizes.append(sum(bytes_of.values()))
        kinds = {
            urls[request].removeprefix(address).partition("?")[0] or "page": size
            for request, size in bytes_of.items()
        }
        context.close()
    described = {name: kinds[name] for name in ("/tasks", "/model") if name in kinds}
    return {
        "seconds": summary(seconds, 3),
        "bytes": max(sizes),
        "requests": len(kinds),
        "bytes_of_descriptions": described,
    }


def table(browser: Browser, address: str) -> dict[str, Any]:
    """Read, build, sort and scroll a table of `ROWS` by `COLUMNS`."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.locator("#model").wait_for()
    found = page.evaluate(_TABLE, [ROWS, COLUMNS, ROUNDS])
    page.close()
    return {
        "rows": ROWS,
        "columns": COLUMNS,
        "cells_in_the_document": found["cells"],
        **{f"{name}_seconds": summary(values, 4) for name, values in found["seconds"].items()},
    }


def main() -> None:
    """Measure the page of the default release."""
    with served("cpu", {}) as (port, _), sync_playwright() as tool:
        browser = chromium(tool)
        address = f"http://127.0.0.1:{port}"
        found = {
            "machine": machine(1) | {"chromium": browser.version},
            "playwright": importlib.metadata.version("playwright"),
            "first_view": first_view(browser, address),
            "table": table(browser, address),
        }
        browser.close()
    write_json(RESULTS / "page.json", found)
    print(found["first_view"], found["table"], sep="\n")


if __name__ == "__main__":
    main()
