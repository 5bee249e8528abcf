"""From a voice and a role to what the model makes of them: kept, or read piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path

from personaplex.conversation import Settings
from personaplex.engine.generator import Prefix
from personaplex.engine.prompt import Prompt
from personaplex.runtime.device import Device
from personaplex.runtime.disk import Disk
from personaplex.runtime.work import Pause


class PromptReader:
    """Reads prompts for conversations. `check` is called after each pause, and raises when nobody wants it any more."""

    def __init__(self, device: Device, disk: Disk) -> None:
        self._device = device
        self._disk = disk

    def read(self, settings: Settings, check: Callable[[], None]) -> Generator[Pause, None, Prefix | None]:
        """What the model makes of a voice and a role; None where there is neither."""
        prompt = yield from self.compose(settings, check)
        kept = self._device.prefixes
        if not prompt.n_frames:
            return None
        key = kept.key(prompt)
        read = kept.get(key)
        if read is None and kept.folder is not None:
            fetched = self._disk.do(lambda: kept.fetch(key))
            yield fetched
            check()
            read = fetched.result() or kept.get(key)  # somebody else may have read it meanwhile
        if read is None:
            for prefix in self._device.reading(prompt):
                read = prefix
                yield None
                check()
            assert read is not None
            whole = read
            self._disk.offer(lambda: kept.write(key, whole))
        kept.keep(key, read)
        return read

    def compose(self, settings: Settings, check: Callable[[], None]) -> Generator[Pause, None, Prompt]:
        """Voice and role as a prompt; a recording is read by the disk's thread, and encoded piece by piece."""
        check()
        voice = settings.voice
        if isinstance(voice, str | Path) and voice and self._device.model.is_clip(voice):
            path = Path(voice)
            clip = self._disk.do(lambda: self._device.model.read_clip(path))
            yield clip
            check()
            for found in self._device.encoding(path, clip.result()):
                voice = found
                yield None
                check()
        return self._device.compose(dataclasses.replace(settings, voice=voice))
