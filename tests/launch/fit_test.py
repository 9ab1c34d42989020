"""What is on the devices, and the estimates made of it, from shapes alone."""

from absl import flags
from absl.testing import flagsaver
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
import pytest

from alignment.core import judges
from alignment.runtime import sharding
from alignment.study import estimate, programs
from launch.fit import propose, table, topology
from launch.fit.placed import placed
from tests import studies

study, tldr = studies.document("study"), studies.document("tldr")

GIB = 2**30


def mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
  return AbstractMesh((data, fsdp, tensor), sharding.AXES)


@pytest.fixture(scope="module")
def nano():
  return {p.name: p for p in placed(studies.nano(), mesh(fsdp=8)).programs()}


@pytest.fixture(scope="module")
def paper():
  return {p.name: p for p in placed(tldr.get_config(), mesh(fsdp=4)).programs()}


def test_lists_every_program_once_with_all_its_stages(nano):
  shared = nano["policy step, ipo, nano"].stages
  assert "golden_policy" in shared and len(shared) == 4  # online, two offline runs
  assert set(nano) == {
    "SFT step, nano", "golden_pm step, nano", "proxy_pm step, nano", "margins, nano",
    "rollout, nano judged by nano", "policy step, ipo, nano", "sample 1, nano",
    "sample 2, nano", "divergence, nano", "log_ratios, nano", "both orders, nano",
  }  # fmt: skip
  assert {"golden_pm", "golden_data", "proxy_pm"} < set(nano["margins, nano"].stages)


def test_programs_of_one_name_that_compile_differently_are_all_listed():
  """Compiling one of them says nothing of the others."""
  config = studies.nano(**{"golden_policy.microbatches": 4})
  config.runs = {"online": ({}, {"temperature": (0.5,)})}
  names = [p.name for p in placed(config, mesh()).programs()]
  assert names.count("policy step, ipo, nano") == 2
  assert names.count("rollout, nano judged by nano") == 2


def test_online_training_holds_reference_judge_and_moments(nano):
  step, rollout = nano["policy step, ipo, nano"], nano["rollout, nano judged by nano"]
  assert set(step.held) == {"reference", "judge"}
  assert set(rollout.held) == {"moments"}
  state, *_ = step.arguments
  policy, reference, judge, *_ = rollout.arguments
  assert policy == state.params and rollout.held["moments"] == state.opt_state
  assert (reference, judge) == (step.held["reference"], step.held["judge"])
  assert nano["SFT step, nano"].held_bytes == 0


def test_semi_online_training_holds_the_policy_that_samples_too():
  config = studies.nano()
  with config.unlocked():
    config.policy.refresh_every = config.golden_policy.refresh_every = 3
  listed = {p.name: p for p in placed(config, mesh()).programs()}
  state, *_ = listed["policy step, ipo, nano"].arguments
  one = programs.device_bytes(state.params)
  frozen = programs.device_bytes(listed["margins, nano"].arguments)
  assert listed["policy step, ipo, nano"].held_bytes > 2 * frozen * 0.9 + one
  assert listed["rollout, nano judged by nano"].held_bytes > one


def test_a_judge_on_the_host_divides_the_rollout(monkeypatch):
  monkeypatch.setattr(judges.PreferenceModel, "on_host", True)
  config = studies.nano()
  config.policy.update({"samples": 4, "select": "best_worst"})
  listed = {p.name: p for p in placed(config, sharding.make_mesh()).programs()}
  assert not any(name.startswith("rollout") for name in listed)
  first, second = (
    listed[f"{part} of a rollout of 4, nano"] for part in ("samples", "selection")
  )
  assert set(first.held) == {"moments", "reference", "judge"}
  assert set(second.held) == {"moments", "behaviour", "judge"}
  samples = jax.eval_shape(first.function(), *first.arguments)
  assert jax.tree.map(jnp.shape, samples) == jax.tree.map(
    jnp.shape, second.arguments[3]
  )
  second.lower()


