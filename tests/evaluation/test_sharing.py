"""Requests that copies of a model take from each other, with made-up copies whose speeds and orders are drawn."""

import random
from collections import Counter

import pytest

from essence.evaluation.decoders.sharing import ROUND_STEPS, Handed, SharedRequests
from essence.evaluation.requests import Prompt, Request


def requests_of(lengths: list[int]) -> list[Request]:
    """Each with the number of steps that it takes as its cap."""
    return [Request(Prompt(str(number), "", (1,)), 0, number, length) for number, length in enumerate(lengths)]


class Copy:
    """An engine of so many seats, in which every request takes a step a token."""

    def __init__(self, seats: int, opening: Handed) -> None:
        self.seats, self.steps, self.since = seats, 0, 0
        self.waiting, self.seated = list(opening.requests), dict[str, int]()
        self.last, self.asked = opening.last, False
        self.company: list[tuple[str, ...]] = []
        """Requests that shared each step."""

    @property
    def ended(self) -> bool:
        return self.last and not (self.waiting or self.seated)

    def advance(self) -> bool:
        """A step of the engine, or True where it has to report first."""
        if not self.last and (self.since == ROUND_STEPS or not (self.waiting or self.seated)):
            self.asked = True
            return True
        while self.waiting and len(self.seated) < self.seats:
            request = self.waiting.pop(0)
            self.seated[request.prompt.problem] = request.max_new_tokens
        self.company.append(tuple(self.seated))
        self.seated = {name: left - 1 for name, left in self.seated.items() if left > 1}
        self.steps, self.since = self.steps + 1, self.since + 1
        return False

    def take(self, handed: Handed) -> None:
        self.waiting += handed.requests
        self.last, self.asked, self.since = handed.last, False, 0


def decoded(lengths: list[int], copies: int, seats: int, order: random.Random) -> list[Copy]:
    """Copies after all is decoded, which one goes on next being drawn each time."""
    shared = SharedRequests(requests_of(lengths), copies, seats)
    all_copies = [Copy(seats, shared.opening(copy)) for copy in range(copies)]
    while going := [copy for copy in range(copies) if not (all_copies[copy].ended or all_copies[copy].asked)]:
        copy = order.choice(going)
        if all_copies[copy].advance():
            for to, handed in shared.report(copy, len(all_copies[copy].waiting)):
                all_copies[to].take(handed)
    assert all(copy.ended for copy in all_copies), "a copy waits for an answer that nobody gives"
    return all_copies


@pytest.mark.parametrize(("number", "copies", "seats"), [(1, 2, 8), (7, 4, 2), (60, 3, 4), (120, 4, 32)])
def test_each_request_once_in_the_same_company_at_any_speed(number: int, copies: int, seats: int) -> None:
    lengths = [random.Random(number + place).randint(1, 90) for place in range(number)]
    first = decoded(lengths, copies, seats, random.Random(0))
    names = Counter(name for copy in first for name in {name for step in copy.company for name in step})
    assert names == Counter(str(place) for place in range(number))
    for seed in (1, 2):
        again = decoded(lengths, copies, seats, random.Random(seed))
        assert [copy.company for copy in again] == [copy.company for copy in first]


def test_a_copy_with_short_requests_takes_from_one_with_long_ones() -> None:
    """Dealt out once, every second request would leave one copy with all the long ones."""
    lengths = [100 if place % 2 else 5 for place in range(128)]
    steps = [copy.steps for copy in decoded(lengths, 2, 8, random.Random(0))]
    dealt_once, even = sum(lengths[1::2]) / 8, sum(lengths) / 16
    assert max(steps) <= even + 100 < dealt_once
