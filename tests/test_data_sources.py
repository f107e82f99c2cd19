"""What a path of the config means: files, globs, folders that `datasets` saved, the hub."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from luthier.data import chunks
from luthier.data.hub import fetch
from luthier.data.records import SourceFile
from luthier.data.rows import RawRow
from luthier.data.sources import expand
from luthier.errors import DataError
from test_data_hostile_files import as_arrow
from test_data_readers import read_all

ROWS = b'{"text": "one", "label": "x"}\n' * 3


def linked_out(folder: Path) -> str:
    (folder / "data").mkdir()
    (folder / "secret.jsonl").write_bytes(ROWS)
    (folder / "data" / "a.jsonl").symlink_to(folder / "secret.jsonl")
    return f"{folder}/data/*.jsonl"


def saved_elsewhere(folder: Path) -> str:
    saved = folder / "saved"
    saved.mkdir()
    (folder / "outside.arrow").write_bytes(as_arrow())
    (saved / "state.json").write_text('{"_data_files": [{"filename": "../outside.arrow"}]}')
    return str(saved)


def with_name(name: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(ROWS)
        return f"{folder}/*.jsonl"

    return make


def undecodable_name(folder: Path) -> str:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jsonl")).write_bytes(ROWS)
    return f"{folder}/*.jsonl"


def folder_named_like_a_file(folder: Path) -> str:
    (folder / "x.jsonl").mkdir()
    return f"{folder}/*.jsonl"


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "a.jsonl")
    return f"{folder}/a.jsonl"


def link_to_itself(folder: Path) -> str:
    (folder / "a.jsonl").symlink_to("a.jsonl")
    return f"{folder}/a.jsonl"


def dangling_link(folder: Path) -> str:
    (folder / "a.jsonl").symlink_to("nowhere.jsonl")
    return f"{folder}/*.jsonl"


def empty_file(folder: Path) -> str:
    (folder / "a.jsonl.gz").touch()
    return f"{folder}/a.jsonl.gz"


def state_of(text: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "state.json").write_text(text)
        return str(folder)

    return make


PATHS: dict[str, tuple[Callable[[Path], str], str]] = {
    "a link out of the glob's root": (linked_out, "a link that leads out of"),
    "a saved dataset that lists a file outside": (saved_elsewhere, "a link that leads out of"),
    "a newline in a name": (with_name("a\n.jsonl"), r"a\\n\.jsonl: a control character"),
    "an escape in a name": (with_name("a\x1b[2J.jsonl"), r"a\\x1b\[2J\.jsonl: a control"),
    "a name that is not UTF-8": (undecodable_name, r"\\udcff\.jsonl: a control character"),
    "a NUL in a path": (lambda folder: f"{folder}/\0.jsonl", "a control character"),
    "a directory named x.jsonl": (folder_named_like_a_file, "a folder, though"),
    "a directory": (lambda folder: str(folder), "that `datasets` did not save"),
    "a FIFO": (fifo, "not a regular file"),
    "a device": (lambda _: "/dev/zero", "not a regular file"),
    "a link to itself": (link_to_itself, "no such file"),
    "a dangling link": (dangling_link, "no such file"),
    "nothing there": (lambda folder: f"{folder}/a.jsonl", "no such file"),
    "a glob without a match": (lambda folder: f"{folder}/*.jsonl", "no file matches"),
    "a pattern that is none": (lambda folder: f"{folder}/a**/*.jsonl", "cannot be looked for"),
    "a name that is too long": (lambda folder: f"{folder}/{'x' * 300}.jsonl", "too long"),
    "an empty file": (empty_file, "the file is empty"),
    "an unknown suffix": (with_name("a.jsonl.jsnl"), "no file matches"),
    "a state that is no JSON": (state_of("{"), "does not list data files"),
    "a state nested 100,000 deep": (state_of("[" * 100_000), "does not list data files"),
    "a state without files": (state_of('{"_data_files": []}'), "lists no data files"),
    "a state with a missing file": (
        state_of('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}'),
        "no such file",
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_hostile_path_is_refused(tmp_path: Path, name: str) -> None:
    make, message = PATHS[name]
    with pytest.raises(DataError, match=message) as raised:
        expand(make(tmp_path))
    assert str(raised.value).isprintable()


@contextmanager
def without_rights() -> Iterator[None]:
    """Root may read everything: for a moment, be nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROWS)
    path.chmod(0)
    file = SourceFile(path, "a.jsonl")
    whole = next(chunks.cut(file)) if os.geteuid() == 0 else None
    with without_rights():
        with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: Permission denied"):
            list(chunks.cut(file))
        if whole is not None:
            with pytest.raises(DataError, match="Permission denied"):
                list(chunks.read(whole))
    tmp_path.chmod(0)
    with without_rights(), pytest.raises(DataError, match="Permission denied"):
        expand(str(path))
    tmp_path.chmod(0o700)


def names(files: list[SourceFile]) -> list[str]:
    return [file.name for file in files]


