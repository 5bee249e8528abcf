"""OpenAI's Agents SDK, the real one in Node, as a caller: speech, tools, interruptions and another agent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from personaplex.by_turns import Call
from tests.cascade_engines import Engines

ROOT = Path(__file__).parents[3]
SDK = ROOT / ".agents-sdk"
AT_WORK = Path(__file__).with_name("agents_at_work.mjs")


def at_work(address: str, scenario: str) -> dict[str, Any]:
    """What tests/server/realtime/agents_at_work.mjs prints."""
    assert (SDK / "stamp").exists(), "`make packages` (or scripts/agents-sdk) makes .agents-sdk"
    url = f"{address}/v1/realtime?model=gpt-realtime"
    run = subprocess.run(["node", AT_WORK, SDK, url, scenario], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert found["errors"] == []
    return found


def texts(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (item["role"], "".join(part.get("text") or part.get("transcript") or "" for part in item["content"]).strip())
        for item in found["history"]
        if item["type"] == "message"
    ]


def test_a_spoken_question(address: str, engines: Engines) -> None:
    engines.recogniser.said = ["what time is it"]
    found = at_work(address, "speak")
    assert texts(found) == [("user", "what time is it"), ("assistant", "Good day. It is noon.")]
    assert found["audio_bytes"] >= 2 * 24_000
    assert engines.thinker.asked[0][0].content.startswith("You are Clara. Be brief.")


def test_a_tool_is_called_by_the_sdk_and_its_result_is_spoken(address: str, engines: Engines) -> None:
    engines.thinker.tokens = [Call("call_1", "clock", '{"zone": "UTC"}'), "It is noon."]
    found = at_work(address, "tools")
    assert found["tools"] == ["UTC"]
    assert texts(found) == [("user", "What time is it?"), ("assistant", "It is noon.")]
    (offered,) = engines.thinker.options[0]["tools"]
    assert offered.name == "clock" and offered.parameters["properties"]["zone"] == {"type": "string"}
    assert engines.thinker.asked[1][-1].content == "twelve o'clock"


def test_an_interruption_cancels_and_truncates(address: str, engines: Engines) -> None:
    engines.thinker.tokens = ["one two three four five six seven eight nine ten. "]
    found = at_work(address, "interrupt")
    assert found["interrupted"] == 1 and "conversation.item.truncated" in found["events"]
    role, said = texts(found)[-1]
    assert role == "assistant" and "ten" not in said and len(said.split()) <= 4


def test_another_agent_takes_over(address: str, engines: Engines) -> None:
    found = at_work(address, "handoff")
    assert texts(found)[-1] == ("assistant", "Good day. It is noon.")
    assert engines.thinker.asked[0][0].content.startswith("You are Max.")