def test_judges_on_the_host_compile_what_they_have_on_devices():
  """The truth nothing, a model of another vocabulary itself, at its own lengths."""
  config = studies.nano()
  config.golden_pm.kind = "truth"
  lengths = {"prompt_length": 27, "response_length": 28, "context_length": 96}
  config.proxy_pm.update({"init": "scratch", "vocab": {"kind": "bytes", **lengths}})
  listed = {p.name: p for p in placed(config, sharding.make_mesh()).programs()}
  assert not any(name.startswith(("golden_pm", "rollout")) for name in listed)
  assert "samples of a rollout, nano" in listed
  scores, step = listed["scores of 2, nano"], listed["proxy_pm step, nano"]
  for batch in (scores.arguments[2], step.arguments[1]):
    assert batch.prompts_BxS.shape == (8, 27)
    assert batch.responses_BxNxT.shape == (8, 2, 28)
  assert set(scores.held) == {"moments", "reference", "behaviour"}
  scores.lower()


def test_a_loss_of_groups_has_the_reference_in_its_step():
  config = studies.nano()
  config.runs = {"g": {"loss": ("rloo",), "samples": (4,), "select": ("all",)}}
  listed = {p.name: p for p in placed(config, sharding.make_mesh()).programs()}
  step, pairs = (listed[f"policy step, {loss}, nano"] for loss in ("rloo", "ipo"))
  _, batch, _, fixed = step.arguments
  assert batch.scores_BxN.shape == batch.ref_logps_BxN.shape == (8, 4)
  assert set(step.held) == {"judge"} and fixed.reference == pairs.held["reference"]
  ((model, rows, *lengths),) = step.work.passes  # thrice, and the reference's
  assert estimate.flops(step) == 4 * rows * model.costs(*lengths).flops
  step.lower()


def test_device_bytes_counts_shards():
  where = mesh(fsdp=4, tensor=2)
  kernel = jax.ShapeDtypeStruct((8, 16), "float32", sharding=jax.NamedSharding(
    where, jax.P("fsdp", "tensor")))  # fmt: skip
  scale = jax.ShapeDtypeStruct((16,), "bfloat16", sharding=sharding.replicated(where))
  assert programs.device_bytes({"a": kernel, "b": [scale, "static"]}) == 64 + 32


def test_arguments_are_what_libtpu_reports_and_temporaries_are_near(paper):
  """11B preference model on v5p:2x2x1, as compiled with libtpu 0.0.42.1."""
  program = paper["golden_pm step, t5_1_1_xxl"]
  needed = estimate.estimate(program)
  assert needed.arguments == pytest.approx(11_149_805_056, rel=1e-4)
  assert needed.temporaries == pytest.approx(38_510_038_112, rel=0.1)


def test_frozen_models_are_bfloat16(paper):
  state, *_ = paper["golden_pm step, t5_1_1_xxl"].arguments
  judge = paper["margins, t5_1_1_xxl"].arguments[1]
  masters, frozen = map(programs.device_bytes, (state.params, judge))
  assert masters / 2 < frozen < masters / 2 * 1.001


@pytest.mark.parametrize("name", ["policy step, ipo, nano", "sample 2, nano"])
def test_more_chips_need_less_of_each(nano, name):
  config = studies.nano()
  one = {p.name: p for p in placed(config, mesh()).programs()}[name]
  assert estimate.estimate(nano[name]).total < estimate.estimate(one).total


def test_a_policy_that_samples_is_whole_on_every_device(nano):
  alone = {p.name: p for p in placed(studies.nano(), mesh()).programs()}
  for name in "rollout, nano judged by nano", "sample 2, nano":
    assert nano[name].work.copy_bytes == alone[name].work.copy_bytes
    assert estimate.estimate(nano[name]).temporaries > nano[name].work.copy_bytes > 0


def test_other_layouts_divide_tensors_more_often():
  config = studies.nano()
  sizes = [tuple(sizes.values()) for sizes in propose.meshes_for(config, 4)]
  assert sizes == [(1, 4, 1), (1, 2, 2), (1, 1, 4)]
  assert len(list(propose.meshes_for(config, 1))) == 1


