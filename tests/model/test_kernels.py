"""Attention kernels against attention written out, session by session.

The libraries' own kernels need their devices; here functions stand for them that hold them to what their documentation
says of the arguments, so that what they are told is right. On a device: tests marked gpu.
"""

import math
import random
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from swarm_model.kernels import (
    VARLEN_PAGE,
    Asked,
    FlashInferAttention,
    GatheredDecode,
    Kernel,
    Layout,
    VarlenAttention,
)
from swarm_model.native_attention import NativeAttention
from swarm_model.native_kernels import native_operator
from swarm_model.transfers import Transfers

CPU = torch.device("cpu")
HEADS, KV_HEADS, SIZE = 4, 2, 16


def asked_of(**changes: Any) -> Asked:
    return Asked(
        **{
            "heads": HEADS,
            "kv_heads": KV_HEADS,
            "key_size": SIZE,
            "value_size": SIZE,
            "dtype": torch.float32,
            "scale": 0.3,
            **changes,
        }
    )


def attend_plainly(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, asked: Asked, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend a session's last rows, `[rows, heads, size]`, to all its tokens, `[tokens, kv heads, size]`."""
    rows, tokens = len(query), len(keys)
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = torch.einsum("rhd,thd->hrt", query, keys) * asked.scale
    if asked.softcap is not None:
        scores = torch.tanh(scores / asked.softcap) * asked.softcap
    places, seen = torch.arange(tokens - rows, tokens)[:, None], torch.arange(tokens)
    hidden = seen > places
    if asked.window:
        hidden |= seen <= places - asked.window
    if asked.chunk:
        hidden |= seen < places // asked.chunk * asked.chunk
    scores.masked_fill_(hidden, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, rows, 1)), dim=-1)
    shares = torch.softmax(scores, dim=-1)[..., :tokens]
    return torch.einsum("hrt,thd->rhd", shares, values)


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
) -> torch.Tensor:
    """Stands for torch's: its arguments as `torch.nn.attention.varlen` and flash attention 2 describe them."""
    assert {cu_seq_q.dtype, seqused_k.dtype, block_table.dtype} == {torch.int32}
    assert key.shape[1] % 256 == 0
    assert window_size[1] == 0
    assert enable_gqa or query.shape[1] == key.shape[2]
    asked = asked_of(scale=scale, window=window_size[0] + 1)
    outputs = []
    for session, tokens in enumerate(seqused_k.tolist()):
        first, end = cu_seq_q[session], cu_seq_q[session + 1]
        assert end - first <= max_q
        assert tokens <= max_k
        pages = block_table[session]
        rows = [pool[pages].flatten(0, 1)[:tokens] for pool in (key, value)]
        outputs.append(attend_plainly(query[first:end], *rows, asked))
    return torch.cat(outputs)


