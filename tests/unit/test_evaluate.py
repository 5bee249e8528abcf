from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from personaplex.dialogue import agent_lines, grammar, phrasings
from personaplex.errors import UsageError
from personaplex.evaluate.nano import conversation, outcome, table
from personaplex.evaluate.nano.conversation import Conversation, User, converse
from personaplex.evaluate.nano.items import Item, Turn, load_clips, load_items, make_items, save_items
from personaplex.evaluate.nano.recogniser import network, word_loop
from personaplex.evaluate.row import as_json, as_markdown, from_json, median, put_between, share
from personaplex.evaluate.statistics import ErrorRate, Share, median_interval, quantile, word_errors, words_of
from personaplex.model import PersonaPlex
from personaplex.speech import AGENTS, say
from personaplex.units import FRAME_SAMPLES
from tests.conftest import PARITY

LOUD, SILENT = -20, -90
TURN = Turn(
    "what is the price", "price", 0, 20 * FRAME_SAMPLES, 0, 20 * FRAME_SAMPLES, expected=("price", ("lamp", "ten"))
)


def test_wilson_intervals_are_the_published_ones() -> None:
    assert Share(10, 10).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert Share(0, 200).interval == pytest.approx((0.0, 0.0188), abs=1e-4)
    assert Share(190, 200).interval == pytest.approx((0.9104, 0.9726), abs=1e-4)
    assert Share(0, 0).interval == (0.0, 1.0)


def test_word_errors() -> None:
    assert word_errors(["a", "b", "c"], ["a", "x", "c", "d"]) == 2
    assert word_errors([], ["a"]) == 1
    rate = ErrorRate.over([(["a", "b"], ["a", "b"]), (["a", "b"], ["a"])])
    assert (rate.value, rate.n) == (0.25, 2)
    assert rate.interval[0] == 0.0 and rate.interval[1] > 0.25
    with_more = ErrorRate.over([(["a", "b"], ["a", "b"]), (["a", "b"], ["a"]), ([], ["uh", "a"])])
    assert (with_more.value, with_more.n) == (0.75, 3) and 0.75 < with_more.interval[1] < math.inf
    assert math.isnan(ErrorRate.over([([], ["a"])]).value)
    assert words_of("It's Ten, 'ten'!") == ["it's", "ten", "'ten'"]


def test_no_word_errors_among_few_are_not_none_among_all() -> None:
    """1 - 0.05^(1/n): the exact bound of none in n, of which three in n is the rule of thumb."""
    perfect = ErrorRate.over([(["a", "b"], ["a", "b"])] * 30)
    assert perfect.value == 0 and perfect.interval == pytest.approx((0.0, 0.0950), abs=1e-4)
    assert ErrorRate.over([(["a"], ["a"])] * 300).interval[1] == pytest.approx(3 / 300, rel=0.01)


def test_quantiles_and_the_medians_interval() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([1, 2, math.inf], 0.5) == 2
    assert median_interval(list(range(100))) == (40, 60)
    assert median_interval([1, 2, 3, 4, 5, 6]) == (1, 6)
    assert all(map(math.isnan, median_interval([1, 2, 3, 4, 5]))), "the least and the largest hold it 15 times of 16"
    assert math.isnan(quantile([], 0.5))


def item(*turns: Turn, **changes: object) -> Item:
    made = Item(1, "trained", "fact", "VOICE0", None, False, turns or (TURN,))
    return replace(made, **changes)  # type: ignore[arg-type]


def talk(words: dict[int, str], level: list[int] | None = None, began: tuple[int, ...] = (10,)) -> Conversation:
    level = level or [SILENT] * 120
    text = tuple((frame, f" {word}") for frame, word in words.items())
    return Conversation(1, began, text, tuple(level), np.zeros((len(level), 8), np.uint16), np.zeros(0, np.int16), 0)


def test_an_answer_may_begin_with_the_users_last_frame_but_not_before() -> None:
    assert not outcome.is_premature(item(), talk({29: "ten"}), 0)
    assert outcome.is_premature(item(), talk({28: "ten"}), 0)
    assert not outcome.is_premature(item(), talk({20: "mm", 21: "hmm", 33: "ten"}), 0)
    assert outcome.delay_ms(item(), talk({33: "ten"}), 0) == 240


