"""Every size of every family on meshes: laid out whole, or refused in a line."""

import dataclasses

import jax
import pytest

from alignment.models import registry, sizes
from alignment.runtime import sharding
from alignment.types import UserError

DECODERS = tuple(sizes.DECODERS)


def layout(size: str, fsdp: int, tensor: int) -> dict[str, tuple]:
  """Of each parameter of one layer and what is around it."""
  cfg = dataclasses.replace(registry.config(size), num_layers=1)
  model = registry.model(cfg)
  mesh = jax.sharding.AbstractMesh((1, fsdp, tensor), sharding.AXES)
  params = jax.eval_shape(model.init, jax.random.key(0))
  placed = sharding.shardings(params, mesh, model.layout_rules(tensor))
  leaves = jax.tree_util.tree_leaves_with_path(placed)
  return {sharding.path_name(path): tuple(leaf.spec) for path, leaf in leaves}


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", DECODERS)
def test_a_published_size_is_laid_out_or_refused_by_name(size, tensor):
  cfg = registry.config(size)
  if cfg.num_heads % tensor:
    with pytest.raises(UserError, match=f"{cfg.num_heads} attention heads are not div"):
      layout(size, 4, tensor)
    return
  specs = layout(size, 4, tensor)
  for name in ("key", "value"):
    spec = specs[f"layers/0/attention/{name}/kernel"]
    assert spec == ("fsdp", None if cfg.num_kv_heads % tensor else "tensor")
  for name in ("query", "out"):
    assert "tensor" in specs[f"layers/0/attention/{name}/kernel"]
  matrices = {name: spec for name, spec in specs.items() if len(spec) == 2}
  assert all("fsdp" in spec for spec in matrices.values())  # nothing whole on a chip


def test_what_the_axes_do_not_divide_is_refused_by_name():
  with pytest.raises(UserError, match="9 attention heads .* 'tensor' of size 2"):
    layout("smollm2_135m", 1, 2)
  with pytest.raises(UserError, match="parameter 'embedding' .* dimension 576 is not"):
    layout("smollm2_135m", 5, 1)
  with pytest.raises(UserError, match="parameter 'embedding' .* dimension 49152 is"):
    layout("smollm2_135m", 1, 9)
  specs = layout("smollm2_135m", 4, 3)  # as many as heads of keys
  assert specs["layers/0/attention/key/kernel"] == ("fsdp", "tensor")
