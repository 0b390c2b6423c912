"""Artifacts: atomic, verified, named by content; a full disk leaves nothing half-written."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from models.core.data import Prompt
from tasks.engine.store import DamagedArtifact, Ref, Store

ROWS = [Prompt.of("one"), Prompt.of("two")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), tmp_path / "cache")


def files(store: Store) -> list[Path]:
    return sorted(f for f in Path(store.root).rglob("*") if f.is_file())


def test_rows_come_back_and_equal_content_is_one_file(store: Store) -> None:
    ref = store.write_rows("prompts", ROWS, Prompt)
    assert store.rows(ref, Prompt) == ROWS
    assert ref.rows == 2
    assert store.write_rows("prompts", ROWS, Prompt) == ref
    assert len(files(store)) == 1


def test_a_matrix_is_memory_mapped_float32(store: Store) -> None:
    with store.new_matrix("vectors", (3, 4)) as out:
        out.values[:] = np.arange(12).reshape(3, 4)
    assert out.ref is not None
    matrix = store.matrix(out.ref)
    assert isinstance(matrix, np.memmap)
    assert matrix.dtype == np.float32
    assert matrix.tolist() == np.arange(12).reshape(3, 4).tolist()


def test_a_matrix_whose_writer_fails_is_not_stored(store: Store) -> None:
    with pytest.raises(RuntimeError, match="encoder died"), store.new_matrix("vectors", (3, 4)):
        raise RuntimeError("encoder died")
    assert files(store) == []


def test_a_folder_comes_back_whole(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights.safetensors").write_bytes(b"w" * 1000)
    back = store.folder(store.write_folder("adapters", folder))
    assert (back / "config.json").read_text() == "{}"
    assert (back / "sub" / "weights.safetensors").read_bytes() == b"w" * 1000


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_damage_is_found_on_read_and_named(store: Store, damage: str) -> None:
    ref = store.write_rows("prompts", ROWS, Prompt)
    (path,) = files(store)
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(DamagedArtifact, match=f"{ref.uri}.* is (missing|damaged)"):
        store.rows(ref, Prompt)
    assert store.write_rows("prompts", ROWS, Prompt) == ref, "writing it again repairs it"
    assert store.rows(ref, Prompt) == ROWS


def test_damage_inside_a_folder_is_found(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"w" * 1000)
    ref = store.write_folder("adapters", folder)
    (weights,) = [f for f in files(store) if f.suffix == ".safetensors"]
    weights.write_bytes(b"x" * 1000)
    with pytest.raises(DamagedArtifact, match="is damaged"):
        store.verify(ref)


def test_a_manifest_cannot_name_a_file_outside_its_folder(store: Store, tmp_path: Path) -> None:
    import hashlib
    import json

    inner = store.write_rows("prompts", ROWS, Prompt)
    manifest = json.dumps({"../../escaped": inner.model_dump()}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    ref = Ref(uri=f"adapters/{digest[:32]}.json", sha256=digest)
    path = Path(store.root) / ref.uri
    path.parent.mkdir(parents=True)
    path.write_bytes(manifest)
    with pytest.raises(DamagedArtifact, match="names a file outside its folder"):
        store.folder(ref)


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_any_fsspec_store_will_do(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"memory://{uuid4().hex}" if kind == "memory" else request.getfixturevalue("s3")
    store = Store(url, tmp_path / "cache")
    ref = store.write_rows("prompts", ROWS, Prompt)
    assert store.rows(ref, Prompt) == ROWS
    folder = tmp_path / "adapter"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights.safetensors").write_bytes(b"w" * 1000)
    kept = store.write_folder("adapters", folder)

    def anew(name: str) -> Store:
        return Store(url, tmp_path / name)

    assert anew("another machine's").rows(ref, Prompt) == ROWS
    assert (anew("another's").folder(kept) / "sub" / "weights.safetensors").read_bytes() == b"w" * 1000
    assert not [name for name in store.fs.find(store.root) if "/." in name], "nothing half-written is left"
    again = anew("another machine's")
    (again.cache / ref.uri).write_bytes(b"damaged here alone")
    assert again.rows(ref, Prompt) == ROWS, "fetched once more"
    store.fs.pipe_file(f"{store.root}/{ref.uri}", b"damaged")
    with pytest.raises(DamagedArtifact, match="is damaged"):
        anew("a third").rows(ref, Prompt)
    store.fs.rm_file(f"{store.root}/{ref.uri}")
    with pytest.raises(DamagedArtifact, match="is missing"):
        anew("a fourth").rows(ref, Prompt)
    assert anew("a fourth").write_rows("prompts", ROWS, Prompt) == ref, "writing it again repairs it"
    assert anew("a fifth").rows(ref, Prompt) == ROWS
    store.fs.rm_file(f"{store.root}/{ref.uri}")
    assert anew("a fifth").write_rows("prompts", ROWS, Prompt) == ref, "a copy here does not say that the store has it"
    assert anew("a sixth").rows(ref, Prompt) == ROWS


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A real file system of 200 kB where this may be mounted; elsewhere the kernel's file-size limit, the same errors."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], capture_output=True).returncode
        == 0
    )
    try:
        limit = (
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))"
        )
        script = f"""
import random, resource, signal
from pathlib import Path
from models.core.data import Prompt
from tasks.engine.store import Store
store = Store({str(small / "store")!r}, Path({str(tmp_path / "cache")!r}))
rows = [Prompt.of(str(random.random()) * 20) for _ in range(9000)]
store.write_rows("small", rows[:10], Prompt)
{"" if mounted else limit}
try:
    store.write_rows("large", rows, Prompt)
except OSError as error:
    print("REPORTED", error)
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[3]
        )
        assert "REPORTED" in done.stdout, done.stderr
        if mounted:
            assert "No space left on device" in done.stdout
            assert "cannot store large" in done.stdout
            assert "Nothing half-written was left" in done.stdout
        left = [f.name for f in (small / "store").rglob("*") if f.is_file()]
        assert len(left) == 1, left
        assert not left[0].startswith(".")
    finally:
        if mounted:
            subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    "uri",
    [
        "../secrets/" + "a" * 32,
        "/etc/passwd",
        "rows/../../etc/passwd",
        "rows/" + "a" * 32 + "/../x",
        "s3://b/" + "a" * 32,
    ],
)
def test_a_reference_names_nothing_outside_the_store(uri: str) -> None:
    with pytest.raises(ValueError, match="uri"):
        Ref(uri=uri, sha256="0" * 64)


def test_a_name_means_the_last_thing_said_and_is_no_path(store: Store) -> None:
    first, second = (store.write_rows("prompts", ROWS[:n], Prompt) for n in (1, 2))
    assert store.get_alias("reports", "tiny") is None
    for ref in (first, second):
        store.set_alias("reports", "tiny.s0", ref)
        assert store.get_alias("reports", "tiny.s0") == ref
    assert store.list_aliases("reports") == ["tiny.s0"]
    for name in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(ValueError, match="is no name"):
            store.set_alias("reports", name, first)
