"""Published weights by name, from a server of our own; other checkpoints by path; their origin."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gmerging.cli.main import main
from merging.config.base import CONFIG_FOLDER
from merging.data import checkpoints
from merging.data.checkpoints import BUNDLED, PUBLISHED, find_checkpoint, origin, published_path
from merging.data.files import sha256
from merging.families.molecule_config import MoleculeConfig, PretrainedConfig
from merging.families.molecules import MOLECULES, checkpoint
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.stages import teacher
from merging.training.pretraining import PretrainConfig, load_pretrain_config
from models.artifact import load_artifact
from models.errors import CheckpointError
from models.networks.hu2020 import load_backbone
from models.state_dict import sub_state
from tests.conftest import pico_config, random_backbone
from tests.merging.conftest import run_options
from tests.merging.run.test_stages import command

NAME, GIN = "gcn_contextpred", "gin_contextpred"


class Files(ThreadingHTTPServer):
    """Answers with `content` by path, and remembers what was asked for; `cut` sends half of it."""

    content: dict[str, bytes]
    asked: list[str]
    cut = False


class _Handler(BaseHTTPRequestHandler):
    server: Files

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.content.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.server.cut else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    """A pico checkpoint as torch saves it."""
    torch.save(random_backbone(pico_config()).state_dict(), tmp_path / "made.pth")
    return (tmp_path / "made.pth").read_bytes()


@pytest.fixture
def server(weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """Stands for GitHub, with pico weights as the published ones; the cache is the test's."""
    with Files(("127.0.0.1", 0), _Handler) as server:
        server.content = {f"/{published_path(name)}": weights for name in (NAME, GIN)}
        server.asked = []
        monkeypatch.setattr(checkpoints, "SOURCE", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setitem(PUBLISHED, NAME, f"sha256:{hashlib.sha256(weights).hexdigest()}")
        monkeypatch.setitem(
            PUBLISHED,
            GIN,
            f"git:{hashlib.sha1(b'blob %d' % len(weights) + bytes(1) + weights).hexdigest()}",
        )
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def find(tmp_path: Path, name: str = NAME) -> Path:
    return find_checkpoint(name, tmp_path / "work", tmp_path / "data")


def cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", [NAME, GIN])
def test_fetched_once_by_name_and_then_found(
    name: str, server: Files, weights: bytes, tmp_path: Path
) -> None:
    path = find(tmp_path, name)
    assert path == tmp_path / "cache/gmerging/hu2020" / f"{name}.pth"
    assert path.read_bytes() == weights
    assert find(tmp_path, name) == path
    assert server.asked == [f"/{published_path(name)}"]
    assert cached(tmp_path) == [path]
    load_backbone(path, pico_config())
    path.write_bytes(weights[:100])  # a cache that was spoilt is made anew
    assert find(tmp_path, name).read_bytes() == weights


@pytest.mark.parametrize("name", [NAME, GIN])
def test_other_bytes_are_refused_and_not_kept(
    name: str, server: Files, weights: bytes, tmp_path: Path
) -> None:
    server.content[f"/{published_path(name)}"] = weights[:-1] + b"?"
    algorithm = PUBLISHED[name].split(":")[0]
    with pytest.raises(
        CheckpointError,
        match=rf"127.*/chem/model_.*: got {algorithm}:\w+, expected .*{PUBLISHED[name]}",
    ):
        find(tmp_path, name)
    assert not cached(tmp_path)


def test_a_file_that_is_not_there_says_so(server: Files, tmp_path: Path) -> None:
    server.content.clear()
    with pytest.raises(
        CheckpointError,
        match=rf"got 404 .* for url: http://127.*; or put the file at .*/{NAME}\.pth yourself",
    ):
        find(tmp_path)
    assert not cached(tmp_path)


def test_a_download_that_breaks_off_leaves_nothing(server: Files, tmp_path: Path) -> None:
    server.cut = True
    with pytest.raises(CheckpointError, match=r"got no connection, or one that broke off, to http"):
        find(tmp_path)
    assert not cached(tmp_path)


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as closed:
        address = f"http://127.0.0.1:{closed.server_port}"
    monkeypatch.setattr(checkpoints, "SOURCE", address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(
        CheckpointError,
        match=rf"got no connection.* to {address}.*\(ConnectionError\), expected the",
    ):
        find(tmp_path)


def test_a_server_that_says_nothing(
    server: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_TIMEOUT_SECONDS", 0.2)
    answered = threading.Event()
    monkeypatch.setattr(_Handler, "do_GET", lambda self: answered.wait(60))
    try:
        with pytest.raises(CheckpointError, match=r"got nothing from http.* in 0\.2 s, expected"):
            find(tmp_path)
    finally:
        answered.set()


def test_beside_the_data_folder_comes_before_the_network(
    server: Files, weights: bytes, tmp_path: Path
) -> None:
    beside = tmp_path / f"weights/hu2020/{NAME}.pth"
    beside.parent.mkdir(parents=True)
    beside.write_bytes(weights)
    assert find(tmp_path) == beside
    beside.write_bytes(b"other")
    with pytest.raises(CheckpointError, match=rf"hu2020/{NAME}\.pth: got sha256:\w+, expected"):
        find(tmp_path)
    assert not server.asked


def test_a_path_comes_before_a_name(server: Files, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / NAME).write_bytes(b"my own")
    assert find(tmp_path) == tmp_path / "work" / NAME
    assert not server.asked


def test_what_is_neither_path_nor_name(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"no pre-trained weights at .*, expected .*did you mean 'gcn_contextpred'",
    ):
        find(tmp_path, "gcn_contextpredict")
    with pytest.raises(CheckpointError, match=r"or the name gat_contextpred, which is fetched"):
        find(tmp_path, "weights/hu2020/gat_contextpred.pth")


def test_names_are_the_published_files(shared: Path) -> None:
    """The files at hand have the digests that are written down, and tell where they came from."""
    files = sorted((shared / "weights/hu2020").glob("*.pth"))
    assert len(files) == 6
    for file in files:
        assert find_checkpoint(file.stem, Path("nowhere"), shared / "data") == file
        said = origin("a/copy.pth", file)
        assert said.startswith(f"Hu et al. 2020, {file.stem} (MIT), {checkpoints.REPOSITORY}/blob/")
        assert said.endswith(f"/chem/model_architecture/{file.name}")


def test_weights_that_come_with_the_package(tmp_path: Path) -> None:
    path = find_checkpoint("gin_linear_descriptors", tmp_path, tmp_path / "data")
    config = load_pretrain_config(Path("gin_linear_descriptors.yaml"))
    load_backbone(path, config.backbone)
    with safe_open(path, "pt") as stream:
        record = json.loads(stream.metadata()["record"])
    assert record["finished"]
    assert PretrainConfig.model_validate(record["config"]) == config
    assert origin("x", path).startswith(
        "gmerging pretrain, setting gin_linear_descriptors, seed 0, SHA-256 "
    )


def test_every_bundled_name_is_known() -> None:
    for path in CONFIG_FOLDER.glob("*.yaml"):
        config = load_config(path)
        assert isinstance(config, MoleculeConfig)
        weights = config.pretrained.weights
        assert weights in {*BUNDLED, *PUBLISHED} or weights.startswith("pretrained/")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_other_checkpoints_by_path_whatever_wrote_them(
    suffix: str, pico: MoleculeConfig, tmp_path: Path
) -> None:
    file, state = tmp_path / f"mine{suffix}", random_backbone(pico_config(), seed=3).state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    given = PretrainedConfig(backbone=pico_config(), weights=file.name)
    run = Run(
        pico.model_copy(update={"pretrained": given}),
        0,
        tmp_path / "data",
        tmp_path / "work",
        torch.device("cpu"),
    )
    assert checkpoint(run.config, run.folders) == file
    initial = sub_state(run.initial_state(), "network.")
    assert initial.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in initial.items())
    said = MOLECULES.provenance(run.config, run.folders)
    assert said["pretrained_source"] == f"file {file.name}, SHA-256 {sha256(file)}"


def test_weights_of_our_own_pre_training_tell_their_story(tmp_path: Path) -> None:
    record = json.dumps({"config": {"setting": "gin_mine"}, "seed": 4})
    save_file(
        random_backbone(pico_config()).state_dict(),
        tmp_path / "w.safetensors",
        {"key": "k", "record": record},
    )
    said = origin("w", tmp_path / "w.safetensors")
    assert said.startswith("gmerging pretrain, setting gin_mine, seed 4, SHA-256 ")


def test_source_goes_into_manifest_and_card(pico_config_file: Path, tmp_path: Path) -> None:
    said = "our assay network of March, DOI 10.1/x"
    text = pico_config_file.read_text().replace("pretrained:\n", f"pretrained:\n  source: {said}\n")
    pico_config_file.write_text(text)
    assert command(tmp_path, "release", "--output", str(tmp_path / "artifact")) == 0
    provenance = load_artifact(tmp_path / "artifact").manifest.provenance
    assert provenance["pretrained_source"] == said
    assert provenance["pretrained_sha256"] == sha256(tmp_path / "weights.safetensors")
    assert f"Pre-trained weights: {said}." in (tmp_path / "artifact/README.md").read_text()


def test_pieces_are_named_by_the_weights_and_not_by_their_path(
    pico_run: Run, tmp_path: Path
) -> None:
    key = teacher(pico_run, "other").key
    moved = (tmp_path / "weights.safetensors").rename(tmp_path / "moved.safetensors")
    changes = {"weights": str(moved), "source": "a friend"}
    given = pico_run.config.pretrained.model_copy(update=changes)
    run = Run(
        pico_run.config.model_copy(update={"pretrained": given}),
        0,
        pico_run.data,
        pico_run.work,
        pico_run.device,
    )
    assert teacher(run, "other").key == key
    save_file(random_backbone(pico_config(), seed=5).state_dict(), moved)
    assert teacher(run, "other").key != key


def test_another_layout_is_named_key_by_key(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = random_backbone(pico_config("gin")).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    assert command(tmp_path, "finetune") == 1
    said = capsys.readouterr().err
    assert "extra gnns.0.mlp.0.weight" in said
    assert "missing gnns.0.linear.weight" in said


def test_the_command_fetches_before_it_works(
    server: Files, pico_config_file: Path, tmp_path: Path
) -> None:
    text = pico_config_file.read_text().replace(str(tmp_path / "weights.safetensors"), NAME)
    pico_config_file.write_text(text)
    folders = run_options(tmp_path)
    assert main(["finetune", "--config", str(pico_config_file), *folders]) == 0
    assert len(server.asked) == 1
