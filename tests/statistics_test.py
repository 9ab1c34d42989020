"""Runs as read, gaps without selection bias, intervals, claims."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from alignment import claims as claims_lib
from alignment import statistics
from alignment.runs import Run, load_runs
from alignment.types import UserError

JUDGE = "golden PM"


def make_run(name, method, wins_ExP, kl_E, world=0, truth_ExP=None, **fields):
  wins = {JUDGE: wins_ExP} | ({} if truth_ExP is None else {"truth": truth_ExP})
  settings = {"task": "tldr", "loss": "ipo", "beta": 0.1, "learning_rate": 1e-3}
  return Run(
    name=name,
    method=method,
    world=world,
    seed=0,
    steps_E=np.arange(len(kl_E)),
    kl_E=np.asarray(kl_E, float),
    wins=wins,
    records=[],
    **(settings | fields),
  )


def noisy_run(rng, name, rate_E, kl_E, num_prompts=128, method="online", world=0):
  wins_ExP = rng.random((len(kl_E), num_prompts)) < np.asarray(rate_E)[:, None]
  return make_run(name, method, wins_ExP.astype(float), kl_E, world)


def certain_run(name, method, rates, kls, world=0, truth=None):
  """Each checkpoint wins the same share of every prompt: no evaluation noise."""
  wins_ExP = np.repeat(np.array(rates, float)[:, None], 10, axis=1)
  truth_ExP = None if truth is None else np.repeat(np.array(truth)[:, None], 10, 1)
  return make_run(name, method, wins_ExP, kls, world, truth_ExP)


def test_t_quantiles_are_those_of_the_tables():
  table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 5: 2.5706, 10: 2.2281, 30: 2.0423}
  for degrees, quantile in table.items():
    assert statistics.t_quantile(degrees) == pytest.approx(quantile, abs=5e-5)
  assert statistics.t_quantile(5, 0.99) == pytest.approx(4.0321, abs=5e-5)
  assert statistics.t_quantile(1000) == pytest.approx(1.96234, abs=5e-5)
  with pytest.raises(ValueError):
    statistics.t_quantile(0)


def test_upper_envelope_is_the_best_within_each_budget():
  kl, win_rate = statistics.upper_envelope(
    np.array([3.0, 1.0, 2.0, 3.0]), np.array([0.4, 0.3, 0.5, 0.6])
  )
  assert kl.tolist() == [1, 2, 3, 3]
  assert win_rate.tolist() == [0.3, 0.5, 0.6, 0.6]


def test_expected_best_is_the_mean_over_all_subsets():
  rng = np.random.default_rng(0)
  selected_K, reported_K = rng.random(5), rng.random(5)
  selected_K[3] = -np.inf  # has nothing to select
  for size in range(1, 6):
    reports = []
    for subset in itertools.combinations(range(5), size):
      best = max(subset, key=lambda run: selected_K[run])
      if selected_K[best] > -np.inf:
        reports.append(reported_K[best])
    result = statistics._expected_best(selected_K[None], reported_K[None], size)
    assert result[0] == pytest.approx(np.mean(reports))


def test_halves_share_no_prompt_and_resamples_keep_their_weight_in_every_split():
  for num_prompts in (2, 9):
    weights_2xRxP = statistics._prompt_weights_2xRxP(num_prompts, 5, 0)
    assert (weights_2xRxP.prod(axis=0) == 0).all()
    assert (weights_2xRxP.sum(axis=0) > 0).all()
    np.testing.assert_allclose(weights_2xRxP.sum(axis=-1), 1)


@pytest.mark.parametrize("gap", [statistics.peak_gap, statistics.gap_at_equal_kl])
@pytest.mark.parametrize(
  ("spread", "equal_numbers"),
  [
    (0, False),  # noise of the evaluation alone: cross-fitting is enough
    (0, True),
    (0.05, True),  # noise of training too: more tries do find a better run
  ],
)
def test_one_run_against_nine_of_pure_noise_shows_no_gap(spread, equal_numbers, gap):
  rng = np.random.default_rng(0)
  kl_E = np.geomspace(0.1, 10, 8)
  naive, estimated = [], []
  for _ in range(80):
    one, nine = (
      [
        noisy_run(rng, f"{i}", [0.5 + spread * rng.normal()] * 8, kl_E)
        for i in range(count)
      ]
      for count in (1, 9)
    )
    best = [max(r.win_rates_E(JUDGE).max() for r in runs) for runs in (one, nine)]
    naive.append(best[0] - best[1])
    estimate = gap(one, nine, JUDGE, equal_numbers=equal_numbers, resamples=2)
    estimated.append(estimate.value)
  assert np.mean(naive) < -0.03  # the nine look better, and are not
  standard_error = np.std(estimated) / math.sqrt(len(estimated))
  assert abs(np.mean(estimated)) < 3 * standard_error
  assert standard_error < 0.008


def test_without_noise_gaps_are_those_of_the_envelopes():
  # Envelopes at KL 1, 10, 100: a 0.3, 0.5, 0.6; b 0.4, 0.4, 0.4. The checkpoint below
  # the floor is ignored at equal KL, but counts as a peak.
  a = [certain_run("a", "online", [0.9, 0.3, 0.5, 0.6], [0.001, 1, 10, 100])]
  b = [certain_run("b", "offline", [0.4, 0.2, 0.1], [1, 10, 100])]
  assert statistics.peak_gap(a, b, JUDGE).value == pytest.approx(0.5)
  estimate = statistics.gap_at_equal_kl(a, b, JUDGE)
  assert estimate.value == pytest.approx(((0.3 - 0.4) + (0.5 - 0.4)) / 2)
  assert (estimate.low, estimate.high) == pytest.approx((estimate.value,) * 2)
  assert estimate.over == "prompts, 1 world" and estimate.n == 10
  # b stops at 10^1.5: the second step has half the weight of the first.
  b = [certain_run("b", "offline", [0.4, 0.2], [1, 10**1.5])]
  estimate = statistics.gap_at_equal_kl(a, b, JUDGE)
  assert estimate.value == pytest.approx((-0.1 * 2 + 0.1) / 3)


def test_unequal_numbers_of_runs_are_averaged_over_subsets_unless_told_otherwise():
  one = [certain_run("a", "online", [0.5, 0.5], [1, 10])]
  two = [certain_run(f"b{r}", "offline", [r, r], [1, 10]) for r in (0.4, 0.8)]
  for gap in (statistics.peak_gap, statistics.gap_at_equal_kl):
    assert gap(one, two, JUDGE).value == pytest.approx(0.5 - 0.6)
    assert gap(one, two, JUDGE, equal_numbers=False).value == pytest.approx(-0.3)


def test_no_common_range_of_kl_is_nan_with_the_reason():
  a = [certain_run("a", "online", [0.5, 0.5], [0.1, 1])]
  b = [certain_run("b", "offline", [0.5, 0.5], [2, 3])]
  estimate = statistics.gap_at_equal_kl(a, b, JUDGE)
  assert math.isnan(estimate.value) and estimate.side == 0
  assert estimate.reason == "no common range of KL (0.1 to 1 and 2 to 3)"
  at_sft = [certain_run("b", "offline", [0.5], [0])]
  assert "above KL 0.01" in statistics.gap_at_equal_kl(a, at_sft, JUDGE).reason


def test_the_interval_over_prompts_covers_the_truth():
  rng = np.random.default_rng(1)
  kl_E = np.geomspace(0.1, 10, 6)
  rates = np.linspace(0.3, 0.6, 6)
  covered, widths = [], []
  for _ in range(80):
    a = [noisy_run(rng, "a", rates, kl_E)]
    b = [noisy_run(rng, "b", rates - 0.1, kl_E)]
    estimate = statistics.gap_at_equal_kl(a, b, JUDGE, resamples=100)
    covered.append(estimate.low <= 0.1 <= estimate.high)
    widths.append(estimate.high - estimate.low)
  assert np.mean(covered) > 0.88
  assert np.mean(widths) < 0.25


def test_an_envelope_of_several_worlds_is_their_mean_where_all_have_begun():
  runs = [
    certain_run("a", "online", [0.2, 0.4], [1, 4], world=0),
    certain_run("a", "online", [0.6, 0.5], [2, 8], world=1),
  ]
  kl_G, rates_G, low_G, high_G = statistics.envelope(runs, JUDGE)
  assert kl_G.tolist() == [2, 4, 8]
  np.testing.assert_allclose(rates_G, [0.4, 0.5, 0.5])
  np.testing.assert_allclose(low_G, high_G)
  assert len(statistics.envelope([certain_run("s", "x", [0.5], [0])], JUDGE)[0]) == 0


def test_worlds_are_combined_by_a_paired_t_interval():
  one = statistics.Estimate(0.1, 0.05, 0.15, "prompts, 1 world", 256)
  three = statistics.over_worlds(
    {w: dataclasses.replace(one, value=v) for w, v in enumerate((0.1, 0.2, 0.3))}
  )
  margin = 4.3027 * 0.1 / math.sqrt(3)
  assert three.over == "3 worlds" and three.n == 3
  assert (three.value, three.low, three.high) == pytest.approx(
    (0.2, 0.2 - margin, 0.2 + margin), abs=1e-5
  )
  with_one_undefined = statistics.over_worlds({0: one, 7: statistics.undefined("why")})
  assert with_one_undefined == dataclasses.replace(one, reason="world 7: why")


# --- Claims -----------------------------------------------------------------------


def worlds_of_runs(gaps, truth_gaps=None, num_offline=1):
  truth_gaps = gaps if truth_gaps is None else truth_gaps
  runs = []
  for world, (gap, truth_gap) in enumerate(zip(gaps, truth_gaps, strict=True)):
    a, t = [0.4 + gap, 0.5 + gap], [0.4 + truth_gap, 0.5 + truth_gap]
    runs.append(certain_run("on", "online", a, [1, 10], world, t))
    for i in range(num_offline):
      b = [0.4, 0.5]
      runs.append(certain_run(f"off{i}", "offline", b, [1, 10], world, b))
  return runs


AHEAD = (0.1, 0.12, 0.08, 0.11, 0.09, 0.1)


@pytest.mark.parametrize(
  ("gaps", "truth_gaps", "verdict", "reason", "reading"),
  [
    (AHEAD, AHEAD, "agrees", "", ""),
    ([-gap for gap in AHEAD], None, "disagrees", "", ""),
    (AHEAD, [-gap for gap in AHEAD], "undecided", "judges disagree", "online ahead in"),
    (AHEAD, (1, -1, 1, -1, 1, -1), "undecided", "interval contains 0 (truth)", "3"),
    (AHEAD[:1], None, "undecided", "1 world: 6 are needed", "online ahead in this"),
    ((-0.1,), None, "undecided", "1 world: 6 are needed", "offline ahead in this"),
    ((0.1,), (-0.1,), "undecided", "1 world: 6 are needed", "judges disagree"),
    ((0.1,), (0.0,), "undecided", "1 world: 6 are needed", "not separated by truth"),
    (AHEAD[:5], None, "undecided", "5 worlds: 6 are needed", "5 (truth) of 5 worlds"),
  ],
)
def test_verdicts(gaps, truth_gaps, verdict, reason, reading):
  found = claims_lib.claims(worlds_of_runs(gaps, truth_gaps), resamples=10)
  assert [claim.name for claim in found] == ["peak win rate", "win rate at equal KL"]
  for claim in found:
    assert (claim.verdict, claim.reason) == (verdict, reason)
    assert reading in claim.reading and bool(reading) == bool(claim.reading)
    assert claim.estimates[JUDGE].value == pytest.approx(np.mean(gaps))


def test_claims_count_runs_and_say_what_is_missing():
  runs = worlds_of_runs((0.1,), num_offline=3)
  claim = claims_lib.claims(runs, resamples=10)[0]
  assert claim.runs_compared == "1 vs 3" and set(claim.of_all_runs) == {JUDGE, "truth"}
  assert claims_lib.claims(worlds_of_runs((0.1,)), resamples=10)[0].of_all_runs == {}
  only_online = [run for run in runs if run.method == "online"]
  claim = claims_lib.claims(only_online, resamples=10)[0]
  assert claim.verdict == "undecided"
  assert claim.reason == "0 worlds: 6 are needed; world 0: no offline run"
  assert claims_lib.claims([], resamples=10) == []


def test_tasks_and_losses_make_separate_claims():
  runs = worlds_of_runs((0.1,))
  other = [dataclasses.replace(run, task="chat_arena", loss="dpo") for run in runs]
  found = claims_lib.claims(runs + other, resamples=10)
  assert [(c.task, c.loss) for c in found[::2]] == [
    ("tldr", "ipo"),
    ("chat_arena", "dpo"),
  ]
  assert "by little" in found[2].statement and "by little" not in found[0].statement


def test_claims_as_text():
  found = claims_lib.claims(worlds_of_runs((0.1,), num_offline=2), resamples=10)
  text = claims_lib.format_claims(found)
  assert "+0.100 [+0.100, +0.100]  prompts, 1 world  1 vs 2" in text
  assert "undecided (1 world: 6 are needed)" in text
  assert text.count("all runs") == 4
  assert max(map(len, text.splitlines())) < 120
  assert text.isascii()


# --- Files ------------------------------------------------------------------------


def write_run(workdir, name="online_0", method="online", truth=True, **fields):
  """A run of two checkpoints and four prompts, as the evaluation writes it."""
  directory = workdir / "runs" / name
  directory.mkdir(parents=True)
  wins_ExP = np.array([[0, 0.5, 0, 0.5], [1, 0.5, 1, 0.5]], np.float32)
  arrays = {"steps_E": np.array([10, 20]), "golden_ExP": wins_ExP}
  if truth:
    arrays["truth_ExP"] = wins_ExP[:, ::-1]
  np.savez(directory / "outcomes.npz", **arrays)
  measured = dict.fromkeys(
    "kl_stderr win_rate_stderr classification_accuracy chosen_log_ratio "
    "rejected_log_ratio truncation_rate response_length entropy "
    "decode_vs_score_max_abs_diff true_utility judge_accuracy_on_policy".split(),
    0.5,
  )
  with open(directory / "evaluations.jsonl", "w") as file:
    for step, kl, rate in ((20, 2.0, 0.75), (10, 1.0, 0.25)):  # in any order
      record = {
        "run": name,
        "method": method,
        "task": "tldr",
        "loss": "ipo",
        "beta": 0.1,
        "learning_rate": 1e-3,
        "world": 0,
        "seed": 0,
        "step": step,
        "kl": kl,
        "win_rate": rate,
        "true_win_rate": rate,
        "something_new": [1],
        **measured,
        **fields,
      }
      file.write(json.dumps(record) + "\n")
  return directory


def test_runs_are_read_in_the_order_of_their_steps(tmp_path):
  write_run(tmp_path)
  write_run(tmp_path, "sft", "sft", beta=None, classification_accuracy=math.nan)
  (tmp_path / "runs" / "in_training").mkdir()
  run, sft = load_runs(tmp_path)
  assert (run.name, sft.method, sft.beta) == ("online_0", "sft", None)
  assert run.steps_E.tolist() == [10, 20] and run.kl_E.tolist() == [1, 2]
  assert run.win_rates_E(JUDGE).tolist() == [0.25, 0.75]
  assert run.wins["truth"].shape == (2, 4)
  assert [record["step"] for record in run.records] == [10, 20]


def lines_of(directory):
  return (directory / "evaluations.jsonl").read_text().splitlines()


def damage_line(directory):
  (directory / "evaluations.jsonl").write_text(lines_of(directory)[0] + '\n{"run": "a')


def drop_key(key):
  def damage(directory):
    records = [json.loads(line) for line in lines_of(directory)]
    del records[1][key]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "evaluations.jsonl").write_text(text)

  return damage


def repeat_step(directory):
  lines = lines_of(directory)
  (directory / "evaluations.jsonl").write_text("\n".join([*lines, lines[0]]))


def cut_outcomes(directory):
  path = directory / "outcomes.npz"
  path.write_bytes(path.read_bytes()[:100])


def other_outcomes(**arrays):
  def damage(directory):
    np.savez(directory / "outcomes.npz", **arrays)

  return damage


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (damage_line, r"evaluations.jsonl:2: not JSON"),
    (drop_key("entropy"), r"evaluations.jsonl:2: no 'entropy'"),
    (drop_key("true_utility"), r"evaluations.jsonl:2: no 'true_utility'"),
    (repeat_step, r"evaluations.jsonl: a step is evaluated twice"),
    (lambda d: (d / "evaluations.jsonl").write_bytes(b"\xff\n"), "not UTF-8"),
    (lambda d: (d / "outcomes.npz").unlink(), r"outcomes.npz: missing"),
    (cut_outcomes, r"outcomes.npz: damaged"),
    (lambda d: (d / "outcomes.npz").write_bytes(b""), r"outcomes.npz: damaged"),
    (other_outcomes(steps_E=np.array([10, 20])), r"outcomes.npz: no 'golden_ExP'"),
    (
      other_outcomes(steps_E=np.array([10, 30]), golden_ExP=np.ones((2, 4))),
      r"outcomes.npz: steps \[10, 30\]",
    ),
    (
      other_outcomes(steps_E=np.array([10, 20]), golden_ExP=np.ones((1, 4))),
      r"golden_ExP has shape \(1, 4\)",
    ),
    (
      other_outcomes(steps_E=np.array([10, 20]), golden_ExP=np.full((2, 4), 0.7)),
      r"golden_ExP has values other than",
    ),
    (
      other_outcomes(steps_E=np.array([10, 20]), golden_ExP=np.ones((2, 4))),
      r"win_rate is not the mean of golden_ExP",
    ),
  ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
  damage(write_run(tmp_path))
  with pytest.raises(UserError, match=message):
    load_runs(tmp_path)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("run", 3, "'run' is 3, expected a string"),
    ("seed", 0.5, "'seed' is 0.5, expected an integer"),
    ("seed", True, "'seed' is True, expected an integer"),
    ("kl", math.nan, "'kl' is nan, expected a finite number"),
    ("beta", "x", "'beta' is 'x', expected a finite number or null"),
    ("entropy", [], r"'entropy' is \[\], expected a number or null"),
  ],
)
def test_fields_of_another_kind_are_named(tmp_path, field, value, message):
  write_run(tmp_path, **{field: value})
  with pytest.raises(UserError, match=f"evaluations.jsonl:1: {message}"):
    load_runs(tmp_path)


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
  with pytest.raises(UserError, match="no evaluated run"):
    load_runs(tmp_path)
  write_run(tmp_path)
  with pytest.raises(UserError, match="is also in"):
    load_runs([tmp_path, tmp_path])
  other = write_run(tmp_path, "online_1", truth=False)
  with pytest.raises(UserError, match="evaluate both alike"):
    load_runs(tmp_path)
  wins_ExP = np.array([[0.5, 0], [0.5, 1]])
  other_outcomes(steps_E=np.array([10, 20]), golden_ExP=wins_ExP)(other)
  with pytest.raises(UserError, match="2 prompts, but .*online_0 .* has 4"):
    load_runs(tmp_path)
