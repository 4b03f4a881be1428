"""Non-local blocks: their formulas, and that a fresh one changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError
from tubelet.models import nonlocal_net
from tubelet.models._conv3d import BatchNorm
from tubelet.models.nonlocal_net import NonLocal, NonLocalNet

from .small import SMALL, clips, family_of, randomise, small

KINDS = sorted(nonlocal_net.KINDS)


def block(kind: str, subsample: bool = False, norm: bool = False) -> NonLocal:
    torch.manual_seed(0)
    return NonLocal(8, kind, subsample, norm).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_a_fresh_block_changes_nothing_bit_by_bit(kind: str, subsample: bool, training: bool, norm: bool) -> None:
    made = block(kind, subsample, norm).train(training)
    made.init_weights()
    x = torch.randn(2, 8, 3, 5, 4) * 10
    assert torch.equal(made(x), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subsample", [False, True])
def test_formulas_of_the_paper(kind: str, subsample: bool) -> None:
    """Equations 2, 4 and 5 place by place in float64; where 2x2 places are one, keys and values are the largest of the four."""
    made = block(kind, subsample)
    x = torch.randn(2, 8, 3, 4, 6)
    query, key, value, out = (
        made.get_submodule(name).weight.double()[:, :, 0, 0, 0] for name in ("query", "key", "value", "out")
    )

    def projected(weight: Tensor) -> Tensor:
        return torch.einsum("ed,bdthw->bethw", weight, x.double())

    q, k, v = projected(query), projected(key), projected(value)
    if subsample:
        k, v = (part.unfold(3, 2, 2).unfold(4, 2, 2).amax(dim=(5, 6)) for part in (k, v))
    q, k, v = (part.flatten(2) for part in (q, k, v))  # (B,E,N)
    scores = torch.einsum("ben,bem->bnm", q, k)
    weights = scores.exp() / scores.exp().sum(dim=2, keepdim=True) if kind == "embedded_gaussian" else scores / k.shape[2]
    y = torch.einsum("de,bnm,bem->bdn", out, weights, v).view(x.shape)
    with torch.no_grad():
        torch.testing.assert_close(made(x).double(), x.double() + y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", nonlocal_net.VARIANTS)
def test_a_fresh_network_is_the_plain_one(name: str) -> None:
    model = small(name, ("a", "b", "c")).eval()
    assert isinstance(model, NonLocalNet)
    net = model.options["net"]
    plain = small(net, ("a", "b", "c"), **model.options["net_options"]).eval()
    randomise(plain)
    for module in model.modules():  # anything but the values of the plain network, to see that they are taken
        if isinstance(module, BatchNorm) and module.running_mean is not None:
            nn.init.ones_(module.running_mean)
    model.load_state_dict(nonlocal_net.from_plain(plain.state_dict(), model))
    with torch.no_grad():
        ours, theirs = model(clips(model.spec)), plain(clips(model.spec))
    assert theirs["tokens"].any() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_only_weights_of_the_plain_network_go_in() -> None:
    model = small("nonlocal_r2plus1d_18", ("a", "b"))
    assert isinstance(model, NonLocalNet)
    state = dict(small("r2plus1d_18", ("a", "b")).state_dict())
    state["trunk.layer5.0.weight"] = state.pop("trunk.stem.0.weight")
    with pytest.raises(
        CheckpointError, match="not the weights of r2plus1d_18: left over trunk.layer5.0.weight; missing trunk.stem.0.weight"
    ):
        nonlocal_net.from_plain(state, model)


def test_the_papers_five_blocks() -> None:
    """2 in layer2 (512 channels) and 3 in layer3 (1024): 7.35 M weights on top of I3D's 28.04 M."""
    with torch.device("meta"):
        classes = [str(i) for i in range(400)]
        model = models.build("nonlocal_i3d_r50", models.clip_of("nonlocal_i3d_r50"), classes)
        plain = models.build("i3d_r50", models.clip_of("i3d_r50"), classes)
    places = [name for name, module in model.named_modules() if isinstance(module, NonLocal)]
    assert places == [f"trunk.layer{where}_nonlocal" for where in ("2.1", "2.3", "3.1", "3.3", "3.5")]
    extra = models.cost(model)["params"] - models.cost(plain)["params"]
    assert extra == 2 * (4 * 512 * 256 + 2 * 512) + 3 * (4 * 1024 * 512 + 2 * 1024)
    assert model.attended_pairs() == (4 * 28 * 28) * (4 * 14 * 14)


@pytest.mark.parametrize(
    ("net", "after"), [("i3d_inception", ["inception3b", "inception4c"]), ("r2plus1d_34", ["layer1.0", "layer4.2"])]
)
def test_blocks_go_into_any_of_the_networks(net: str, after: list[str]) -> None:
    spec, options = SMALL.get(net) or SMALL[family_of(net)]
    model = models.build(
        "nonlocal_i3d_r50", spec, ["a", "b"], net=net, after=after, net_options=options, kind="dot_product", norm=False
    )
    assert [name for name, module in model.named_modules() if isinstance(module, NonLocal)] == [
        f"trunk.{x}_nonlocal" for x in after
    ]
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    F.cross_entropy(model(clips(spec))["logits"], torch.tensor([0, 1])).backward()
    gradients = [p.grad for name, p in model.named_parameters() if "_nonlocal" in name]
    assert len(gradients) == 8 and all(gradient is not None and gradient.any() for gradient in gradients)
    assert {model.depth_of(name) for name, _ in model.named_parameters()} == set(range(model.depth + 2))


def test_a_place_sees_all_others() -> None:
    """Beyond a convolution's reach: the far corner of a clip changes the answer at the near one."""
    made = block("embedded_gaussian")
    x = torch.randn(1, 8, 4, 6, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad((made(x) - x)[0, :, 0, 0, 0].sum(), x)
    assert gradient[0, :, -1, -1, -1].any()


def test_bad_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown block of i3d_r50 in after 'layer2.9': did you mean 'layer2.3'"):
        small("nonlocal_i3d_r50", after=["layer2.9"])
    with pytest.raises(ConfigError, match="unknown net 'i3d_r5': did you mean 'i3d_r50'"):
        small("nonlocal_i3d_r50", net="i3d_r5")
    with pytest.raises(ConfigError, match="unknown kind 'gaussian'"):
        small("nonlocal_i3d_r50", kind="gaussian")
    with pytest.raises(ConfigError, match="unknown option of i3d_r50 'widht': did you mean 'width'"):
        small("nonlocal_i3d_r50", net_options=dict(widht=8))
    with pytest.raises(ConfigError, match="after is empty: name blocks of i3d_r50"):
        small("nonlocal_i3d_r50", after=[])
    with pytest.raises(ConfigError, match="nonlocal_i3d_r50 got clips of 4 frames of 32x32 with 1 colours"):
        small("nonlocal_i3d_r50")(torch.zeros(1, 4, 1, 32, 32))
