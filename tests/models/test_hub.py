"""What comes from the hub has the bytes that the hub names it by: in its local copy, as a download leaves it."""

import hashlib
import shutil
from pathlib import Path

import pytest
from huggingface_hub.utils.sha import git_hash

from models import hub
from models.policies.pretrained import locate

COMMIT = "c" * 40
LARGE = {".safetensors", ".parquet"}


def local_copy(cache: Path, kind: str, name: str, files: Path) -> Path:
    """Lay a folder's files out as the hub's client does: blobs named by checksums, and links to them. Return the links'."""
    copy = cache / f"{kind}s--{name.replace('/', '--')}"
    links = copy / "snapshots" / COMMIT
    for folder in (copy / "refs", copy / "blobs", links):
        folder.mkdir(parents=True)
    (copy / "refs" / "main").write_text(COMMIT)
    for path in files.iterdir():
        content = path.read_bytes()
        name_of = hashlib.sha256(content).hexdigest() if path.suffix in LARGE else git_hash(content)
        shutil.copy(path, copy / "blobs" / name_of)
        (links / path.name).symlink_to(Path("../../blobs") / name_of)
    return links


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hub.folder.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json"])
def test_a_model_with_other_bytes_than_the_hubs_is_refused_and_fetched_again(
    cache: Path, tiny_model_path: Path, damaged: str
) -> None:
    links = local_copy(cache, "model", "org/tiny", tiny_model_path)
    assert locate("org/tiny").digest == f"hub-org/tiny-{COMMIT}"
    blob = (links / damaged).resolve()
    blob.write_bytes(blob.read_bytes().replace(b"a", b"b", 1))
    hub.folder.cache_clear()
    with pytest.raises(
        ValueError, match=rf"{damaged} has the checksum .*, and the hub's is {blob.name}: it was set aside"
    ):
        locate("org/tiny")
    assert not (links / damaged).exists(), "its link leads nowhere, which the hub's client fetches again"


def test_a_file_and_a_table_of_a_dataset_are_checked_too(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "answers.json").write_text('[{"instruction": "x", "output": "y"}]')
    links = local_copy(cache, "dataset", "org/answers", tmp_path / "files")
    assert hub.file("org/answers", "answers.json").read_text().startswith("[")
    assert hub.commit("org/answers") == hub.commit(f"org/answers@{COMMIT}") == COMMIT
    (links / "answers.json").resolve().write_text("[]")
    with pytest.raises(ValueError, match=r"answers.json has the checksum"):
        hub.file("org/answers", "answers.json")


def test_what_is_no_link_to_a_checksum_is_let_pass(tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_text("{}")
    (tmp_path / "named").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "named")
    hub.check(tmp_path)


def test_what_is_nowhere_says_what_would_help() -> None:
    with pytest.raises(FileNotFoundError, match="dataset 'org/none' is neither on the hub nor in the local copy"):
        hub.commit("org/none")
