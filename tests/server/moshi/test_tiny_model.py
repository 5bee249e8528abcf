"""Callers of `/api/chat` and the real engine: each gets what they would get alone, and none waits for another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from personaplex.server.service import Service
from tests.server.moshi.caller import calling

PERSONAS = (
    {"voice_prompt": "VOICE0.pt", "text_prompt": "You are Ada.", "seed": 1, "text_temperature": 1.2},
    {"voice_prompt": "VOICE0", "text_prompt": "", "seed": 2, "audio_topk": 40},
)
N_FRAMES = 8


def sound(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, N_FRAMES * 1920).astype(np.float32)


def converse(address: str, who: int, begun: threading.Barrier | None = None) -> list[bytes]:
    with calling(address, PERSONAS[who]) as call:
        assert call.next() == b"\x00"
        if begun is not None:
            begun.wait(20)  # both have been let in
        return call.converse(sound(who))


def test_two_at_once_get_exactly_what_each_gets_alone(tiny_server: str) -> None:
    alone = [converse(tiny_server, who) for who in (0, 1)]
    assert alone[0] != alone[1]
    begun = threading.Barrier(2)
    with ThreadPoolExecutor(2) as callers:
        together = list(callers.map(lambda who: converse(tiny_server, who, begun), (0, 1)))
    assert together == alone, "every byte of every message"
    assert converse(tiny_server, 0) == alone[0], "whoever had the slot before"


def test_what_is_said_before_the_handshake_is_heard_as_if_it_were_said_after(tiny_server: str) -> None:
    expected = converse(tiny_server, 0)
    with calling(tiny_server, PERSONAS[0]) as early:
        early.say(sound(0))
        assert early.next() == b"\x00"
        early.hear(N_FRAMES)
        assert [message for message in expected if message[0] != 2] == [
            message for message in early.received if message[0] != 2
        ]


def test_the_third_is_refused_in_words_and_the_two_do_not_notice(tiny_server: str, tiny_service: Service) -> None:
    expected = converse(tiny_server, 0)
    with calling(tiny_server, PERSONAS[1]) as other, calling(tiny_server, PERSONAS[0]) as call:
        assert other.next() == call.next() == b"\x00"
        with calling(tiny_server) as third:
            assert third.end()[0] == 1013 and third.errors[0].startswith("all slots are taken: 2 of 2 in use")
        assert call.converse(sound(0)) == expected
    assert tiny_service.metrics.registry.get_sample_value("personaplex_refusals_total", {"code": "resource_exhausted"})


def test_a_role_that_does_not_fit_is_told_and_its_slot_comes_back(tiny_server: str) -> None:
    for _ in range(3):
        with calling(tiny_server, {"text_prompt": "word " * 900}) as call:
            code, reason = call.end()
            assert code in (1008, 1011) and call.errors and reason
    converse(tiny_server, 0)


def test_malformed_sound_of_one_caller_changes_nothing_for_another(tiny_server: str) -> None:
    expected = converse(tiny_server, 0)
    with calling(tiny_server, PERSONAS[0]) as call:
        assert call.next() == b"\x00"
        for frame in sound(0).reshape(-1, 1920):
            with calling(tiny_server, PERSONAS[1]) as vandal:
                vandal.socket.send(b"\x01OggS\x00" + bytes(60))
                assert vandal.end()[0] == 1007
            call.converse(frame)
        assert call.received == expected
