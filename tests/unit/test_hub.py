"""Models by name: downloaded once, checked, their licence shown; every way it can fail is one line of ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from personaplex.checkpoint import hub, repository
from personaplex.checkpoint.sources import CC_BY, SOURCES, KnownFile, Source
from personaplex.checkpoint.voices import VoiceShelf
from personaplex.errors import CheckpointError
from tests.hub_server import COMMIT, Hub, Repo, ask, running

NOBODY = "http://127.0.0.1:9"
REPO = "somebody/something"
FILES = {
    "config.json": b'{"model_type": "personaplex"}',
    "model.safetensors": b"weights" * 100_000,
    "tokenizer-e351c8d8-checkpoint125.safetensors": b"codec" * 1000,
    "voices.tgz": b"voices",
    "README.md": b"---\nlicense: mit\n---\n",
    "picture.png": b"not asked for",
}


def known(**changes: object) -> Source:
    files = {name: KnownFile(len(FILES[name]), hashlib.sha256(FILES[name]).hexdigest()) for name in list(FILES)[1:4]}
    return Source(**({"kind": "personaplex", "licence": CC_BY, "revision": COMMIT, "files": files} | changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no token, and a Hub that nobody is."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(repository, "getproxies", dict)
    return tmp_path / "hub"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running({REPO: Repo(dict(FILES))}) as served:
        ask(monkeypatch, served.url)
        yield served


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a socket, or looks up a name, fails the test."""

    def asked(*arguments: object, **_: object) -> None:
        pytest.fail(f"it asked the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr(socket, "create_connection", asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_it_fails_fast(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    if offline:
        no_network(monkeypatch)
    began = time.perf_counter()
    with pytest.raises(
        CheckpointError, match="HF_HUB_OFFLINE is set" if offline else "127.0.0.1:9 does not answer.*check the network"
    ):
        hub.resolve(REPO)
    assert time.perf_counter() - began < 10


def test_a_known_repository_is_downloaded_checked_and_then_left_alone(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, REPO, known())
    said: list[str] = []
    folder = hub.resolve(REPO, say=said.append)
    assert {path.name for path in folder.iterdir()} == set(FILES) - {"picture.png"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert folder.is_relative_to(cache)
    assert len(said) == 1 and "licence CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)" in said[0]
    assert f"{server.url}/{REPO}" in said[0]
    # From now on nothing is asked, nothing is said and nothing is read again.
    no_network(monkeypatch)
    monkeypatch.setattr(repository, "sha256_of", lambda *_: pytest.fail("it read the whole file again"))
    assert hub.resolve(REPO, say=said.append) == folder
    assert len(said) == 1


def test_the_licence_is_said_on_stderr_where_nobody_listens(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.resolve(REPO)
    hub.resolve(REPO)
    out, err = capsys.readouterr()
    assert out == "" and err.count(f"its licence is on {server.url}/{REPO}") == 1


def test_only_what_is_asked_for_is_downloaded(server: Hub) -> None:
    hub.resolve(REPO, hub.CODEC_FILES)
    assert {name for name, _ in server.downloads()} == {"config.json", "tokenizer-e351c8d8-checkpoint125.safetensors"}


def test_a_repository_without_a_config_or_voices_is_a_folder_without_them(server: Hub) -> None:
    """As Moshi's: whoever asks for its voices learns that there are none."""
    for name in ("config.json", "voices.tgz"):
        del server.repos[REPO].files[name]
    assert VoiceShelf(hub.resolve(REPO, hub.VOICE_FILES)).names() == []
    assert (hub.resolve(REPO) / "model.safetensors").is_file()


def test_a_file_that_is_not_the_known_one_is_not_used(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, REPO, known())
    server.repos[REPO].files["model.safetensors"] = b"Weights" + FILES["model.safetensors"][7:]
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors of .* its SHA-256 is .* it was not used: delete"
        ) as found:
            hub.resolve(REPO)
    server.repos[REPO].files["model.safetensors"] = FILES["model.safetensors"]
    Path(str(found.value).split("delete ")[1].split(" and run")[0]).unlink()
    for tree in cache.rglob("*.json"):
        if "trees" in tree.parts or "tree" in tree.name:
            tree.unlink()
    assert (hub.resolve(REPO) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_file_of_another_size_is_not_used(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, REPO, known())
    server.repos[REPO].files["voices.tgz"] = b"other voices"
    with pytest.raises(CheckpointError, match=r"voices\.tgz of .* is 12 bytes long, not 6; it was not used"):
        hub.resolve(REPO)


def test_a_converted_repository_is_held_against_its_own_config(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: what was right is noted, and a file that is not asked for is not missed."""
    files = [{"name": n, "n_bytes": len(FILES[n]), "sha256": hashlib.sha256(FILES[n]).hexdigest()} for n in FILES]
    about = {"source": "x", "source_fingerprint": "", "base_model": "", "converter": "", "files": files[1:4]}
    server.repos[REPO].files["config.json"] = json.dumps({"provenance": about}).encode()
    hub.resolve(REPO, hub.CODEC_FILES)
    hub.resolve(REPO)
    with monkeypatch.context() as patch:
        patch.setattr(repository, "sha256_of", lambda *_: pytest.fail("it read the whole file again"))
        folder = hub.resolve(REPO)
    (folder / "model.safetensors").resolve().write_bytes(b"Weights" * 100_000)
    with pytest.raises(CheckpointError, match=f"model.safetensors of {REPO} is another file: its SHA-256 is"):
        hub.resolve(REPO)


def test_what_was_exchanged_after_the_check_is_seen(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, REPO, known())
    path = (hub.resolve(REPO) / "voices.tgz").resolve()
    path.chmod(0o644)
    path.write_bytes(b"VOICES")
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"voices\.tgz .* another file"):
        hub.resolve(REPO)


def test_in_a_cache_that_cannot_be_written_what_was_there_is_measured(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that several people share: nothing can be noted in it, and 16 GB are not read at every start."""
    monkeypatch.setitem(SOURCES, REPO, known())
    folder = hub.resolve(REPO)
    shutil.rmtree(next(cache.rglob("personaplex-checked")))
    monkeypatch.setattr(repository, "_can_write", lambda _: False)
    monkeypatch.setattr(repository, "sha256_of", lambda *_: pytest.fail("it read the whole file again"))
    assert hub.resolve(REPO) == folder
    (folder / "voices.tgz").resolve().write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"voices\.tgz .* 3 bytes long, not 6"):
        hub.resolve(REPO)


def test_a_check_that_was_interrupted_is_made_up_for(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program may be stopped between download and check; what lies in the cache then was never checked."""
    monkeypatch.setitem(SOURCES, REPO, known())
    server.repos[REPO].files["voices.tgz"] = b"VOICES"
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(repository, "sha256_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        hub.resolve(REPO)
    with pytest.raises(CheckpointError, match=r"voices\.tgz .* another file"):
        hub.resolve(REPO)


def test_a_download_that_breaks_off_goes_on_where_it_was(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.repos[REPO].breaks["model.safetensors"] = 2
    for _ in range(3):
        # huggingface_hub 1 and later goes on by itself; before, the next start did.
        with suppress(CheckpointError):
            folder = hub.resolve(REPO)
            break
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    half = len(FILES["model.safetensors"]) // 2
    ranges = [part for name, part in server.downloads() if name == "model.safetensors"]
    assert ranges == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_a_download_that_fails_leaves_what_is_whole_for_the_next_time(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setitem(SOURCES, REPO, known())
    hub.resolve(REPO, hub.CODEC_FILES)
    server.repos[REPO].breaks["model.safetensors"] = 1_000_000
    with pytest.raises(CheckpointError, match="could not be fetched from the Hub"):
        hub.resolve(REPO)
    server.repos[REPO].breaks.clear()
    server.asked.clear()
    hub.resolve(REPO)
    assert "tokenizer-e351c8d8-checkpoint125.safetensors" not in {name for name, _ in server.downloads()}
    assert "model.safetensors" in {name for name, _ in server.downloads()}
    assert not list(cache.rglob("*.incomplete"))


def test_gated_without_a_token_says_where_to_accept_the_licence(server: Hub) -> None:
    server.repos[REPO].token = "hf_accepted"
    said: list[str] = []
    says = rf"{REPO} is gated: accept its licence at {server.url}/{REPO}, then run `hf auth login`$"
    with pytest.raises(CheckpointError, match=says):
        hub.resolve(REPO, say=said.append)
    assert said == [], "whose licence was not accepted is not announced as if it came"


def test_gated_with_a_token_that_may_not_read_it_says_so(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, REPO, known(gated=True))
    server.repos[REPO].token = "hf_accepted"
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(
        CheckpointError, match=r"the token in use may not read it: accept its licence at .*hf auth login"
    ):
        hub.resolve(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert (hub.resolve(REPO) / "model.safetensors").is_file()


def test_a_known_gated_repository_is_gated_even_if_the_hub_hides_it(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To strangers the Hub says of some repositories that there are none."""
    monkeypatch.setitem(SOURCES, "nobody/hidden", known(gated=True))
    with pytest.raises(CheckpointError, match="nobody/hidden is gated: accept its licence"):
        hub.resolve("nobody/hidden")


@pytest.mark.parametrize("token", [None, "hf_somebody"])
def test_a_repository_that_is_not_there(server: Hub, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(CheckpointError, match="there is no folder and no Hub repository called nobody/nothing"):
        hub.resolve("nobody/nothing")


def test_a_revision_that_is_gone(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, REPO, known(revision="b" * 40))
    with pytest.raises(CheckpointError, match=f"has no revision {'b' * 40} any more"):
        hub.resolve(REPO)


def test_another_kind_of_model_is_refused_before_it_is_downloaded(server: Hub) -> None:
    server.repos[REPO].files["config.json"] = b'{"model_type": "llama"}'
    with pytest.raises(CheckpointError, match=r"another kind \(llama\); these work: nano.*kyutai/moshiko-pytorch-bf16"):
        hub.resolve(REPO)
    assert {name for name, _ in server.downloads()} == {"config.json"}


def test_mimi_alone_is_two_files_and_no_model_to_talk_with(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repos["kyutai/mimi"] = server.repos[REPO]
    folder = hub.resolve("kyutai/mimi", hub.CODEC_FILES)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(CheckpointError, match="Mimi alone, which `personaplex codec` takes"):
        hub.resolve("kyutai/mimi")
    # A copy of it that nobody knows says of itself what it is.
    server.repos[REPO].files["config.json"] = b'{"model_type": "mimi"}'
    assert (hub.resolve(REPO, hub.CODEC_FILES) / "model.safetensors").is_file()


def test_offline_what_is_there_is_used_and_what_is_not_is_said(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, REPO, known())
    folder = hub.resolve(REPO, hub.CODEC_FILES)
    other = dict(server.repos)[REPO]
    server.repos["nobody/knows"] = other
    unknown = hub.resolve("nobody/knows")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    no_network(monkeypatch)
    assert hub.resolve(REPO, hub.CODEC_FILES) == folder
    assert hub.resolve("nobody/knows") == unknown
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        hub.resolve(REPO)


def test_a_full_disk_is_one_line(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    monkeypatch.setitem(SOURCES, REPO, known())
    with pytest.raises(CheckpointError, match=r"the disk is full: .* make room, or let HF_HOME name"):
        hub.resolve(REPO)


def test_the_standard_variables_are_obeyed(server: Hub, tmp_path: Path) -> None:
    """A process of its own: HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are read when Python starts."""
    server.repos[REPO].token = "hf_accepted"
    program = f"from personaplex.checkpoint.hub import resolve; print(resolve({REPO!r}))"

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url, **variables}
        environment.pop("HF_HUB_CACHE", None)
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )

    done = run(HF_TOKEN="hf_accepted")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home" / "hub")
    server.asked.clear()
    again = run(HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout and server.asked == []


def test_the_known_files_of_the_7b_are_those_of_the_specification() -> None:
    source = SOURCES["nvidia/personaplex-7b-v1"]
    assert source.gated and source.revision == "fdaf4090a61cb315c138a1faee287ffd6c716309"
    assert sum(file.n_bytes for file in source.files.values()) == 16_742_874_000 + 384_644_900 + 552_778 + 6_095_521
    assert all(len(file.sha256 or "") == 64 for file in source.files.values())
    for source in SOURCES.values():
        assert source.licence.url.startswith("https://")
