"""Sentences as vectors: a byte-pair tokenizer and a Transformer encoder, trained from scratch or begun from others' weights.

Tokens: the UTF-8 bytes of the lower-cased text, of which frequent neighbours are merged (Sennrich et al. 2016, arXiv:1508.07909;
on bytes, so that no text is unknown). Encoder: as CLIP's (Radford et al. 2021, arXiv:2103.00020, section 2.4), causal, pre-norm,
pooled at the end token; with other options as BERT's, post-norm and pooled over all tokens, which sentence-embedding models are.

Everything but the weights is in the options: merges or a whole tokenizer.json travel as one text in a model's config.json.

B texts, L tokens of the longest, D width, A heads.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError, MissingExtraError
from tubelet.find import choose
from tubelet.models._transformer import BiasedBlock, LayerNorm

if TYPE_CHECKING:
    import tokenizers

POOLS = ("end", "mean", "first")
BYTES = 256
END = "<end>"
NO_TOKEN = -1  # stands behind the last token of a text that is shorter than the longest


class TextEncoder(nn.Module):
    """Token ids to one vector a text.

    tokenizer   merges, one a line as `train_merges` gives them, or the text of a tokenizer.json of others; "": bytes
    vocabulary  rows of the embedding; None: as many as the merges need
    context     the longest text in tokens; of longer ones the end is cut off
    causal      a token sees only those before it
    post        BERT's order: LayerNorm after the embedding and after each sum, none at the end
    pool        what stands for the text: the "end" token, the "first", or the "mean" of all
    """

    def __init__(
        self, *, width: int, depth: int, heads: int, mlp_ratio: float = 4.0, tokenizer: str = "", vocabulary: int | None = None,
        context: int = 77, causal: bool = True, post: bool = False, pool: str = "end", gelu: str = "none", eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        if context < 2:
            raise ConfigError(f"text.context is {context}: a text needs at least 2 tokens, 77 are usual")
        vocabulary = vocabulary_of(tokenizer) if vocabulary is None else vocabulary
        self.options: dict[str, Any] = dict(
            width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, tokenizer=tokenizer, vocabulary=vocabulary,
            context=context, causal=causal, post=post, pool=choose(pool, POOLS, "text.pool"), gelu=gelu, eps=eps,
        )  # fmt: skip
        self.width, self.depth = width, depth
        self.embed = nn.Embedding(vocabulary, width)
        self.pos_embed = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList(BiasedBlock(width, heads, mlp_ratio, eps, gelu, post) for _ in range(depth))
        self.norm = LayerNorm(width, eps=eps)
        self._said_cut = False
        self.init_weights()

    def init_weights(self) -> None:
        """CLIP's: normal, 0.02 for tokens, 0.01 for positions, by width and depth for the blocks; 0 for biases, 1 and 0 for
        norms."""
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        inward, outward = self.width**-0.5, self.width**-0.5 * (2 * self.depth) ** -0.5
        deviations = {"attn.qkv": inward, "attn.proj": outward, "mlp.fc1": (2 * self.width) ** -0.5, "mlp.fc2": outward}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=deviations[".".join(name.split(".")[-2:])])
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """int64 (B,L), NO_TOKEN behind the last token of each. ConfigError for an empty text; a text longer than the context is
        cut, its end token stays, and the first time that is said."""
        empty = next((number for number, text in enumerate(texts) if not text.strip()), None)
        if empty is not None:
            raise ConfigError(f"text {empty + 1} of {len(texts)} is empty: give a sentence, for example 'a hand moves left'")
        found = self._tokenizer.encode_batch(list(texts))
        cut = next((text for text, one in zip(texts, found, strict=True) if one.overflowing), None)
        if cut is not None and not self._said_cut:
            self._said_cut = True
            shown = cut if len(cut) <= 60 else f"{cut[:57]}..."
            print(f"cut to {self.options['context']} tokens, as all longer texts: {shown!r}", file=sys.stderr, flush=True)
        ids = torch.full((len(texts), max((len(one.ids) for one in found), default=0)), NO_TOKEN)
        for row, one in zip(ids, found, strict=True):
            row[: len(one.ids)] = torch.tensor(one.ids)
        return ids

    @cached_property
    def _tokenizer(self) -> "tokenizers.Tokenizer":
        made = make_tokenizer(self.options["tokenizer"])
        made.no_padding()
        made.enable_truncation(self.options["context"])
        return made

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (B,L) as `tokenize` gives them -> float32 (B,D)."""
        real = ids != NO_TOKEN
        length = ids.shape[1]
        seen = real[:, None, None, :]  # (B,A,query,key)
        if self.options["causal"]:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        bias = torch.zeros(seen.shape, device=ids.device).masked_fill(~seen, float("-inf"))
        x = self.embed(ids.clamp(min=0)) + self.pos_embed[:length]  # (B,L,D)
        if self.options["post"]:
            x = self.norm(x)
        for block in self.blocks:
            x = block(x, bias)
        if not self.options["post"]:
            x = self.norm(x)
        if self.options["pool"] == "mean":
            return (x * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
        last = real.sum(dim=1) - 1 if self.options["pool"] == "end" else torch.zeros_like(ids[:, 0])
        return x[torch.arange(len(x), device=x.device), last]


# Tokenizers ----------------------------------------------------------------------------------------------------------


def train_merges(texts: Iterable[str], vocabulary: int = 1000) -> str:
    """The merges that make at most `vocabulary` tokens of bytes, the commonest neighbours first: one pair a line, for the option
    `tokenizer`. The same texts give the same merges."""
    library = _library()
    trained = _byte_level(library, {}, [])
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=_alphabet(library), special_tokens=[END], show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    return "\n".join(merge if isinstance(merge, str) else " ".join(merge) for merge in merges)


def vocabulary_of(tokenizer: str) -> int:
    """How many tokens the merges make; ConfigError for a tokenizer.json, whose model says it."""
    if tokenizer.startswith("{"):
        raise ConfigError("text.vocabulary is needed beside a tokenizer.json: its model's config.json says it (vocab_size)")
    return 1 + BYTES + len({"".join(line.split(" ")) for line in tokenizer.splitlines()})


def make_tokenizer(text: str) -> "tokenizers.Tokenizer":
    """The tokenizer that the option `tokenizer` stands for: of merges, byte pairs with an end token; of others, as it is."""
    library = _library()
    if text.startswith("{"):
        return library.Tokenizer.from_str(text)
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in text.splitlines())]
    vocabulary: dict[str, int] = {}
    for token in (END, *_alphabet(library), *("".join(merge) for merge in merges)):
        vocabulary.setdefault(token, len(vocabulary))
    made = _byte_level(library, vocabulary, merges)
    made.post_processor = library.processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocabulary[END])])
    return made


def _byte_level(library: Any, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> "tokenizers.Tokenizer":
    made = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=merges))
    made.normalizer = library.normalizers.Sequence([library.normalizers.NFC(), library.normalizers.Lowercase()])
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


def _alphabet(library: Any) -> list[str]:
    """A character for each byte, in a fixed order."""
    return sorted(library.pre_tokenizers.ByteLevel.alphabet())


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError('texts need the tokenizers library: pip install "tubelet[text]"') from error
    return tokenizers
