"""From one model folder to another: tensor by tensor, quantised on the way, in a folder of its own until it is whole.

The folder is made as `.NAME.unfinished` beside the one that is wanted, and renamed at the end. After an interruption
the same conversion goes on there: files that are whole, as their hashes say, are kept.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from personaplex.checkpoint.card import Quality, card
from personaplex.checkpoint.folder import LM_INDEX, ModelFolder
from personaplex.checkpoint.layout import LM_FILE
from personaplex.checkpoint.load import expected_tensors
from personaplex.checkpoint.packing import SCALE_TYPE, pack, packed_names, packing_of, unpacked
from personaplex.checkpoint.rules import lm_rules, mimi_rules
from personaplex.checkpoint.store import write_config
from personaplex.checkpoint.tensors import Entry, TensorFile
from personaplex.checkpoint.voices import save_voice
from personaplex.checkpoint.writer import DTYPES, TensorWriter, sha256
from personaplex.config import FileHash, ModelConfig, Packing, Provenance, QuantizationConfig
from personaplex.errors import CheckpointError, OutputError
from personaplex.files import whole_file
from personaplex.units import N_CODEBOOKS

SHARD_BYTES = 2_000_000_000
"""Of a file of weights at most, unless one tensor is larger: what an interruption can cost."""

CARD_FILE, TRIMMED_CODEC, PLAN_FILE = "README.md", "mimi.safetensors", "conversion.json"
Progress = Callable[[int, int], None]
Shard = tuple[int, list["Weight"]]
"""The weights of one file, and their bytes."""


@dataclass(frozen=True)
class Weight:
    """One tensor of the reference's that the result keeps, `shape` of it, and how it is stored before and after."""

    name: str
    shape: tuple[int, ...]
    is_matrix: bool
    before: Packing | None
    after: Packing | None

    def entries(self, file: TensorFile) -> dict[str, Entry]:
        """What the result holds of it, by name."""
        if self.after is None:
            kept, plain = file.entries[self.name].dtype, "BF16" if self.is_matrix else "F32"
            return {self.name: Entry(kept if kept in ("BF16", "F16") else plain, self.shape)}
        rows, columns = self.shape
        codes, scales, biases = packed_names(self.name)
        dtype = file.entries[scales].dtype if self.is_copied(file) else DTYPES[SCALE_TYPE]
        groups = Entry(dtype, (rows, columns // self.after.group_size))
        return {codes: Entry("U32", (rows, columns * self.after.bits // 32)), scales: groups, biases: groups}

    def is_copied(self, file: TensorFile) -> bool:
        """Whether it is packed already as it shall be; quantising it again would only add to its error."""
        if self.before is None or self.before != self.after:
            return False
        return {file.entries[name].dtype for name in packed_names(self.name)[1:]} in ({"F16"}, {"BF16"}, {"F32"})

    def read(self, file: TensorFile) -> dict[str, mx.array]:
        """Its arrays for the result. Raises CheckpointError for values that are not finite."""
        rows = slice(self.shape[0])
        if self.before is None:
            value = file.take(self.name)[rows]
        else:
            codes, scales, biases = (file.take(name)[rows] for name in packed_names(self.name))
            if self.is_copied(file):
                return dict(zip(packed_names(self.name), (codes, scales, biases), strict=True))
            value = unpacked((codes, scales, biases), self.before)
        if not bool(mx.isfinite(value).all().item()):
            raise CheckpointError(f"{file.path}: the tensor {self.name!r} holds values that are not finite")
        if self.after:
            return dict(zip(packed_names(self.name), pack(value, self.after), strict=True))
        wanted = self.entries(file)[self.name].dtype
        return {self.name: value.astype(next(dtype for dtype, name in DTYPES.items() if name == wanted))}


def result_config(
    source: ModelConfig, quantization: QuantizationConfig | None, *, keep_user_steps: bool, trim_codec: bool
) -> ModelConfig:
    """What the result is made of. Raises ConfigError when groups do not divide the rows of a tensor."""
    lm = source.lm if keep_user_steps else dataclasses.replace(source.lm, dep_q=N_CODEBOOKS)
    quantizer = dataclasses.replace(source.mimi.quantizer, n_q=source.mimi.num_codebooks)
    mimi = dataclasses.replace(source.mimi, quantizer=quantizer) if trim_codec else source.mimi
    expected_tensors(lm_rules(lm, lm.dep_q), quantization)
    return dataclasses.replace(source, lm=lm, mimi=mimi, quantization=quantization, provenance=None)


def check_absent(out: Path) -> None:
    """Raise OutputError when there is something at `out`, or no folder to make it in."""
    if out.exists():
        raise OutputError(f"{out} is there already; name another folder, or remove it")
    if not out.parent.is_dir():
        raise OutputError(f"cannot write {out}: the folder {out.parent} does not exist; create it or choose another")


def convert(
    source: ModelFolder,
    out: Path,
    config: ModelConfig,
    about: Provenance,
    *,
    on_progress: Progress = lambda *_: None,
    measure: Callable[[Path], Quality] = lambda _: Quality(),
) -> Quality:
    """Write the model of `source` as `config` (of `result_config`) says to the folder `out`, whole or not at all.

    `about` tells where it came from; hashes are added. `on_progress(done, total)` counts bytes of weights. `measure`
    is given the finished folder before it has its name; what it finds goes into the card, and is returned.
    Raises CheckpointError or ConfigError for a source that is not what it says, OutputError when there is something at
    `out`, when the disk is full or too small, and when the same conversion runs elsewhere.
    """
    check_absent(out)
    file, lm = source.open_lm(), source.config.lm
    file.check(expected_tensors(lm_rules(lm, lm.dep_q), source.config.quantization))
    TensorFile(source.codec_file).check(expected_tensors(mimi_rules(source.config.mimi)))
    source.load_tokenizer()
    voices = [source.voices.load(name) for name in source.voices.names()]
    source.verify()
    shards = _shards(_weights(source.config, config), file)
    identity = json.dumps({"fingerprint": source.fingerprint, "config": config.to_json(), "about": vars(about)})
    with _workplace(out, identity) as work:
        work.check_space(sum(size for size, _ in shards) + source.codec_file.stat().st_size)
        _write_weights(work, shards, file, on_progress)
        _write_codec(work, source, config)
        work.copy(source.text_file)
        if voices:
            (work.path / "voices").mkdir(exist_ok=True)
        for voice in voices:
            save_voice(work.path / "voices" / f"{voice.name}.safetensors", voice)
            work.add(f"voices/{voice.name}.safetensors")
        sizes = {name: (work.path / name).stat().st_size for name in work.hashes}
        hashes = tuple(FileHash(name, sizes[name], work.hashes[name]) for name in sorted(sizes))
        whole = dataclasses.replace(config, provenance=dataclasses.replace(about, files=hashes))
        write_config(work.path / "config.json", whole)
        made = ModelFolder(work.path)
        made.open_lm().check(expected_tensors(lm_rules(config.lm, config.lm.dep_q), config.quantization))
        quality = measure(work.path)
        work.write(CARD_FILE, card(whole, quality))
        work.deliver()
    return quality


def _write_weights(work: _Workplace, shards: list[Shard], file: TensorFile, on_progress: Progress) -> None:
    done, total = 0, sum(size for size, _ in shards)
    index: dict[str, str] = {}
    for number, (size, weights) in enumerate(shards, 1):
        name = LM_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        entries = {key: entry for weight in weights for key, entry in weight.entries(file).items()}
        index |= dict.fromkeys(entries, name)
        if work.holds(name):
            done += size
            on_progress(done, total)
            continue
        with work.writing(name, entries) as writer:
            for weight in weights:
                for key, array in weight.read(file).items():
                    writer.put(key, array)
                    done += entries[key].n_bytes
                    on_progress(done, total)
    if len(shards) > 1:
        work.write(LM_INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1))


def _write_codec(work: _Workplace, source: ModelFolder, config: ModelConfig) -> None:
    """A copy under the same name, so that it is recognised; or what `config` keeps of it."""
    if config.mimi == source.config.mimi:
        work.copy(source.codec_file)
        return
    file = TensorFile(source.codec_file)
    kept = {name: file.take(name) for name in expected_tensors(mimi_rules(config.mimi))}
    with work.writing(TRIMMED_CODEC, {n: Entry(DTYPES[a.dtype], a.shape) for n, a in kept.items()}) as writer:
        for name, array in kept.items():
            writer.put(name, array)


def _weights(before: ModelConfig, after: ModelConfig) -> Iterator[Weight]:
    for rule in lm_rules(after.lm, after.lm.dep_q):
        packing = packing_of(rule, after.quantization)
        for name, shape in rule.sources.items():
            stored = before.quantization.of(rule.part, name) if before.quantization and rule.part else None
            yield Weight(name, shape, rule.part is not None, stored, packing)


def _shards(weights: Iterator[Weight], file: TensorFile) -> list[Shard]:
    """The weights in parts of at most SHARD_BYTES."""
    shards: list[Shard] = []
    for weight in weights:
        size = sum(entry.n_bytes for entry in weight.entries(file).values())
        if shards and shards[-1][0] + size <= SHARD_BYTES:
            shards[-1] = (shards[-1][0] + size, [*shards[-1][1], weight])
        else:
            shards.append((size, [weight]))
    return shards


class _Workplace:
    """The unfinished folder: its files, and the hashes of those that are whole."""

    def __init__(self, path: Path, out: Path) -> None:
        self.path, self._out = path, out
        self._journal = path / "whole.json"
        self.hashes: dict[str, str] = {}
        self._before: dict[str, str] = {}
        with suppress(OSError, ValueError, TypeError):  # not there yet, or damaged: then nothing counts as whole
            self._before = dict(json.loads(self._journal.read_text(encoding="utf-8")))

    def holds(self, name: str) -> bool:
        """Whether an earlier attempt left the file `name` whole; it is read and compared."""
        path = self.path / name
        if name not in self._before or not path.is_file() or sha256(path) != self._before[name]:
            return False
        self.hashes[name] = self._before[name]
        return True

    @contextmanager
    def writing(self, name: str, entries: Mapping[str, Entry]) -> Iterator[TensorWriter]:
        """A file of tensors, which counts once it was read back."""
        with TensorWriter(self.path / name, entries) as writer:
            yield writer
            self._count(name, writer.finish())

    def copy(self, source: Path) -> None:
        """A copy of the file `source`, under its name."""
        shutil.copyfile(source, self.path / source.name)
        self.add(source.name)
        if self.hashes[source.name] != sha256(source):
            raise OutputError(f"{self.path / source.name} is not read back as it was written; is the disk sound?")

    def write(self, name: str, text: str) -> None:
        """A small file of text."""
        with whole_file(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def add(self, name: str) -> None:
        """Count a file that was written otherwise."""
        self._count(name, sha256(self.path / name))

    def check_space(self, n_bytes: int) -> None:
        """Raise OutputError when there is less room than `n_bytes`, less what is there already."""
        there = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.path).free
        if free < n_bytes - there:
            raise OutputError(
                f"{self._out} needs {n_bytes / 1e9:.2f} GB, and {(free + there) / 1e9:.2f} GB are free there; make room"
            )

    def deliver(self) -> None:
        """Give the folder its name, and leave nothing in it but the model."""
        for path in self.path.iterdir():
            if path.is_file() and path.name not in {*self.hashes, LM_INDEX, "config.json", CARD_FILE, PLAN_FILE}:
                path.unlink()
        if self._out.exists():
            raise OutputError(f"{self._out} has come into being meanwhile; the model is whole in {self.path}")
        self.path.rename(self._out)
        (self._out / PLAN_FILE).unlink()  # the last, because it is what keeps others out

    def _count(self, name: str, digest: str) -> None:
        self.hashes[name] = digest
        self.write(self._journal.name, json.dumps({**self._before, **self.hashes}))


@contextmanager
def _workplace(out: Path, identity: str) -> Iterator[_Workplace]:
    """The unfinished folder of `out`, ours alone; what another conversion (`identity`) left there is removed."""
    path = out.parent / f".{out.name}.unfinished"
    if path.is_dir() and any(path.iterdir()) and not (path / PLAN_FILE).exists():
        raise OutputError(f"{path} is needed to work in, and is not ours; move it away, or name another folder")
    try:
        path.mkdir(exist_ok=True)
        with (path / PLAN_FILE).open("a+", encoding="utf-8") as plan:
            try:
                fcntl.flock(plan, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(f"{out} is being made by another process; wait for it, or end it") from None
            plan.seek(0)
            if plan.read() != identity:
                _clear(path, keep=PLAN_FILE)
                plan.truncate(0)
                plan.write(identity)
                plan.flush()
            yield _Workplace(path, out)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}"
            + ("; make room and run the same command again: what is whole is kept" if full else "")
        ) from error


def _clear(folder: Path, keep: str) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != keep:
            path.unlink()
