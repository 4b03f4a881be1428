"""Non-local neural networks (Wang et al. 2018): blocks in a 3D network in which every place of a clip looks at all others.

A block adds to x its answer y = sum over j of f(x_i, x_j) g(x_j), passed through a last layer that begins at zero: a fresh block
changes nothing, bit by bit, and may be put into a trained network (`from_plain`). f is either
embedded_gaussian   softmax over j of query_i . key_j, which is self-attention of one head without its 1/sqrt(d) (equation 4)
dot_product         query_i . key_j / N (equation 5)

`net` is any I3D or R(2+1)D, and `after` names the blocks behind which a non-local one stands. The variants follow the paper's
five blocks: every other block of layer2 and layer3. How ours differs: the projections have no bias, as in the paper's formulas
(a softmax does not see the key's, and the batch norm takes the value's away); its released networks have.

B batch, D width, E inner width, T, H, W of the map, N = THW places, M places that are looked at.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError
from tubelet.find import choose
from tubelet.models import _trunk, build_like, i3d, r2plus1d
from tubelet.models import build as build_net
from tubelet.models._conv3d import BatchNorm
from tubelet.models._transformer import attend
from tubelet.records import ClipSpec

PAPER = "Wang et al. 2018, arXiv:1711.07971"

VARIANTS: dict[str, dict[str, Any]] = {
    "nonlocal_i3d_r50": dict(net="i3d_r50", after=["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]),
    "nonlocal_r2plus1d_18": dict(net="r2plus1d_18", after=["layer2.1", "layer3.1"]),
}
CLIPS = {"nonlocal_i3d_r50": i3d.CLIPS["i3d_r50"], "nonlocal_r2plus1d_18": r2plus1d.CLIPS["r2plus1d_18"]}


def build(name: str, spec: ClipSpec, class_names: Sequence[str] = (), **options: Any) -> "NonLocalNet":
    """A freshly initialised network with non-local blocks; with `class_names` it has a head."""
    return NonLocalNet(name, spec, tuple(class_names), **{**VARIANTS[name], **options})


def embedded_gaussian(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T) v: (B,N,E) of queries (B,N,E), keys and values (B,M,E)."""
    query = query * query.shape[2] ** 0.5  # which attention divides by
    return attend(query[:, None], key[:, None], value[:, None])[:, 0]


def dot_product(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(q k^T / M) v, with the product of keys and values made first: no N x M weights."""
    return query @ (key.mT @ value / key.shape[1])


KINDS = {"embedded_gaussian": embedded_gaussian, "dot_product": dot_product}


class NonLocal(nn.Module):
    """x + last(f(query, key) value), figure 2. With `subsample`, 2x2 places are looked at as one (section 3.3); with `norm`, the
    last layer is a batch norm (section 4.1), otherwise the last convolution."""

    def __init__(self, width: int, kind: str, subsample: bool, norm: bool) -> None:
        super().__init__()
        self.kind, self.subsample = kind, subsample
        inner = width // 2
        self.query = nn.Conv3d(width, inner, 1, bias=False)
        self.key = nn.Conv3d(width, inner, 1, bias=False)
        self.value = nn.Conv3d(width, inner, 1, bias=False)
        self.pool = nn.MaxPool3d((1, 2, 2), ceil_mode=True) if subsample else nn.Identity()
        self.out = nn.Conv3d(inner, width, 1, bias=False)
        self.norm = BatchNorm(width) if norm else nn.Identity()

    def init_weights(self) -> None:
        """The last layer to zero."""
        nn.init.zeros_(self.norm.weight if isinstance(self.norm, BatchNorm) else self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D,T,H,W) -> the same shape."""
        query, key, value = self.query(x), self.pool(self.key(x)), self.pool(self.value(x))
        y = KINDS[self.kind](*(part.flatten(2).mT for part in (query, key, value)))  # (B,N,E)
        return x + self.norm(self.out(y.mT.unflatten(2, x.shape[2:])))


class NonLocalNet(_trunk.TrunkModel):
    """`net` and `net_options` are the name and options of the network that the blocks stand in; see `NonLocal` for the rest."""

    def __init__(
        self, name: str, spec: ClipSpec, class_names: tuple[str, ...] = (), *, net: str, after: Sequence[str],
        kind: str = "embedded_gaussian", subsample: bool = True, norm: bool = True,
        net_options: Mapping[str, Any] | None = None, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        choose(net, [*i3d.VARIANTS, *r2plus1d.VARIANTS], "net")
        choose(kind, KINDS, "kind")
        options: dict[str, Any] = dict(net=net, after=[*after], kind=kind, subsample=subsample, norm=norm)
        options["net_options"] = dict(net_options or {})
        plain = build_net(net, spec, **options["net_options"])
        assert isinstance(plain, _trunk.TrunkModel)
        trunk = plain.trunk
        widths = {block: module.width_out for block, module in trunk.named_modules() if hasattr(module, "width_out")}
        if not after:
            raise ConfigError(f"after is empty: name blocks of {net} ({', '.join(widths)}), or take the model {net} itself")
        for block in after:
            width = widths[choose(block, widths, f"block of {net} in after")]
            insert(trunk, block, NonLocal(width, kind, subsample, norm))
        super().__init__(name, spec, class_names, trunk, dropout, options)

    def init_weights(self) -> None:
        """As the plain network, with the last layer of every non-local block at zero."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, NonLocal):
                module.init_weights()

    def receptive_field(self) -> None:
        """None: the first non-local block sees the whole clip."""

    def attended_pairs(self) -> int:
        """Of the first non-local block, whose map is the largest."""
        pairs: list[int] = []
        with torch.device("meta"):
            twin = build_like(self).eval()
            frames = torch.zeros(1, self.spec.frames, 3, self.spec.size, self.spec.size, dtype=torch.uint8)
        for module in twin.modules():
            if isinstance(module, NonLocal):
                module.register_forward_hook(
                    lambda block, inputs, _: pairs.append(inputs[0][0, 0].numel() * block.pool(inputs[0])[0, 0].numel())
                )
        with torch.no_grad():
            twin(frames)
        return pairs[0]


def insert(trunk: nn.Module, after: str, block: nn.Module) -> None:
    """Put `block` right behind the one called `after`, as "AFTER_nonlocal": all other names stay what they were."""
    where, _, behind = after.rpartition(".")
    sequence = trunk.get_submodule(where)
    children = list(sequence.named_children())
    for name, _ in children:
        delattr(sequence, name)
    for name, child in children:
        sequence.add_module(name, child)
        if name == behind:
            sequence.add_module(f"{name}_nonlocal", block)


def from_plain(state: Mapping[str, Tensor], like: NonLocalNet) -> dict[str, Tensor]:
    """The weights of a plain I3D or R(2+1)D as those of `like`, whose non-local blocks keep the values they have.

    CheckpointError names every weight that does not fit.
    """
    own = like.state_dict()
    blocks = {key: value for key, value in own.items() if "_nonlocal." in key}
    return _trunk.account({**blocks, **state}, own, f"of {like.options['net']}")
