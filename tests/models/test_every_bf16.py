"""Every variant answers in bf16 what it answers in float32, but for rounding; what comes out is float32 either way."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tubelet import ConfigError, load, models
from tubelet.features import fingerprint
from tubelet.models._model import Model
from tubelet.models._transformer import LayerNorm
from tubelet.weights.export import export
from tubelet.weights.load import load_model
from tubelet.weights.save import save

from .small import clips, family_of, randomise, small

VARIANTS = sorted(models.variants())
# Largest relative difference of the vectors. bf16 keeps 8 bits, so every rounding is up to 0.4 %, and there are a dozen or two one
# after another; most variants are below 1 %. RAFT's random weights refine a flow that leads anywhere.
APART = {"raft": 0.06}


def apart(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


def both(name: str, class_names: tuple[str, ...] = ()) -> tuple[Model, Model]:
    exact = small(name, class_names).eval()
    randomise(exact)
    return exact, copy.deepcopy(exact).bfloat16()


@pytest.mark.parametrize("name", VARIANTS)
def test_bf16_answers_beside_float32(name: str) -> None:
    exact, quick = both(name, ("a", "b", "c"))
    assert (exact.precision, quick.precision) == ("fp32", "bf16")
    with torch.no_grad():
        wanted, found = exact(clips(exact.spec)), quick(clips(exact.spec))
    assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
        key: (value.shape, value.dtype) for key, value in wanted.items()
    }
    assert all(value.isfinite().all() for value in found.values())
    for key in ("embedding", "logits"):
        assert 0 < apart(found[key], wanted[key]) < APART.get(family_of(name), 0.03), key


def test_integers_of_pretraining_stay_integers() -> None:
    exact, quick = both("videomae_base")
    mask = torch.zeros(2, exact.grid[0] * exact.grid[1] * exact.grid[2], dtype=torch.bool)
    mask[:, ::2] = True
    with torch.no_grad():
        wanted, found = exact(clips(exact.spec), mask=mask), quick(clips(exact.spec), mask=mask)
    assert found["predicted"].dtype == torch.int64 and torch.equal(found["predicted"], wanted["predicted"])
    assert found["prediction"].dtype == torch.float32 and apart(found["prediction"], wanted["prediction"]) < 0.03


def test_words_of_a_vocabulary_in_bf16() -> None:
    model = small("videomae_base", vocabulary=7).eval()
    randomise(model)
    with torch.no_grad():
        found = copy.deepcopy(model).bfloat16()(clips(model.spec), next_token=True)
    assert found["token_ids"].dtype == torch.int64 and found["token_logits"].dtype == torch.float32


def test_text_in_bf16() -> None:
    exact, quick = both("video_text_base")
    texts = ["a cup is put on a table", "a door", "rain"]
    found = quick.embed_text(texts)
    assert found.dtype == torch.float32 and apart(found, exact.embed_text(texts)) < 0.03
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    with torch.no_grad():
        asked = quick(clips(quick.spec, batch=3), text=quick.tokenize(texts))
    torch.testing.assert_close(asked["text"], found)


def test_residual_stream_and_norms_are_bf16() -> None:
    """Autocast must not bring them back to float32: half of the memory that is read would be lost."""
    _, quick = both("videomae_base", ("a", "b"))
    seen = []
    for module in quick.modules():
        if type(module).__name__ in ("Block", "LayerNorm", "Attention", "MLP"):
            module.register_forward_hook(lambda module, given, out: seen.append((type(module).__name__, out.dtype)))
    with torch.no_grad():
        quick(clips(quick.spec))
    assert {name for name, _ in seen} == {"Block", "LayerNorm", "Attention", "MLP"}
    assert {dtype for _, dtype in seen} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_float32_weights_are_as_ever(dtype: torch.dtype) -> None:
    norm = LayerNorm(24)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    wanted = torch.nn.functional.layer_norm(x.float(), (24,), norm.weight, norm.bias, norm.eps)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


def test_compiled_in_bf16_is_one_graph() -> None:
    """The graph that torch.compile makes, without the time it takes to compile it."""
    _, quick = both("videomae_base", ("a", "b"))
    with torch.no_grad():
        net = torch.compile(quick, fullgraph=True, backend="aot_eager")
        found = net(clips(quick.spec))
        wanted = quick(clips(quick.spec))
    assert found["logits"].dtype == torch.float32 and apart(found["logits"], wanted["logits"]) < 0.03


def test_loading_in_bf16(tmp_path: Path) -> None:
    model = small("videomae_base", ("a", "b")).eval()
    randomise(model)
    save(model, tmp_path / "model")
    exact, quick = load_model(tmp_path / "model"), load(tmp_path / "model", precision="bf16").network
    assert exact.precision == "fp32" and not quick.training
    assert {value.dtype for value in quick.state_dict().values()} == {torch.bfloat16}
    assert fingerprint(exact) == fingerprint(model) != fingerprint(quick)
    again = load_model(tmp_path / "model", precision="bf16")
    assert fingerprint(again) == fingerprint(quick)
    with pytest.raises(ConfigError, match=r"unknown precision 'bf1': did you mean 'bf16'\? \(known: fp32, bf16\)"):
        load_model(tmp_path / "model", precision="bf1")


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_a_graph_has_its_own_precision(tmp_path: Path) -> None:
    model = small("videomae_base", ("a", "b")).eval()
    export(model, tmp_path / "graph", "torch")
    assert load_model(tmp_path / "graph", precision="fp32").precision == "fp32"
    with pytest.raises(ConfigError, match=r"graph is an exported graph, .*leave --precision bf16 out") as error:
        load_model(tmp_path / "graph", precision="bf16")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"in bf16: load it in fp32"):
        export(model.bfloat16(), tmp_path / "other", "torch")
