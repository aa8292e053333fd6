"""Import what the service imports and answer once from every released model, in the build of the
image: bytecode and compiled kernels are written here and not at every start."""

import service.__main__  # noqa: F401  # for its bytecode
from gmerging.cli.main import make_parser
from gmerging.diagnosis import examine
from models.released import released
from service.app import create_app
from service.core.artifact_engine import load_engine
from service.settings import Settings

settings = Settings()
make_parser(["serve"])
create_app(settings).openapi()
for folder in released().values():
    load_engine(folder, settings)
if wrong := [finding for finding in examine() if finding.problem]:
    raise SystemExit(f"gmerging doctor found {wrong}")
