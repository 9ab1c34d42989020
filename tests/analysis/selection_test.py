"""Which runs belong to a comparison."""

import pytest

from alignment.analysis import selection
from alignment.analysis.selection import Group, Pool, Shuffling, Size
from tests import synthetic


def make_run(series, **fields):
  wins_ExP = synthetic.certain([0.5, 0.5])
  return synthetic.make_run("name", series, wins_ExP, [1, 2], **fields)


def test_the_main_loss_and_size_are_those_of_most_online_and_offline_runs():
  runs = [
    *(make_run("online", loss="dpo", size="milli") for _ in range(2)),
    *(make_run("offline", loss="ipo", size="micro") for _ in range(3)),
    *(make_run("shuffled", loss="slic", size="nano") for _ in range(9)),
    make_run("online", loss="dpo", size="nano"),
  ]
  assert selection.main_loss(runs) == "ipo"  # as many as dpo
  assert selection.main_loss(runs[:2]) == "dpo"
  assert selection.sizes(runs) == ["micro", "milli", "nano"]
  assert selection.larger_size(runs) == "milli"
  assert selection.larger_size(runs[2:]) == ""  # nano is smaller
  assert (selection.main_loss([]), selection.sizes([])) == ("", [])
  equally_many = [make_run("online", size=size) for size in ("milli", "nano", "micro")]
  assert selection.sizes(equally_many) == ["nano", "micro", "milli"]


def test_main_is_what_the_configuration_says_where_it_is_run():
  """A sweep over sizes has as many runs of each."""
  sizes = ("nano", "micro", "milli")
  runs = [make_run("online", size=size, default=size == "micro") for size in sizes]
  assert selection.sizes(runs) == ["micro", "milli", "nano"]
  assert selection.larger_size(runs) == "milli"
  dpo = [make_run("online", loss="dpo", default=True), *runs[:1], *runs[2:]]
  assert selection.main_loss(dpo) == "dpo"


def settings(group):
  return [(run.beta, run.learning_rate) for run in group]


def test_matched_runs_have_the_settings_that_all_groups_have():
  sweep = [
    make_run("online", beta=beta, learning_rate=rate)
    for beta in (0.1, 0.3)
    for rate in (1e-4, 1e-3)
  ]
  some = [make_run("offline", learning_rate=rate) for rate in (1e-4, 1e-3, 1e-2)]
  levels = [make_run("sft")]
  a, b, c = selection.matched([sweep, some, levels])
  assert settings(a) == settings(b) == [(0.1, 1e-4), (0.1, 1e-3)]
  assert c == levels
  longer = [make_run("offline", steps=(5, 9)), make_run("offline", steps=(1, 3))]
  assert (
    selection.matched([[make_run("online", steps=(2, 3))], longer])[1] == longer[1:]
  )
  assert selection.matched([[make_run("online", steps=(2, 4))], longer])[1] == longer
  other = [make_run("shuffled", beta=7.0)]
  assert selection.matched([sweep, other]) == [sweep, other]  # nothing in common


def test_matched_sizes_are_matched_in_settings_too():
  online = [
    make_run("online", size=size, beta=beta)
    for size in ("nano", "micro", "milli")
    for beta in ((0.1, 0.3) if size == "micro" else (0.1,))
  ]
  offline = [make_run("offline", size=size) for size in ("micro", "milli")]
  a, b = selection.matched_sizes([online, offline])
  assert [(run.size, run.beta) for run in a] == [("micro", 0.1), ("milli", 0.1)]
  assert b == offline


@pytest.mark.parametrize(
  ("group", "expected"),
  [
    (Group("online"), ["micro"]),
    (Group("online", size=Size.LARGER), ["milli"]),
    (Group("online", size=Size.ALL), ["micro", "milli"]),
    (Group("offline", size=Size.ALL), []),  # of one size only
    (Group("replay", shuffling=Shuffling.NONE), [0]),
    (Group("replay", shuffling=Shuffling.LEAST), [4]),
    (Group("online", default=True), []),
    (Group("offline", default=True), ["micro"]),
    (Group("online", measured="self_classification_accuracy"), []),
    (Group("semi_online", refresh_every=10), [10]),
  ],
)
def test_groups(group, expected):
  unmeasured = {"self_classification_accuracy": [None, None]}
  runs = [
    *(make_run("online", size=s, measured=unmeasured) for s in ("micro", "milli")),
    make_run("offline", default=True),
    *(make_run("replay", replay_window=window) for window in (500, -1, 4, 0)),
    *(make_run("semi_online", refresh_every=every) for every in (100, 10)),
  ]
  members = group.members(Pool(runs, (), "micro", "milli"))
  keys = {"replay": "replay_window", "semi_online": "refresh_every"}
  key = keys.get(group.series, "size")
  assert [getattr(run, key) for run in members] == expected


def test_a_pool_of_one_world_has_nothing_of_the_others():
  runs = [make_run("online", world=world) for world in (0, 1)]
  pool = Pool(runs, synthetic.classification(worlds=2), "micro", "").of_world(1)
  assert pool.runs == runs[1:]
  assert {row.world for row in pool.classification} == {1}


def test_a_group_may_have_a_loss_of_its_own_and_the_smallest_beta():
  ipo = [make_run("online", beta=beta) for beta in (0.1, 0.01)]
  dpo = make_run("online", loss="dpo", world=1)
  pool = Pool(ipo, [], dpo.size, "", [*ipo, dpo])
  assert Group("online").members(pool) == ipo
  assert Group("online", loss="dpo").members(pool) == [dpo]
  assert Group("online", least_beta=True).members(pool) == ipo[1:]
  assert Group("online", loss="dpo").members(pool.of_world(0)) == []
  assert str(Group("online", loss="dpo", least_beta=True)) == (
    "online with dpo of the smallest beta"
  )