def test_globs_are_sorted_and_pass_over_hidden_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = ["b.jsonl", "a.jsonl", "deep/c.jsonl.gz", "deep/er/d.jsonl", ".e.jsonl", ".x/f.jsonl"]
    for name in [*made, "deep/notes.txt"]:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(ROWS)
    assert names(expand("*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert names(expand("**/*.jsonl")) == ["a.jsonl", "b.jsonl", "deep/er/d.jsonl"]
    assert names(expand("deep/*.gz")) == ["deep/c.jsonl.gz"]
    assert names(expand(".x/*.jsonl")) == [".x/f.jsonl"]
    assert names(expand(".*.jsonl")) == [".e.jsonl"]
    assert names(expand(f"{tmp_path}/[ab].jsonl")) == [f"{tmp_path}/{x}.jsonl" for x in "ab"]
    assert names(expand("./deep/../a.jsonl")) == ["deep/../a.jsonl"]
    with pytest.raises(DataError, match=r"deep/notes\.txt: no reader for files ending in '\.txt'"):
        expand("deep/*")
    with pytest.raises(DataError, match=r"write '\*\*/\*\.jsonl'"):
        expand("deep/**")


def test_a_file_with_wildcards_in_its_name_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(ROWS)
    (tmp_path / "a1.jsonl").write_bytes(ROWS)
    assert names(expand(f"{tmp_path}/a[1].jsonl")) == [f"{tmp_path}/a[1].jsonl"]


def test_a_link_may_be_named_and_may_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    assert len(expand(f"{tmp_path}/data/b.jsonl")) == 1
    assert len(expand(f"{tmp_path}/**/*.jsonl")) == 2


def test_a_wrong_suffix_names_the_right_one(tmp_path: Path) -> None:
    for name, message in {
        "rows.jsnl": r"Did you mean \.jsonl\?",
        "rows.jsn.gz": r"Did you mean \.json\.gz\?",
        "rows.gz": r"files ending in '\.gz'",
        "rows": "files ending in ''",
    }.items():
        (tmp_path / name).write_bytes(ROWS)
        with pytest.raises(DataError, match=message):
            expand(f"{tmp_path}/{name}")


def test_a_dataset_saved_by_datasets_is_read_back(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"messages": [{"role": "user", "content": f"text {n}"}], "n": n} for n in range(50)]
    saved = Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "one", num_shards=3)
    (tmp_path / "one" / "unlisted.arrow").write_bytes(b"not read")
    files = expand(f"{tmp_path}/one")
    assert [Path(name).name for name in names(files)] == [
        f"data-0000{n}-of-00003.arrow" for n in range(3)
    ]
    found = [record for file in files for record in read_all(file)]
    assert [r.values for r in found if isinstance(r, RawRow)] == rows

    DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match=r"Name one: .*two/test, .*two/train\."):
        expand(f"{tmp_path}/two")
    assert len(expand(f"{tmp_path}/two/test")) == 1


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("repo_id", "revision", "patterns", "message"),
    [
        ("name", COMMIT, ["*.jsonl"], "hub:name: not the id of a data set"),
        ("owner/name", None, ["*.jsonl"], "not pinned"),
        ("owner/name", "main", ["*.jsonl"], "40 hexadecimal digits"),
        ("owner/name", COMMIT[:12], ["*.jsonl"], "not pinned"),
        ("owner/name", COMMIT, [], "say which of its files"),
        ("owner/name", COMMIT, ["data/*"], "may mean files that are no data"),
        ("owner/name", COMMIT, ["*.py"], "may mean files that are no data"),
        ("owner/name", COMMIT, ["*.jsonl"], f"at {COMMIT} cannot be fetched"),
    ],
)
def test_a_hub_data_set_is_refused(
    repo_id: str, revision: str | None, patterns: list[str], message: str
) -> None:
    """Offline, as all tests are: see conftest."""
    with pytest.raises(DataError, match=message):
        fetch(repo_id, revision, patterns)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as a snapshot of a small public data set asks for."""

    files: ClassVar[dict[str, bytes]] = {
        "data/train-00000-of-00001.jsonl": ROWS,
        "data/test-00000-of-00001.jsonl": ROWS,
        "load.py": b"raise SystemExit('code was fetched')",
    }
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "/tree/" in self.path:
            listed = [
                {"type": "file", "path": path, "size": len(data), "oid": f"{number:040x}"}
                for number, (path, data) in enumerate(self.files.items(), start=1)
            ]
            return self.reply(json.dumps(listed).encode(), "application/json")
        path = self.path.partition(f"/resolve/{COMMIT}/")[2]
        return self.reply(self.files[path], "application/octet-stream", path)

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, data: bytes, kind: str, path: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{list(self.files).index(path) + 1:040x}"' if path else '"x"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_a_hub_data_set_is_fetched_without_its_code_and_then_read_offline(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub takes its address when it is imported."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    script = (
        "from luthier.data.hub import fetch\n"
        "from luthier.data import chunks\n"
        f"for file in fetch('owner/name', '{COMMIT}', ['data/train-*.jsonl']):\n"
        "    rows = [r for chunk in chunks.cut(file) for r in chunks.read(chunk)]\n"
        "    print(rows[0].file, len(rows))\n"
    )
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    said = []
    try:
        for offline in ("0", "1"):
            done = subprocess.run(
                [sys.executable, "-c", script],
                env=environment | {"HF_HUB_OFFLINE": offline},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            said.append(done.stdout)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert said == ["hub:owner/name/data/train-00000-of-00001.jsonl 3\n"] * 2
    assert any("train-" in path for path in Hub.asked)
    assert not any("load.py" in path or "test-" in path for path in Hub.asked)
