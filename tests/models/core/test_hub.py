"""What comes from the hub has the bytes that the hub names it by: in its local copy, as its client leaves it."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

from models.core import hub
from models.policies.resolve import locate
from models.sources.hub import DatasetSpec

COMMIT = "c" * 40
LARGE = {".safetensors", ".parquet"}


def local_copy(cache: Path, kind: str, name: str, files: Path) -> Path:
    """Lay a folder's files out as the hub's client does, and return the folder of the commit.

    A file is a link to a blob that is named by its checksum, and a large blob is one to bytes that repositories share, which
    have a name of another kind.
    """
    copy = cache / f"{kind}s--{name.replace('/', '--')}"
    links = copy / "snapshots" / COMMIT
    for folder in (copy / "refs", copy / "blobs", links):
        folder.mkdir(parents=True)
    (copy / "refs" / "main").write_text(COMMIT)
    for path in files.iterdir():
        if path.suffix in LARGE:
            named = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            named = subprocess.check_output(["git", "hash-object", str(path)], text=True).strip()
        blob = Path(shutil.copy(path, copy / "blobs" / named))
        if path.suffix in LARGE:
            size = blob.stat().st_size
            assert publish_blob_to_shared_store(
                blob_path=str(blob), xet_hash=named[::-1], cache_dir=str(cache), expected_size=size
            )
            assert blob.is_symlink()
        (links / path.name).symlink_to(Path("../../blobs") / named)
    return links


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hub.folder.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NINEFOLD_CACHE", str(tmp_path / "own"))
    return tmp_path / "hub"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json"])
def test_a_model_with_other_bytes_than_the_hubs_is_refused_and_fetched_again(
    cache: Path, tiny_model_path: Path, damaged: str
) -> None:
    links = local_copy(cache, "model", "org/tiny", tiny_model_path)
    for _ in range(2):
        assert locate("org/tiny").digest == f"hub-org/tiny-{COMMIT}"
        hub.folder.cache_clear()
    bytes_of = (links / damaged).resolve()
    bytes_of.write_bytes(bytes_of.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(ValueError, match=rf"{damaged} has the checksum .*, and the hub's is .*: it was set aside"):
        locate("org/tiny")
    assert not (links / damaged).exists(), "its link leads nowhere, which the hub's client fetches again"
    assert not bytes_of.exists(), "and no other repository is given them"


def test_an_adapter_is_no_model(cache: Path, tiny_model_path: Path, files: Path) -> None:
    shutil.copytree(tiny_model_path, files, dirs_exist_ok=True)
    (files / "adapter_config.json").write_text('{"base_model_name_or_path": "/another"}')
    local_copy(cache, "model", "org/adapter", files)
    for reference in ("org/adapter", str(files)):
        with pytest.raises(FileNotFoundError, match="is an adapter, of a base that it names itself"):
            locate(reference)


def test_a_file_of_a_dataset_is_checked_too(cache: Path, files: Path) -> None:
    (files / "answers.json").write_text('[{"instruction": "x", "output": "y"}]')
    links = local_copy(cache, "dataset", "org/answers", files)
    assert hub.file("org/answers", "answers.json").read_text().startswith("[")
    assert hub.commit("org/answers") == hub.commit(f"org/answers@{COMMIT}") == COMMIT
    (links / "answers.json").resolve().write_text("[]")
    with pytest.raises(ValueError, match=r"answers.json has the checksum"):
        hub.file("org/answers", "answers.json")


def test_a_datasets_rows_are_those_of_its_checked_files_by_the_splits_of_its_card(
    cache: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    (files / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: filtered, path: few.jsonl}\n  - {split: raw, path: [all.jsonl]}\n---\n"
    )
    (files / "few.jsonl").write_text('{"prompt": "one"}\n')
    (files / "all.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    links = local_copy(cache, "dataset", "org/prompts", files)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "prompts").mkdir(parents=True)  # of the same name, and not the hub's
    assert [row["prompt"] for row in hub.rows("org/prompts", None, "filtered")] == ["one"]
    assert len(hub.rows(f"org/prompts@{COMMIT}", None, "raw")) == 2
    (links / "few.jsonl").resolve().write_text('{"prompt": "other"}\n')
    for _ in range(2):
        hub.folder.cache_clear()
        with pytest.raises((ValueError, FileNotFoundError), match="has the checksum|is gone from the hub's local copy"):
            hub.rows("org/prompts", None, "filtered")  # and not what was read of it before, nor what is left


@pytest.mark.parametrize(
    "place",
    [
        "{secret}",
        "../../secret.jsonl",
        "file:{secret}",
        "local:{secret}",
        "s3://lab/secret.jsonl",
        "http://10.0.0.1/x.jsonl",
    ],
)
def test_a_dataset_names_no_files_but_its_own(cache: Path, files: Path, tmp_path: Path, place: str) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"prompt": "of this machine"}\n')
    place = place.format(secret=secret)
    (files / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: [{{split: train, path: {place}}}]\n---\n"
    )
    local_copy(cache, "dataset", "org/sly", files)
    with pytest.raises(ValueError, match="a dataset's files are its own"):
        hub.rows("org/sly", None, "train")
    with pytest.raises(ValueError, match="a dataset's files are its own"):
        DatasetSpec(dataset=str(files), prompt="{prompt}", rows=1)._load()


def test_only_the_configuration_asked_for_is_fetched(files: Path) -> None:
    card = "\n".join(
        f"- config_name: {name}\n  data_files: [{{split: train, path: {name}/*.jsonl}}]\n  sep: '::'" for name in "abc"
    )
    (files / "README.md").write_text(f"---\nconfigs:\n{card}\n---\n")
    assert hub.check_card(files, "c") == ("a/*.jsonl", "c/*.jsonl"), "the first one too, which datasets looks at"
    (files / "README.md").write_text(f"---\nconfigs:\n{card}\n- {{config_name: d, data_dir: d}}\n---\n")
    assert hub.check_card(files, "c") == (), "all: it looks into folders too"
    (files / "README.md").write_text("---\nconfigs: [{config_name: default, data_files: ./data/**/x.jsonl}]\n---\n")
    assert hub.check_card(files) == ("data/**/x.jsonl", "data/x.jsonl")
    (files / "README.md").write_text("no card\n")
    assert hub.check_card(files, "c") == ()


def test_what_is_no_link_to_a_checksum_is_let_pass(tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_text("{}")
    (tmp_path / "named").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "named")
    hub.check(tmp_path, ("*.json",))


def test_what_is_nowhere_says_what_would_help() -> None:
    with pytest.raises(FileNotFoundError, match="dataset 'org/none' is neither on the hub nor in the local copy"):
        hub.commit("org/none")