def test_a_layout_divides_batches_first_then_tensors():
  config = studies.nano()  # batches of 8, evaluated in 16s
  assert propose.mesh_for(config, 4) == {"data": 1, "fsdp": 4, "tensor": 1}
  assert propose.mesh_for(config, 16) == {"data": 1, "fsdp": 8, "tensor": 2}
  with config.unlocked():
    config.sft.by_size = {"milli": {"batch_size": 2}}  # of which no SFT is trained
  assert propose.mesh_for(config, 16) == {"data": 1, "fsdp": 8, "tensor": 2}
  config.proxy_pm.microbatches = 4
  assert propose.mesh_for(config, 16) == {"data": 1, "fsdp": 2, "tensor": 8}


@pytest.mark.parametrize(
  "size, batch_size, v5e", [("t5_1_1_large", 32, "v5e-16"), ("t5_1_1_xxl", 8, "v5e-32")]
)
@pytest.mark.slow
def test_proposals_for_the_paper_are_what_was_compiled(size, batch_size, v5e):
  """As the table in docs/memory.md; the compiler refused the next smaller slices."""
  config = study.get_config("figure_04,tldr")
  for role in config.policy, config.golden_policy:
    role.size, role.batch_size = size, batch_size
  proposals = {name: propose.propose(config, name) for name in topology.GENERATIONS}
  assert {name: p.topology.accelerator for name, p in proposals.items()} == {
    "v4": "v4-16", "v5e": v5e, "v5p": "v5p-8", "v6e": "v6e-8"
  }  # fmt: skip


def test_the_table_of_decoders_names_the_next_smaller_slice_too():
  arguments = ["table", "--sizes=gemma3_1b", "--generations=v5e,v6e"]
  with flagsaver.flagsaver():
    flags.FLAGS(arguments)
    head, _, row, adapters = table.rows()
  assert head == "| policy and judge | trained | v5e | v6e |"
  assert row.startswith("| Gemma 3 1B | full | v5e-4: ")
  assert "; v5e-1 refused: " in row and "refused" not in row.split("|")[-2]
  # A quarter of the chips.
  assert adapters.startswith("| Gemma 3 1B | LoRA 16 | v5e-1: ")


def test_the_proposed_slice_is_the_smallest_that_should_do():
  config = studies.nano()
  proposal = propose.propose(config, "v5e")
  assert proposal.topology == topology.parse("v5e:1x1")
  assert proposal.memory.total < proposal.topology.limit
  config.prompt_length = 2**15  # attention scores of 4 GiB a row and head
  larger = propose.propose(config, "v5p")
  assert larger is None or larger.topology.chips > 4


def test_suggestions_are_what_should_do_by_estimate():
  """Attention scores of 8 rows and 2 GiB each are what is too much."""
  config = studies.nano()
  config.prompt_length, config.judge_context_length = 2**13, 2**13 + 64
  listed = {p.name: p for p in placed(config, mesh()).programs()}
  where = topology.parse("v5e:1x1")
  larger = "more chips: --topology=v5e:2x2 --config.mesh.data=1 --config.mesh.fsdp=4"
  for name, idea in {
    "golden_pm step, nano": "--config.golden_pm.microbatches=8",
    "SFT step, nano": "--config.sft.microbatches=8",
    "divergence, nano": "--config.evaluation.batch_size=8",
    "margins, nano": "--config.evaluation.batch_size=8",
  }.items():
    assert estimate.estimate(listed[name]).total > where.limit
    first, last = propose.suggest(listed[name], config, where)
    assert (first, last[: len(larger)]) == (idea, larger), name


def test_what_no_smaller_batch_helps_needs_more_chips(paper):
  config = tldr.get_config()
  program = paper["golden_pm step, t5_1_1_xxl"]
  (only,) = propose.suggest(program, config, topology.parse("v5e:2x2"))
  assert only.startswith("more chips: --topology=v5e:2x4 --config.mesh.data=1")


def test_operations_are_those_of_the_benchmark():
  from alignment import benchmark

  case = benchmark.Case()
  costs = case.model().costs(case.prompt_length, 2, case.response_length)
  ours = case.prompts * costs.flops
  assert ours == benchmark.flops(case)["scoring"]
