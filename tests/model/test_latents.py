"""Attention over cached latents without expanding them: exact, in every way that a chunk may take."""

import random
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from swarm_model.acceleration import Acceleration
from swarm_model.checkpoint import Checkpoint
from swarm_model.kernels import GatheredDecode
from swarm_model.kv_pool import KVPool, KVShape
from swarm_model.latents import Absorbed, absorb_all
from swarm_model.native_kernels import native_operator
from swarm_model.span import Chunk, SessionKey, Span
from tests.model.configurations import GROUPED_MOE, LATENT
from tests.model.families import BLOCKS, make_checkpoint

CPU: Final = torch.device("cpu")
# Whole vectors for the native kernel
SIZES: Final = {"kv_lora_rank": 32, "qk_rope_head_dim": 16, "head_dim": 16}
LONG: Final = 40  # tokens: a chunk that long expands its context
ACCELERATIONS: Final = {
    "torch": Acceleration(),
    "gathered": Acceleration((GatheredDecode,)),
    "default": None,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {**LATENT, **GROUPED_MOE, **SIZES}
    return make_checkpoint("deepseek_v3", tmp_path_factory.mktemp("latents"), **changes)


def load(directory: Path, **settings: Any) -> Span:
    settings = {"device": CPU, "dtype": torch.float32, "kv_bytes": 8 << 20, **settings}
    return Span.load(Checkpoint.open(directory), 0, BLOCKS - 1, **settings)  # hidden states come out


@pytest.mark.parametrize("way", ACCELERATIONS)
def test_short_and_long_chunks_give_what_one_piece_gives(way: str, checkpoint: Path) -> None:
    span = load(checkpoint, acceleration=ACCELERATIONS[way])
    if way == "gathered":
        assert span.info.kernel == "gathered"
    elif way == "default" and native_operator("paged_attention") is not None:
        assert span.info.kernel == "native"
    rng = random.Random(way)
    ids = torch.tensor([rng.randrange(3, 90) for _ in range(LONG + 20)])
    (whole,) = span.forward([Chunk(SessionKey(b"whole"), 0, ids)])
    position, pieces = 0, []
    for number, tokens in enumerate((3, LONG, 1, 5, 1, 1, 9)):
        mine = Chunk(SessionKey(b"mine"), position, ids[position : position + tokens])
        beside = Chunk(SessionKey(b"beside"), number, ids[number : number + 1])
        piece, of_other = span.forward([mine, beside])
        pieces.append(piece)
        position += tokens
        assert_close(of_other, whole[number : number + 1])
    assert position == len(ids)
    assert_close(torch.cat(pieces), whole)


def assert_close(given: Any, expected: torch.Tensor) -> None:
    assert float((given - expected).abs().max()) < 1e-5 * float(expected.abs().max())


class LinearRows(TorchDispatchMode):
    """Notes how many rows went through linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, operator: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in operator.name() for name in ("::mm", "::addmm", "linear")):
            self.seen |= {one.numel() // one.shape[-1] for one in args[:2] if isinstance(one, torch.Tensor)}
        return operator(*args, **(kwargs or {}))


def test_a_context_is_not_expanded_for_a_token(checkpoint: Path) -> None:
    span, key = load(checkpoint), SessionKey(b"a")
    with LinearRows() as prompt:
        span.forward([Chunk(key, 0, torch.arange(3, 3 + LONG))])
    assert LONG in prompt.seen
    with LinearRows() as token:
        span.forward([Chunk(key, LONG, torch.tensor([5]))])
    assert 1 in token.seen
    assert LONG + 1 not in token.seen


class Expanding(nn.Module):
    """An expansion as modelling code has it, linear or not."""

    layer_idx = 0

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias
        self.weights = torch.randn(2, 8, 6 + 4, generator=torch.Generator().manual_seed(2))

    def expand_kv(self, latents: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        whole = latents @ self.weights + self.bias
        return torch.cat((whole[..., :6], rotated.expand(-1, 2, -1, -1)), dim=-1), whole[..., 6:]


@pytest.mark.parametrize(("bias", "learned"), [(0.0, True), (0.5, False)])
def test_only_what_is_linear_is_learned(bias: float, learned: bool) -> None:
    found = absorb_all([Expanding(bias)], {0: KVShape(1, 8, 4, latent=True)}, torch.float32, CPU)
    assert bool(found) == learned
    if learned:
        query, latents, rotated = torch.randn(1, 2, 3, 10), torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 4)
        keys, values = Expanding(bias).expand_kv(latents, rotated)
        scores = found[0].query(query) @ torch.cat((latents, rotated), dim=-1).transpose(2, 3)
        assert torch.allclose(scores, query @ keys.transpose(2, 3), atol=1e-4)
        assert torch.allclose(found[0].values(latents.expand(-1, 2, -1, -1)), values, atol=1e-4)


def test_long_chunks_expand_and_short_ones_do_not() -> None:
    """At the sizes of DeepSeek-V2-Lite, where the turn is at 170 rows of a long context."""
    maps = Absorbed(torch.empty(16, 192, 576), torch.empty(16, 512, 128))
    assert all(maps.pays(1, tokens) for tokens in (4, 64, 4096))
    assert maps.pays(16, 256)
    assert maps.pays(150, 10_000)
    assert not maps.pays(180, 10_000)
    assert not maps.pays(128, 128)


def test_pages_of_latents_are_copied_swapped_and_brought_back() -> None:
    shapes = {0: KVShape(1, 8, 4, latent=True), 1: KVShape(2, 4, 4)}
    pool = KVPool(shapes, pages=4, page_size=2, dtype=torch.float32, device=CPU)
    for tensor in (*pool.keys.values(), *pool.values.values()):
        tensor[2:4] = torch.randn(tensor[2:4].shape)
    before = pool.latents[0][2:4].clone()
    assert bool(before.all())  # both of its parts are written
    pool.copy_page(1, 3)
    rows = pool.read_pages([1])
    pool.latents[0][2:4] = 0
    pool.write_pages([0], rows)
    assert torch.equal(pool.latents[0][6:8], before)
    assert torch.equal(pool.latents[0][0:2], before)
