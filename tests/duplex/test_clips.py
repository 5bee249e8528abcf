"""The benchmark's folders, however they were unpacked."""

from __future__ import annotations

from pathlib import Path

import pytest

from personaplex.errors import UsageError
from personaplex.evaluate.duplex.clips import Clip, find_clips, task_of
from tests.duplex.folders import interrupt, overlap, put, turn


@pytest.mark.parametrize(
    "name, task",
    [
        ("candor_pause_handling", "pause"),
        ("synthetic_pause_handling", "pause"),
        ("icc_backchannel", "backchannel"),
        ("candor_turn_taking", "turn"),
        ("synthetic_user_interruption", "interruption"),
        ("user_interruption", "user interruption"),
        ("user_backchannel", "user backchannel"),
        ("talking_to_other", "talking to other"),
        ("background_speech", "background speech"),
        ("Smooth Turn-Taking", "turn"),
        ("recordings", None),
    ],
)
def test_a_subsets_name_tells_its_task(name: str, task: str | None) -> None:
    assert task_of(name) == task


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("full-duplex-bench")
    for number in ("1", "2", "10"):
        put(root / "v1.0" / "candor_turn_taking" / number, turn(2.0))
    put(root / "v1.0" / "user_interruption" / "1", interrupt(2.0, 3.0))
    put(root / "v1.5" / "user_interruption" / "1", overlap(4.0, 5.0))
    put(root / "__MACOSX" / "candor_turn_taking" / "1")
    put(root / ".git" / "icc_backchannel" / "1")
    (root / "v1.0" / "candor_turn_taking" / "README.md").write_text("read me")
    (root / "v1.0" / "candor_turn_taking" / "empty").mkdir()
    return root


def test_subsets_are_found_at_any_depth_and_clips_in_order(benchmark: Path) -> None:
    clips = find_clips(benchmark)
    assert [(clip.id, clip.task) for clip in clips] == [
        ("candor_turn_taking/1", "turn"),
        ("candor_turn_taking/2", "turn"),
        ("candor_turn_taking/10", "turn"),
        ("candor_turn_taking/empty", "turn"),
        ("v1.0/user_interruption/1", "interruption"),
        ("v1.5/user_interruption/1", "user interruption"),
    ]
    assert all(clip.results == clip.folder for clip in clips)
    assert clips[0].user_end() == 2.0
    assert clips[4].interruption() == (2.0, 3.0)
    assert clips[5].event() == (4.0, 5.0)


def test_a_subset_alone_and_one_of_another_name(benchmark: Path, tmp_path: Path) -> None:
    alone = find_clips(benchmark / "v1.0" / "candor_turn_taking")
    assert [clip.name for clip in alone] == ["1", "2", "10", "empty"]
    put(tmp_path / "mine" / "a", turn(1.0))
    with pytest.raises(UsageError, match="--task"):
        find_clips(tmp_path)
    assert [clip.id for clip in find_clips(tmp_path, task="turn")] == ["mine/a"]


def test_results_may_lie_elsewhere_even_among_the_clips(benchmark: Path, tmp_path: Path) -> None:
    clips = find_clips(benchmark, tmp_path / "out")
    assert clips[0].results == tmp_path / "out" / "candor_turn_taking" / "1"
    inside = tmp_path / "data"
    put(inside / "candor_turn_taking" / "1", turn(1.0))
    put(inside / "out" / "candor_turn_taking" / "1")
    assert [clip.results for clip in find_clips(inside, inside / "out")] == [
        inside / "out" / "candor_turn_taking" / "1"
    ]
    assert [clip.results for clip in find_clips(inside / "candor_turn_taking", inside)] == [
        inside / "candor_turn_taking" / "1"
    ]


def test_only_some_tasks(benchmark: Path) -> None:
    assert {clip.task for clip in find_clips(benchmark, only=["interruption"])} == {"interruption"}
    with pytest.raises(UsageError, match="has clips of interruption, turn, user interruption only"):
        find_clips(benchmark, only=["pause"])


def test_what_is_no_benchmark_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        find_clips(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no clips"):
        find_clips(tmp_path)
    (tmp_path / "candor_turn_taking").mkdir()
    with pytest.raises(UsageError, match="holds no clips"):
        find_clips(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '[{"timestamp": [1]}]', '[{"timestamp": ["a", 2]}]', '[{"time": 2}]'])
def test_an_annotation_that_says_nothing_is_told(tmp_path: Path, text: str) -> None:
    clip = Clip("candor_turn_taking", "turn", "1", tmp_path, tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        clip.user_end()
    (tmp_path / "turn_taking.json").write_text(text)
    with pytest.raises(UsageError, match="turn_taking"):
        clip.user_end()
