"""Tables and lists of the pages say what was measured, or what the code knows."""

import ast
import json
import re
import tomllib

from merging.studies.graph_generalisation import accuracies_table
from service.core.reading import ITEM_CODES
from service.settings import OTHER_VARIABLES, variable_names
from tests.pages import PAGES, ROOT, page, shows


def test_results_table_is_the_one_that_was_measured() -> None:
    folder = ROOT / "results/gcn_supervised_contextpred"
    assert (folder / "table.md").read_text().strip() in page("results.md").read_text()
    methods = json.loads((folder / "summary.json").read_text())["methods"]
    shown = {
        "fine-tuned": "finetuned",
        "`own`": "gmerging_own",
        "`moe`": "gmerging_moe",
        "weight average": "weight_average",
    }
    averages = ", ".join(
        f"{title} {100 * methods[name]['batch']['average']:.1f}" for title, name in shown.items()
    )
    assert shows(page("results.md"), averages)


def test_table_of_graphs_without_features_is_the_one_that_was_measured() -> None:
    settings = json.loads((ROOT / "results/neighbours/generalisation.json").read_text())
    for content in settings.values():
        assert accuracies_table(content) in page("graph-generalisation.md").read_text()


def test_every_error_code_is_on_its_page() -> None:
    text = page("errors.md").read_text()
    codes = {*ITEM_CODES}
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ProblemError", "problem"):
                codes |= {one.value for one in node.args[1:2] if isinstance(one, ast.Constant)}
    assert {"queue_full", "unauthorized", "smiles_syntax"} <= codes
    assert not [code for code in codes if f"`{code}`" not in text]


def test_pages_name_settings_that_exist() -> None:
    known = {*variable_names(), *OTHER_VARIABLES}
    known.add("GMERGING_API_KEY")  # in commands that the page copies: the reader's own
    named = {
        name for path in PAGES for name in re.findall(r"GMERGING_[A-Z_]+[A-Z]", path.read_text())
    }
    assert named <= known


def test_commands_set_variables_that_the_service_lets_be() -> None:
    """Tests start services in their own environment: one more variable would stop all of them."""
    text = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"GMERGING_[A-Z_]+(?==)", text))
    assert {"GMERGING_CHEMPROP_PYTHON", "GMERGING_RAY_PYTHON"} <= named
    assert named <= {*variable_names(), *OTHER_VARIABLES}


def test_every_extra_is_on_the_page_of_installing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = page("install.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| ", text, re.M)) == set(project["optional-dependencies"])


def test_lines_of_the_pages_are_short() -> None:
    """Tables, images, and requests and answers in JSON have the width that they need."""
    for path in PAGES:
        text = path.read_text()
        if "do not edit" in text:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            exempt = line.lstrip().startswith(("|", "![", "{", '"graphs"', "-d "))
            assert len(line) <= 120 or exempt, f"{path.relative_to(ROOT)}:{number}"


def test_what_is_said_of_atoms_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks/results/atoms.json").read_text())
    network, trees = (measured["planted_rules"][name]["mean"] for name in ("network", "trees"))
    assert shows(
        page("explain.md"),
        f"is {network['roc_auc']:.3f} for the network and {trees['roc_auc']:.3f} for the trees",
    )
    found = (
        f"in {100 * network['largest']:.0f} % and {100 * trees['largest']:.0f} % of the molecules"
    )
    assert shows(page("explain.md"), found)
    for row in measured["deletion"]:
        lost = row["mean_output_lost"]
        assert lost["largest"] > lost["random"] > lost["smallest"]
        numbers = ", ".join(f"{lost[name]:.2f}" for name in ("largest", "random", "smallest"))
        assert shows(page("explain.md"), numbers)
    first, second = (measured["cost"][name]["ratio"] for name in ("moleculenet-gcn", "admet"))
    assert shows(page("explain.md"), f"takes {first['median']:.1f} times as long as without")
    assert shows(page("explain.md"), f"{second['median']:.1f} times for `admet`")
