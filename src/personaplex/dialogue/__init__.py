"""What the small model can talk about: facts, role prompts, lines of user and agent, right answers."""

from personaplex.dialogue.facts import Facts, assistant_prompt, role_prompt, sample_address, sample_facts
from personaplex.dialogue.hearing import grammar, is_right, key_words, vocabulary
from personaplex.dialogue.likeness import is_new
from personaplex.dialogue.line import (
    Answer,
    Line,
    Memory,
    agent_line,
    agent_lines,
    answer_key,
    phrasings,
    remember,
    user_line,
)
from personaplex.dialogue.plan import agent_plan, invented_facts, own_plan, user_plan
from personaplex.dialogue.world import USER_INTENTS, USER_KEYS, VALUES, Key, Split

__all__ = [
    "USER_INTENTS",
    "USER_KEYS",
    "VALUES",
    "Answer",
    "Facts",
    "Key",
    "Line",
    "Memory",
    "Split",
    "agent_line",
    "agent_lines",
    "agent_plan",
    "answer_key",
    "assistant_prompt",
    "grammar",
    "invented_facts",
    "is_new",
    "is_right",
    "key_words",
    "own_plan",
    "phrasings",
    "remember",
    "role_prompt",
    "sample_address",
    "sample_facts",
    "user_line",
    "user_plan",
    "vocabulary",
]