class FlashInferWrapper:
    """Stands for FlashInfer's BatchPrefillWithPagedKVCacheWrapper."""

    def __init__(self, workspace: torch.Tensor, layout: str, **buffers: Any) -> None:
        assert layout == "NHD"
        self.buffers = buffers

    def plan(
        self,
        qo_indptr: torch.Tensor,
        paged_kv_indptr: torch.Tensor,
        paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool,
        sm_scale: float,
        window_left: int,
        logits_soft_cap: float | None,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        tables = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(table.dtype == torch.int32 for table in tables)
        assert causal
        assert len(paged_kv_indices) == paged_kv_indptr[-1]
        if self.buffers:
            assert len(self.buffers["paged_kv_indices_buf"]) >= len(paged_kv_indices)
            assert len(self.buffers["qo_indptr_buf"]) == len(qo_indptr)
        self.rows, self.ends, self.pages, self.last = (table.clone() for table in tables)
        self.page_size = page_size
        self.asked = asked_of(scale=sm_scale, window=window_left + 1, softcap=logits_soft_cap)

    def run(self, query: torch.Tensor, paged: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        outputs = []
        for session, last in enumerate(self.last.tolist()):
            pages = self.pages[self.ends[session] : self.ends[session + 1]]
            tokens = (len(pages) - 1) * self.page_size + last
            rows = [pool[pages].flatten(0, 1)[:tokens] for pool in paged]
            outputs.append(attend_plainly(query[self.rows[session] : self.rows[session + 1]], *rows, self.asked))
        return torch.cat(outputs)


KERNELS: dict[str, Callable[[], Kernel]] = {
    **({"native": lambda: NativeAttention(5)} if native_operator("paged_attention") else {}),
    "gathered": GatheredDecode,
    "varlen": lambda: VarlenAttention(varlen_attn),
    "flashinfer": lambda: FlashInferAttention(CPU, FlashInferWrapper),
}
EVERYWHERE = [{}, {"window": 5}, {"kv_heads": HEADS}]
CASES = [
    *((name, changes) for name in KERNELS for changes in EVERYWHERE),
    *((name, {"softcap": 2.0}) for name in ("gathered", "flashinfer")),
    *(("gathered", changes) for changes in ({"chunk": 8}, {"has_sinks": True}, {"value_size": 24})),
]


@pytest.mark.parametrize(("name", "changes"), CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_kernels_attend_as_written_out(name: str, changes: dict[str, Any], seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kernel, asked = KERNELS[name](), asked_of(**changes)
    page_size = kernel.page_size
    sessions = rng.randint(1, 5)
    lengths = [rng.randint(1, 3 * page_size) for _ in range(sessions)]
    counts = [rng.randint(1, min(length, kernel.longest_chunk, 9)) for length in lengths]
    pages = rng.sample(range(4 * sessions), 4 * sessions)
    table = np.array([[pages.pop() for _ in range(3)] for _ in lengths], np.int32)
    keys = torch.randn(4 * sessions * page_size, asked.kv_heads, asked.key_size)
    values = torch.randn(4 * sessions * page_size, asked.kv_heads, asked.value_size)
    written = [
        int(page) * page_size + place
        for own_pages, length in zip(table, lengths, strict=True)
        for page, place in list(product(own_pages, range(page_size)))[:length]
    ]
    others = torch.ones(len(keys), dtype=torch.bool).index_fill(0, torch.tensor(written), False)
    keys[others] = values[others] = math.nan  # what another session may have left there
    query = torch.randn(sum(counts), asked.heads, asked.key_size)
    sinks = torch.randn(asked.heads) if asked.has_sinks else None
    row_ends = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    layout = Layout.of(row_ends, np.array(lengths, np.int32), table, page_size, Transfers(CPU))

    output = kernel.attend(query, keys, values, layout, asked, sinks)

    for session, length in enumerate(lengths):
        own = slice(row_ends[session], row_ends[session + 1])
        slots = [int(page) * page_size + place for page in table[session] for place in range(page_size)][:length]
        expected = attend_plainly(query[own], keys[slots], values[slots], asked, sinks)
        torch.testing.assert_close(output[own], expected, atol=1e-5, rtol=1e-5)


def test_what_kernels_cannot_do_they_do_not_take() -> None:
    fit = asked_of(dtype=torch.bfloat16)
    kernels = {name: make() for name, make in KERNELS.items()}
    assert all(kernel.serves(fit) for kernel in kernels.values())
    for changes in ({"softcap": 2.0}, {"chunk": 8}, {"has_sinks": True}, {"dtype": torch.float32}, {"key_size": 512}):
        assert not kernels["varlen"].serves(asked_of(**{"dtype": torch.bfloat16, **changes}))
    for changes in ({"chunk": 8}, {"has_sinks": True}, {"value_size": 8}):
        assert not kernels["flashinfer"].serves(asked_of(**{"dtype": torch.bfloat16, **changes}))
    assert not kernels["gathered"].serves(asked_of(has_biases=True))
    assert kernels["varlen"].page_size == VARLEN_PAGE
