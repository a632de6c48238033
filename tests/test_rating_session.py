"""Which pair is next for whom and what a verdict records, on real stores and proposals (SPEC GWERN-1 to -3, -7, LMHP-18)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rayrlhf.intervals import wilson
from rayrlhf.preferences.check_config import ChecksConfig
from rayrlhf.preferences.rating_session import RatingSession, Ticket, Verdict, is_verdict, rater_name
from rayrlhf.preferences.records import Best, Comparison
from rayrlhf.preferences.self_agreement import self_agreement
from rayrlhf.preferences.store import RatingStore
from tests.rating_parts import RANDOM_PAIRS, Clock, session_of, store_of

BAD = ChecksConfig(blacklist=("bad",))


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def shown(session: RatingSession, rater: str) -> Ticket:
    ticket = session.ticket(rater)
    assert ticket is not None
    return ticket


def judge(session: RatingSession, rater: str, verdict: Verdict) -> Ticket:
    ticket = shown(session, rater)
    assert session.judge(rater, ticket.id, verdict)
    return ticket


def rate_all(session: RatingSession, rater: str, most: int = 1000) -> list[Ticket]:
    """Always for the text that comes first in the alphabet."""
    tickets: list[Ticket] = []
    while len(tickets) < most and (ticket := session.ticket(rater)) is not None:
        first, second = ticket.items
        assert session.judge(rater, ticket.id, "1" if first.text < second.text else "2")
        tickets.append(ticket)
    return tickets


@pytest.mark.parametrize(("verdict", "best"), [("1", 0), ("2", 1), ("3", "tie"), ("b", "both_bad")])
def test_a_verdict_is_in_the_store_before_the_next_pair(tmp_path: Path, verdict: Verdict, best: Best) -> None:
    """GWERN-1, GWERN-3: another connection reads it at once, with ids in the order shown, rater and seconds."""
    clock = Clock()
    store = store_of(tmp_path, texts(4))
    session = session_of(store, clock=clock)
    ticket = shown(session, "ann")
    clock.now += 7.5
    assert session.judge("ann", ticket.id, verdict)
    with RatingStore(store.path) as other:
        [record] = other.comparisons()
        named = other.items()
    assert record.id == ticket.id
    assert (record.best, record.source, record.rater) == (best, "manual", "ann")
    assert (record.seconds, record.extra, record.repeats) == (7.5, {}, "")
    assert [named[item].text for item in record.items] == [item.text for item in ticket.items]
    assert shown(session, "ann").id != ticket.id


def test_a_skip_is_kept_and_the_pair_never_comes_again(tmp_path: Path) -> None:
    """GWERN-1: a skip is no comparison."""
    store = store_of(tmp_path, texts(3))
    session = session_of(store)
    skipped = judge(session, "ann", "s")
    assert [(frozenset(skip.items), skip.rater) for skip in store.skips()] == [(skipped.pair, "ann")]
    assert store.comparisons() == []
    later = rate_all(session, "ann")
    assert len(later) == 2
    assert skipped.pair not in {ticket.pair for ticket in later}


def test_a_verdict_that_arrives_twice_counts_once(tmp_path: Path) -> None:
    """A double click or a form that is sent again; nor can it judge the pair that came after."""
    store = store_of(tmp_path, texts(4))
    session = session_of(store)
    ticket = judge(session, "ann", "1")
    assert not session.judge("ann", ticket.id, "1")
    shown(session, "ann")
    assert not session.judge("ann", ticket.id, "2")
    assert not session.judge("bob", ticket.id, "2")
    assert [record.best for record in store.comparisons()] == [0]


def test_twenty_threads_with_one_ticket_make_one_record(tmp_path: Path) -> None:
    store = store_of(tmp_path, texts(4))
    session = session_of(store)
    ticket = shown(session, "ann")
    accepted: list[bool] = []
    threads = [
        threading.Thread(target=lambda: accepted.append(session.judge("ann", ticket.id, "1"))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert accepted.count(True) == len(store.comparisons()) == 1


def test_a_late_verdict_counts_and_is_marked(tmp_path: Path) -> None:
    """GWERN-2: the time box, here 10 s."""
    clock = Clock()
    store = store_of(tmp_path, texts(4))
    session = session_of(store, clock=clock, seconds=10)
    for waited in (10.0, 10.5):
        ticket = shown(session, "ann")
        clock.now += waited
        assert shown(session, "ann") == ticket  # loading the page again starts no new time box
        assert session.seconds_left("ann") == 10 - waited
        assert session.judge("ann", ticket.id, "1")
    assert [(record.seconds, dict(record.extra)) for record in store.comparisons()] == [
        (10.0, {}),
        (10.5, {"late": True}),
    ]


def test_undo_takes_back_and_shows_that_pair_again(tmp_path: Path) -> None:
    """GWERN-1: u, several times over, and then what was on the screen before."""
    store = store_of(tmp_path, texts(5))
    session = session_of(store)
    first, second = judge(session, "ann", "1"), judge(session, "ann", "s")
    third = shown(session, "ann")
    assert session.undo("ann")
    again = shown(session, "ann")
    assert again.items == second.items
    assert again.id != second.id
    assert session.undo("ann")
    assert shown(session, "ann").items == first.items
    assert store.comparisons() == store.skips() == []
    assert session.progress("ann").done == session.progress("ann").by_all == 0
    assert not session.undo("ann")
    assert [judge(session, "ann", "2").items for _ in range(3)] == [first.items, second.items, third.items]
    assert [record.best for record in store.comparisons()] == [1, 1, 1]


def test_undo_is_of_the_raters_own(tmp_path: Path) -> None:
    store = store_of(tmp_path, texts(5))
    session = session_of(store)
    judge(session, "ann", "1")
    judge(session, "bob", "2")
    assert session.undo("ann")
    assert [record.rater for record in store.comparisons()] == ["bob"]


def test_undo_goes_by_the_order_of_adding_and_not_by_the_clock(tmp_path: Path) -> None:
    store = store_of(tmp_path, texts(8))
    for number, created in enumerate((1000.0, 2000.0, 1500.0)):  # the clock was set back before the third
        items = list(store.items())[2 * number : 2 * number + 2]
        store.add(Comparison(tuple(items), 0, rater="ann", id=f"record {number}", created=created))
    assert session_of(store).undo("ann")
    assert [record.id for record in store.comparisons()] == ["record 0", "record 1"]


def test_one_rater_in_two_sittings_judges_each_pair_once(tmp_path: Path) -> None:
    """Equal seeds: both sittings would ask the same pairs, also the one that is on both screens."""
    store = store_of(tmp_path, texts(5))
    one, two = session_of(store), session_of(store)
    on_both = shown(one, "ann"), shown(two, "ann")
    assert on_both[0].pair == on_both[1].pair
    assert one.judge("ann", on_both[0].id, "1")
    assert not two.judge("ann", on_both[1].id, "2"), "it was judged in the other sitting meanwhile"
    for session in (two, one) * 8:
        if (ticket := session.ticket("ann")) is not None:
            session.judge("ann", ticket.id, "1")
    judged = [frozenset(record.items) for record in store.comparisons()]
    assert len(judged) == len(set(judged)) == 10
    assert one.progress("ann").done == two.progress("ann").done == 10
    assert two.undo("ann")
    assert one.progress("ann").done == 9


def test_verdicts_of_another_sitting_count_for_the_project(tmp_path: Path) -> None:
    """Also where this sitting takes one of them back."""
    store = store_of(tmp_path, texts(6))
    session, other = session_of(store), session_of(store)
    judge(other, "ann", "1")
    judge(other, "bob", "2")
    assert (session.by_all, session.progress("ann").by_all) == (2, 2)
    assert session.undo("ann")
    assert (session.by_all, other.by_all) == (1, 1)


def test_a_new_sitting_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    """GWERN-1: resume, undo of an earlier sitting included."""
    store = store_of(tmp_path, texts(5))
    before = [judge(session_of(store, seed=seed), "ann", "1") for seed in range(4)]
    session = session_of(store)
    assert session.progress("ann").done == session.by_all == 4
    after = rate_all(session, "ann")
    assert len({ticket.pair for ticket in before + after}) == len(before + after) == 10
    assert session_of(store).ticket("ann") is None
    assert session.undo("ann")
    assert len(store.comparisons()) == 9
    fresh = session_of(store)
    assert fresh.undo("ann")
    assert shown(fresh, "ann").items == after[-2].items


def test_several_raters_never_have_one_pair_on_their_screens(tmp_path: Path) -> None:
    """3 texts, 3 pairs: three raters have one each, a fourth has to wait until one is free again."""
    session = session_of(store_of(tmp_path, texts(3)))
    raters = ("ann", "bob", "cy")
    assert len({shown(session, rater).pair for rater in raters}) == 3
    assert session.ticket("dee") is None
    judged = judge(session, "bob", "1")
    assert shown(session, "dee").pair == judged.pair
    assert session.ticket("bob") is None  # has judged one, and the others are on screens


def test_raters_in_threads_get_different_pairs(tmp_path: Path) -> None:
    session = session_of(store_of(tmp_path, texts(12)))
    clashes: list[frozenset[str]] = []
    on_screen: Counter[frozenset[str]] = Counter()
    lock = threading.Lock()

    def rate(rater: str) -> None:
        for _ in range(10):
            ticket = shown(session, rater)
            with lock:
                on_screen[ticket.pair] += 1
                if on_screen[ticket.pair] > 1:
                    clashes.append(ticket.pair)
            time.sleep(0.001)
            with lock:
                on_screen[ticket.pair] -= 1
            session.judge(rater, ticket.id, "1")

    threads = [threading.Thread(target=rate, args=(rater,)) for rater in ("ann", "bob", "cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
    assert session.by_all == 30


def test_a_pair_that_somebody_left_goes_to_another(tmp_path: Path) -> None:
    clock = Clock()
    session = session_of(store_of(tmp_path, texts(2)), clock=clock)
    left = shown(session, "ann")
    assert session.ticket("bob") is None
    clock.now += 3600
    assert shown(session, "bob").pair == left.pair


def test_sides_are_drawn_at_random(tmp_path: Path) -> None:
    """Of 300 pairs the text that came first into the store is on the left in half, within 4 deviations."""
    store = store_of(tmp_path, texts(25))
    order = {item: number for number, item in enumerate(store.items())}
    tickets = rate_all(session_of(store), "ann")
    lefts = sum(order[ticket.items[0].id] < order[ticket.items[1].id] for ticket in tickets)
    assert len(tickets) == 300
    assert abs(lefts - 150) < 4 * (300 * 0.25) ** 0.5


def test_repeats_come_later_with_the_sides_swapped(tmp_path: Path) -> None:
    """A share of the pairs is asked again, once each, of decisive verdicts alone, at least 10 pairs later."""
    store = store_of(tmp_path, texts(25))
    session = session_of(store, repeats=0.2, repeat_after=10)
    rate_all(session, "ann", most=250)
    comparisons = store.comparisons()
    place = {comparison.id: number for number, comparison in enumerate(comparisons)}
    repeats = [comparison for comparison in comparisons if comparison.repeats]
    assert abs(len(repeats) - 0.2 * 240) < 4 * (240 * 0.2 * 0.8) ** 0.5
    assert len({comparison.repeats for comparison in repeats}) == len(repeats)
    for again in repeats:
        first = comparisons[place[again.repeats]]
        assert again.items == first.items[::-1]
        assert not first.repeats
        assert place[again.id] - place[first.id] >= 10
    agreement = session.progress("ann").agreement
    assert (agreement.repeats, agreement.decisive, agreement.agreed) == (len(repeats),) * 3


def test_ties_are_not_asked_again(tmp_path: Path) -> None:
    store = store_of(tmp_path, texts(8))
    session = session_of(store, repeats=1, repeat_after=1)
    for verdict in ("3", "b", "s"):
        assert judge(session, "ann", verdict).repeats == ""
    decisive = judge(session, "ann", "2")
    judge(session, "ann", "3")
    again = judge(session, "ann", "s")
    assert again.repeats == decisive.id
    assert again.items == decisive.items[::-1]
    assert judge(session, "ann", "3").repeats == ""  # skipped, it is not asked a third time


def test_undo_of_a_repeat_asks_it_as_a_repeat(tmp_path: Path) -> None:
    store = store_of(tmp_path, texts(8))
    session = session_of(store, repeats=1, repeat_after=1)
    first = judge(session, "ann", "2")
    judge(session, "ann", "3")
    repeat = judge(session, "ann", "2")
    assert repeat.repeats == first.id
    session.undo("ann")
    assert (shown(session, "ann").items, shown(session, "ann").repeats) == (repeat.items, first.id)


def test_agreement_with_oneself_by_hand() -> None:
    """Four pairs asked twice: agreed, not, and two with a tie, which count as repeats and not as decisive."""
    pairs: list[tuple[Best, Best]] = [(0, 1), (0, 0), ("tie", 1), (1, "both_bad")]
    comparisons = []
    for number, (first, again) in enumerate(pairs):
        items = (f"a{number}", f"b{number}")
        comparisons.append(Comparison(items, first, rater="ann", id=f"first-{number}"))
        comparisons.append(Comparison(items[::-1], again, rater="ann", repeats=f"first-{number}"))
    agreement = self_agreement(comparisons, "ann")
    assert (agreement.repeats, agreement.decisive, agreement.agreed) == (4, 2, 1)
    assert agreement.share is not None
    assert (agreement.share.value, agreement.share.low, agreement.share.high) == (0.5, *wilson(0.5, 2))
    assert self_agreement(comparisons, "bob").share is None
    assert self_agreement([comparisons[1]]).repeats == 0


def test_progress_counts_and_rates_per_hour(tmp_path: Path) -> None:
    clock = Clock()
    store = store_of(tmp_path, texts(8))
    session = session_of(store, clock=clock, target=50)
    assert session.progress("ann").per_hour is None
    clock.now += 600  # nobody sits there yet
    for verdict in ("1", "s", "3"):
        ticket = shown(session, "ann")
        clock.now += 12
        session.judge("ann", ticket.id, verdict)
    judge(session, "bob", "1")
    progress = session.progress("ann")
    assert (progress.done, progress.sitting, progress.by_all, progress.target) == (2, 3, 3, 50)
    assert progress.per_hour == pytest.approx(3600 / 12)


def test_a_limit_ends_the_sitting_and_undo_reopens_it(tmp_path: Path) -> None:
    session = session_of(store_of(tmp_path, texts(8)), limit=2)
    assert len(rate_all(session, "ann")) == 2
    assert session.limit_reached
    assert session.ticket("bob") is None
    assert session.undo("ann")
    assert not session.limit_reached
    assert session.ticket("ann") is not None


def test_broken_texts_are_decided_without_asking(tmp_path: Path) -> None:
    """GWERN-7: 3 of 5 texts are broken: 1 pair is asked; of the others, one broken loses and two broken are a tie."""
    store = store_of(tmp_path, ["good 1", "good 2", "bad 1", "bad 2", "bad 3"])
    session = session_of(store, checks=BAD)
    [asked] = rate_all(session, "ann")
    assert all("good" in item.text for item in asked.items)
    automatic = [record for record in store.comparisons() if record.source == "auto"]
    items = store.items()
    assert len(automatic) <= 9  # as many as were proposed on the way
    for record in automatic:
        broken = tuple(index for index, item in enumerate(record.items) if "bad" in items[item].text)
        assert record.broken == broken
        assert record.best == ("tie" if len(broken) == 2 else 1 - broken[0])
        assert record.reason == "blacklist: holds 'bad'"
    count = len(automatic)
    assert session_of(store, checks=BAD).ticket("ann") is None
    assert len({record.id for record in store.comparisons()}) == len(store.comparisons())
    assert len(store.comparisons()) <= 10
    assert count > 0


def test_broken_texts_can_be_hidden_or_shown(tmp_path: Path) -> None:
    """LMHP-18: what people see can be filtered; GWERN-8: and nothing is labelled then."""
    names = ["good 1", "good 2", "good 3", "bad 1", "bad 2"]
    hidden = store_of(tmp_path / "hidden", names)
    asked = rate_all(session_of(hidden, checks=BAD, broken="hide"), "ann")
    assert len(asked) == 3
    assert all("good" in item.text for ticket in asked for item in ticket.items)
    assert {record.source for record in hidden.comparisons()} == {"manual"}
    open_to_all = store_of(tmp_path / "shown", names)
    assert len(rate_all(session_of(open_to_all, checks=BAD, broken="show"), "ann")) == 10
    assert {record.source for record in open_to_all.comparisons()} == {"manual"}


def test_where_all_texts_are_broken_nobody_is_asked(tmp_path: Path) -> None:
    store = store_of(tmp_path, [f"bad {number}" for number in range(40)])
    assert session_of(store, checks=BAD).ticket("ann") is None
    assert {record.best for record in store.comparisons()} == {"tie"}


def test_the_rest_is_decided_by_the_checks(tmp_path: Path) -> None:
    """GWERN-1, key r: only what the checks can decide; the others are neither recorded nor refused later."""
    store = store_of(tmp_path, ["good 1", "good 2", "bad 1"])
    session = session_of(store, checks=BAD, broken="show")
    assert session.auto_rate(10) == (2, 1)
    assert len(store.comparisons()) == 2
    assert store.skips() == []
    assert session.auto_rate(10) == (0, 1)
    assert len(store.comparisons()) == 2


def test_how_many_pairs_are_left(tmp_path: Path) -> None:
    store = store_of(tmp_path, texts(7))
    assert session_of(store).pairs_left() == 3  # each item once, as GWERN-4 pairs them
    session = session_of(store, target=5)
    judge(session, "ann", "1")
    assert session.pairs_left() == 4
    limited = session_of(store, limit=2, target=5)
    judge(limited, "ann", "1")
    assert limited.pairs_left() == 1


def test_pairs_may_be_asked_again_where_the_method_wants_it(tmp_path: Path) -> None:
    """Racing asks about the leaders again and again; but not about the pair that was judged just now."""
    session = session_of(store_of(tmp_path, texts(4)), ask_again=True, repeat_after=2)
    pairs = [ticket.pair for ticket in rate_all(session, "ann", most=40)]
    assert len(pairs) == 40
    assert all(pair not in pairs[max(0, place - 2) : place] for place, pair in enumerate(pairs))


def test_items_that_are_added_during_a_sitting_are_asked_about(tmp_path: Path) -> None:
    store = store_of(tmp_path, texts(2))
    session = session_of(store)
    assert len(rate_all(session, "ann")) == 1
    with store_of(tmp_path, ["a new one"]):
        pass
    assert len(rate_all(session, "ann")) == 2
    assert session.position(next(reversed(store.items()))) == 3


def test_names_of_raters_and_verdicts() -> None:
    assert rater_name("  Ann \n Lee ") == "Ann Lee"
    assert rater_name(" \t") is None
    assert rater_name("a" * 80) == "a" * 80
    assert rater_name("a" * 81) is None
    assert [key for key in "123bsurx?\n4" if is_verdict(key)] == list("123bs")
    assert not is_verdict("12")


def test_the_next_pairs_are_sought_while_people_read(tmp_path: Path) -> None:
    """A proposal may take seconds: while one hangs, 7 more pairs are there for who rates on, and then the new ones."""
    hangs, began, released = threading.Event(), threading.Event(), threading.Event()

    def slow(*arguments: Any, **named: Any) -> list[tuple[str, str]]:
        if hangs.is_set():
            began.set()
            assert released.wait(60)
        return RANDOM_PAIRS(*arguments, **named)

    session = session_of(store_of(tmp_path, texts(12)), propose=slow)
    shown(session, "ann")
    hangs.set()
    pairs = set()
    for _ in range(7):
        pairs.add(judge(session, "ann", "1").pair)
        shown(session, "ann")
    assert began.wait(10)
    released.set()
    pairs |= {judge(session, "ann", "1").pair for _ in range(10)}
    assert len(pairs) == 17
