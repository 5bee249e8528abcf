"""The protocol in front of what it is for: the tiny duplex model, and the cascade's offline engines."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator

import numpy as np
import pytest

from personaplex.cascade.backend import Cascade
from personaplex.conversation import Audio
from personaplex.persona import Parts
from personaplex.server.service import Backends, Service
from personaplex.units import FRAME_SAMPLES
from tests.server.conftest import serving, settings
from tests.server.realtime.caller import Caller, calling

N_FRAMES = 12
F32 = {"format": {"type": "audio/pcm_f32le", "rate": 24_000}}


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, N_FRAMES * FRAME_SAMPLES).astype(np.float32)


def alone(service: Service, seed: int, prompt: str) -> np.ndarray:
    """What the model says to `noise(seed)` when nobody else is there."""
    with service.open("duplex", service.choose(voice="VOICE0", prompt=prompt, seed=seed), client="test") as call:
        call.feed(noise(seed))
        call.finish()
        return np.concatenate([event.pcm for event in call.events() if isinstance(event, Audio)])


def test_two_callers_get_what_each_would_get_alone_sample_for_sample(tiny_service: Service, tiny_server: str) -> None:
    roles = {3: "You are a pirate.", 4: "You are a teacher."}
    expected = {seed: alone(tiny_service, seed, role) for seed, role in roles.items()}
    address = tiny_server.replace("http", "ws", 1)
    with calling(address, "mode=duplex") as one, calling(address, "mode=duplex") as other:
        callers: dict[int, Caller] = {3: one, 4: other}
        for seed, caller in callers.items():
            audio = {"input": F32, "output": {**F32, "voice": "VOICE0"}}
            caller.say(
                "session.update",
                session={"type": "realtime", "instructions": roles[seed], "seed": seed, "audio": audio},
            )
            data = noise(seed).astype("<f4").tobytes()
            for at in range(0, len(data), 10_000):  # in pieces that no frame is a multiple of
                caller.say("input_audio_buffer.append", audio=b64encode(data[at : at + 10_000]).decode())
        for seed, caller in callers.items():
            while len(caller.sound) < 4 * N_FRAMES * FRAME_SAMPLES:
                caller.next()
            heard = np.frombuffer(
                b"".join(b64decode(e["delta"]) for e in caller.of("response.output_audio.delta")), "<f4"
            )
            assert np.array_equal(heard, expected[seed])
            assert caller.of("session.ready")[0]["seed"] == seed
    assert not np.array_equal(expected[3], expected[4])


@pytest.fixture(scope="module")
def offline() -> Iterator[str]:
    """The default cascade: PocketSphinx where there is one, the rule-based responder, flite."""
    parts = Parts(llm="responder", synthesiser="flite")
    cascade = Cascade(1, parts=parts)
    made = Service.of(Backends("cascade", None, cascade, {"cascade": 1}, parts=parts, close=cascade.close), settings())
    with serving(made) as http:
        yield http.replace("http", "ws", 1)
    made.close()


def test_the_offline_engines_answer_aloud(offline: str) -> None:
    with calling(offline, "") as caller:
        caller.say("session.update", session={"type": "realtime", "persona": "focused", "seed": 7, "temperature": 0})
        caller.type("What is two plus two?")
        made = caller.until("response.done")["response"]
    said = made["output"][0]["content"][0]["transcript"]
    assert made["status"] == "completed" and "is 4." in said
    assert np.abs(np.frombuffer(caller.sound, "<i2")).max() > 3000