def test_an_answer_that_takes_longer_than_three_seconds_never_came() -> None:
    assert not outcome.is_missing(item(), talk({68: "ten"}), 0)
    assert outcome.is_missing(item(), talk({69: "ten"}), 0)
    assert outcome.is_missing(item(), talk({}), 0)
    assert outcome.is_missing(item(), talk({3: "hello"}), 0)


def test_words_are_joined_from_pieces_and_belong_to_their_turn() -> None:
    spoken = replace(
        talk({}, began=(10, 60)), text=((2, "hel"), (3, "lo"), (31, " it is"), (33, " te"), (34, "n"), (70, " no"))
    )
    assert outcome.words(spoken) == [(2, "hello"), (31, "it"), (31, "is"), (33, "ten"), (70, "no")]
    assert outcome.answer(spoken, 0) == "it is ten"
    assert outcome.answer(spoken, 1) == "no"


def test_how_long_it_takes_to_stop() -> None:
    level = [LOUD] * 15 + [SILENT, LOUD] + [SILENT] * 103
    # A gap of one frame within a word is no stop.
    assert outcome.stop_ms(item(), talk({}, level), 0) == 7 * 80
    later = replace(TURN, speech_begin=960)
    assert outcome.stop_ms(item(later), talk({}, level), 0) == 7 * 80 - 40
    assert outcome.stop_ms(item(), talk({}), 0) is None
    assert outcome.stop_ms(item(), talk({}, [LOUD] * 120), 0) == math.inf


def test_a_greeting_is_no_answer_to_silence_but_what_follows_is() -> None:
    assert outcome.speaks_unasked(item(), talk({5: "hello"}))
    assert not outcome.speaks_unasked(item(greets=True), talk({5: "hello", 15: "there"}))
    assert outcome.speaks_unasked(item(greets=True), talk({5: "hello", 30: "sorry"}))
    assert not outcome.speaks_unasked(item(greets=True), talk({}))


def test_a_user_waits_for_the_greeting_and_interrupts_in_mid_answer() -> None:
    short = replace(TURN, stop=2 * FRAME_SAMPLES)
    user = User(item(short, replace(short, interrupts=True, delay=3), greets=True, listen=4), np.ones(4000, np.int16))
    for frame in range(60):
        user.say()
        user.hear(quiet=not (10 <= frame < 20 or frame >= 40))
        if user.done:
            break
    assert user.began == [32, 43]
    assert frame == 47


@pytest.fixture(scope="module")
def small_test() -> tuple[list[Item], np.ndarray]:
    return make_items(2, 3, ("phrasing", "pause", "recall"))


def test_items_depend_on_the_seed_alone(small_test: tuple[list[Item], np.ndarray], tmp_path: Path) -> None:
    items, clips = small_test
    again, same = make_items(2, 3, ("recall", "phrasing"))
    assert again == [
        replace(i, turns=j.turns) for i, j in zip((i for i in items if i.test != "pause"), again, strict=True)
    ]
    assert [t.text for i in again for t in i.turns] == [t.text for i in items if i.test != "pause" for t in i.turns]
    assert len(same) < len(clips)
    save_items(tmp_path, items, clips)
    assert load_items(tmp_path) == items
    assert np.array_equal(load_clips(tmp_path), clips)


def test_held_out_phrasings_are_held_out(small_test: tuple[list[Item], np.ndarray]) -> None:
    for made in small_test[0]:
        turn = made.turns[-1]
        split = "heldout" if made.test == "phrasing" else "train"
        first = {text.split("{")[0] for text in phrasings(turn.intent, split)}  # type: ignore[arg-type]
        assert any(turn.text.startswith(begin) for begin in first)
        assert turn.stop <= len(small_test[1]) and 0 <= turn.speech_begin < turn.speech_end <= turn.stop - turn.start


def test_a_pause_is_silence_between_two_words(small_test: tuple[list[Item], np.ndarray]) -> None:
    items, _ = small_test
    for made in items:
        if made.test == "pause":
            begin, end = made.turns[0].pause or (0, 0)
            assert 12_000 <= end - begin <= 28_800
            assert made.turns[0].speech_begin < begin < end < made.turns[0].speech_end


def test_conversations_run_in_batches_and_are_kept(
    small_test: tuple[list[Item], np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "LONGEST_WAIT", 3)  # a model of random weights is never quiet
    items, clips = small_test
    model = PersonaPlex.from_pretrained(PARITY)
    turns = [replace(i.turns[0], stop=i.turns[0].start + 4 * FRAME_SAMPLES, delay=1) for i in items[:2]]
    changes = {"voice": "VOICE0", "prompt": "be kind", "greets": False, "listen": 3, "listened": True}
    short = [replace(i, turns=(turn,), **changes) for i, turn in zip(items[:2], turns, strict=True)]  # type: ignore[arg-type]
    talks = list(converse(model, short, clips, batch=2))
    assert sorted(t.number for t in talks) == [i.number for i in short]
    conversation.save(tmp_path, talks)
    kept = conversation.load(tmp_path)
    for made in talks:
        assert len(made.codes) == len(made.level)
        assert len(made.pcm) == (len(made.level) - made.pcm_from) * FRAME_SAMPLES
        read = kept[made.number]
        assert replace(read, codes=made.codes, pcm=made.pcm) == made
        assert np.array_equal(read.codes, made.codes)
        assert np.abs(read.pcm.astype(int) - made.pcm).max() <= 1
    with pytest.raises(UsageError, match="generate"):
        conversation.load(tmp_path / "nowhere")


def test_a_network_shares_beginnings_and_reads_rules() -> None:
    made = network("#JSGF V1.0;\ngrammar g;\n<n> = one | two three;\npublic <a> = say <n> now | say it;\n")
    assert sorted(word for _, _, word in made.arcs) == ["", "it", "now", "one", "say", "three", "two"]
    assert sum(word == "say" for _, _, word in made.arcs) == 1
    assert word_loop(["a"]).arcs == [(0, 1, "a"), (1, 1, "a"), (1, 2, "")]
    with pytest.raises(ValueError, match="public"):
        network("<n> = one;")


def test_perfect_answers_are_right_as_heard_and_shuffled_ones_are_wrong() -> None:
    pytest.importorskip("pocketsphinx")
    from personaplex.evaluate.nano.recogniser import hear_all

    answers = [("price", ("lamp", "forty two")), ("opens", ("eight",)), ("capital", ("france", "paris"))]
    items, talks, sounds = [], {}, []
    for number, (intent, key) in enumerate(answers):
        text = agent_lines(intent, key)[0].text
        asked = replace(TURN, intent=intent, expected=(intent, key))
        items.append(item(asked, number=number, listened=True, group="fact"))
        talks[number] = replace(talk({32 + i: word for i, word in enumerate(text.split())}), number=number)
        sounds.append(say(AGENTS["NATF0"], text).pcm)
    heard = dict(enumerate(hear_all(sounds, network(grammar()), processes=1)))
    rows = {row.what: row for row in table.rows(items, talks, heard)}
    assert rows["trained phrasing, trained voices: answer right"].value == 1
    assert rows["trained phrasing: answer right as heard"].value == 1
    assert rows["the recogniser hears the text that the model meant: WER"].value == 0
    assert rows["the same grammar on shuffled answers: right as heard"].value == 0
    assert rows["trained phrasing: never answers"].met is True


def test_the_table_stands_between_its_markers() -> None:
    row = share("asked", [True] * 3 + [False], 0.9)
    markdown = as_markdown([row, median("stops", [math.inf], 400)])
    assert as_markdown([replace(row, what="seven|nine\n?")]).splitlines()[2:][0].startswith("| seven\\|nine ? |")
    assert "| asked | ≥ 0.900 | 0.750 (missed) | 0.301 to 0.954 | 4 |" in markdown
    assert "never (missed)" in markdown
    page = "# Card\n<!-- numbers -->\nold\n<!-- /numbers -->\nmore\n"
    assert put_between(page, "new") == "# Card\n<!-- numbers -->\nnew\n<!-- /numbers -->\nmore\n"
    with pytest.raises(UsageError, match="numbers"):
        put_between("# Card", "new")
    assert from_json(as_json([row])) == [row]
