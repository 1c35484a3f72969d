"""Attention kernels: all sessions of a step at once over KV pages, without a word from the host.

Owns what kernels are told (`Layout`, `Asked`) and the kernels: FlashInfer's, torch's variable-length flash attention,
and one written in plain torch for decode steps of whatever the others cannot do. acceleration.py chooses one when a
span is loaded and compares it with the reference; attention.py calls it, and attends session by session what it does
not take. On CPUs: native_attention.py. FlashInfer: Ye et al., arXiv 2501.01005. Flash attention: Dao, arXiv 2307.08691.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from swarm_model.transfers import Transfers

FLASH_DTYPES: Final = (torch.bfloat16, torch.float16)
FLASH_SIZE: Final = 256  # of a head, at most
VARLEN_PAGE: Final = 256  # tokens; flash attention 2 takes multiples of it alone
ANY_LENGTH: Final = sys.maxsize
WORKSPACE_BYTES: Final = 256 << 20  # for FlashInfer, as its documentation advises with CUDA graphs


Table = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a step's sessions stand in its rows and in the pool: the same int32 tables on the host and on the device.

    `row_ends` is `[sessions + 1]`, beginning with 0; `lengths` `[sessions]` counts tokens with those of the step;
    `pages` is `[sessions, width]` in the order of the tokens. Rows that fill a step up to a graph's size are sessions
    of one token in a page that is nobody's.
    """

    host_row_ends: Table
    host_lengths: Table
    host_pages: Table
    row_ends: torch.Tensor
    lengths: torch.Tensor
    pages: torch.Tensor
    page_size: int
    most_rows: int  # of a session
    most_tokens: int  # that a session may have
    lasts: bool = False  # and is filled anew for each step

    @classmethod
    def of(cls, row_ends: Table, lengths: Table, pages: Table, page_size: int, transfers: Transfers) -> "Layout":
        """Put the tables of one step on the device."""
        flat = np.concatenate((row_ends, lengths, pages.ravel()))
        sizes = [len(row_ends), len(lengths), pages.size]
        ends, counts, table = torch.split(transfers.to_device(torch.from_numpy(flat)), sizes)
        most_rows = int(np.diff(row_ends).max())
        return cls(
            row_ends, lengths, pages, ends, counts, table.view(pages.shape), page_size, most_rows, int(lengths.max())
        )

    @property
    def rows(self) -> int:
        """Count the rows of all sessions."""
        return int(self.host_row_ends[-1])

    @property
    def decodes(self) -> bool:
        """Whether each session has one row."""
        return self.most_rows == 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What a block asks of attention."""

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype
    scale: float
    window: int = 0
    chunk: int = 0
    softcap: float | None = None
    has_sinks: bool = False
    has_biases: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is softmax over all or the last so many keys and nothing else."""
        return not (self.chunk or self.has_sinks or self.has_biases)


class Kernel(Protocol):
    """One way of attending."""

    @property
    def name(self) -> str: ...

    @property
    def page_size(self) -> int:
        """Tokens of a page that it needs."""

    @property
    def longest_chunk(self) -> int:
        """Rows of a session that it takes at most; longer ones are attended by torch."""

    def serves(self, asked: Asked) -> bool:
        """Whether it computes what is asked."""

    def replan(self, layout: Layout) -> None:
        """A graph in which this layout was attended to is about to be replayed: its tables have changed."""

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: Layout,
        asked: Asked,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend `[rows, heads, size]` to a block's pool, `[slots, kv heads, size]`; returns `[rows, heads, size]`.

        Never waits for the device, but to hand over a step's tables when a layout is new.
        """


class GatheredDecode:
    """Decode steps in plain torch: copies the pages of all sessions side by side. For families with softcap or sinks.

    The order of operations is that of transformers' eager attention.
    """

    name: Final = "gathered"
    longest_chunk: Final = 1

    def __init__(self, page_size: int = 16) -> None:
        self.page_size = page_size

    def serves(self, asked: Asked) -> bool:
        return not asked.has_biases

    def replan(self, layout: Layout) -> None:
        pass

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: Layout,
        asked: Asked,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        sessions, width = layout.pages.shape
        group = asked.heads // asked.kv_heads

        def gathered(pool: torch.Tensor) -> torch.Tensor:
            """Read `[sessions, kv heads, width * page size, size]`."""
            by_page = pool.view(-1, layout.page_size, *pool.shape[1:])
            rows = by_page.index_select(0, layout.pages.flatten())
            return rows.view(sessions, width * layout.page_size, *pool.shape[1:]).transpose(1, 2)

        grouped = query.view(sessions, asked.kv_heads, group, asked.key_size)
        scores = (grouped @ gathered(keys).transpose(2, 3)) * asked.scale  # [sessions, kv heads, group, tokens]
        if asked.softcap is not None:
            scores = torch.tanh(scores / asked.softcap) * asked.softcap
        hidden = _hidden(layout, asked, scores.shape[-1])
        scores.masked_fill_(hidden[:, None, None], float("-inf"))
        if sinks is not None:
            sink = sinks.to(scores.dtype).view(1, asked.kv_heads, group, 1).expand(sessions, -1, -1, 1)
            shares = torch.softmax(torch.cat((scores, sink), dim=-1), dim=-1)[..., :-1]
        else:
            shares = torch.softmax(scores, dim=-1)
        seen = gathered(values).masked_fill(hidden[:, None, :, None], 0)  # what others left there may be no number
        return (shares @ seen).view(sessions, asked.heads, asked.value_size)


def _hidden(layout: Layout, asked: Asked, tokens: int) -> torch.Tensor:
    """Say which of the gathered tokens each session's last one does not see: `[sessions, tokens]`."""
    places = torch.arange(tokens, device=layout.lengths.device)
    lengths = layout.lengths[:, None]
    hidden = places >= lengths
    if asked.window:
        hidden |= places < lengths - asked.window
    if asked.chunk:
        hidden |= places < (lengths - 1) // asked.chunk * asked.chunk
    return hidden


class VarlenAttention:
    """torch's own flash attention for ragged batches, `torch.nn.attention.varlen`."""

    name: Final = "varlen"
    page_size: Final = VARLEN_PAGE
    longest_chunk: Final = ANY_LENGTH

    def __init__(self, attend: Callable[..., Any] | None = None) -> None:
        """`attend` is torch's function if it is not given. Raises ImportError where torch has none yet."""
        if attend is None:
            from torch.nn.attention.varlen import varlen_attn

            attend = varlen_attn
        self._attend: Final = attend

    def serves(self, asked: Asked) -> bool:
        fits = asked.key_size == asked.value_size <= FLASH_SIZE and asked.dtype in FLASH_DTYPES
        return asked.is_plain and asked.softcap is None and fits

    def replan(self, layout: Layout) -> None:
        pass

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: Layout,
        asked: Asked,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        paged_keys, paged_values = (pool.view(-1, layout.page_size, *pool.shape[1:]) for pool in (keys, values))
        attended = self._attend(
            query,
            paged_keys,
            paged_values,
            layout.row_ends,
            None,
            layout.most_rows,
            layout.most_tokens,
            scale=asked.scale,
            window_size=(asked.window - 1 if asked.window else -1, 0),
            enable_gqa=asked.heads != asked.kv_heads,
            seqused_k=layout.lengths,
            block_table=layout.pages,
        )
        assert isinstance(attended, torch.Tensor)  # nothing else was asked for
        return attended


class FlashInferAttention:
    """FlashInfer's batch kernels, planned on the host once a step for each kind of block."""

    name: Final = "flashinfer"
    page_size: Final = 16
    longest_chunk: Final = ANY_LENGTH

    def __init__(self, device: torch.device, make_wrapper: Callable[..., Any] | None = None) -> None:
        """`make_wrapper` is the library's class if it is not given. Raises ImportError where it is not installed."""
        if make_wrapper is None:
            import flashinfer  # type: ignore[import-not-found,unused-ignore]

            make_wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper
        self._make_wrapper: Final = make_wrapper
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._shared: dict[Asked, Any] = {}  # wrappers for steps that come once
        self._planned: Layout | None = None  # for which these are ready, as far as `_ready` says
        self._ready: set[Asked] = set()
        # A graph reads the buffers of its own wrappers, several MB each, and they end with it
        self._lasting: WeakKeyDictionary[Layout, dict[Asked, Any]] = WeakKeyDictionary()

    def serves(self, asked: Asked) -> bool:
        fits = asked.key_size == asked.value_size and asked.dtype in FLASH_DTYPES
        return asked.is_plain and fits

    def replan(self, layout: Layout) -> None:
        for asked, wrapper in self._lasting[layout].items():
            self._plan(wrapper, layout, asked)

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: Layout,
        asked: Asked,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        wrapper = self._wrapper(layout, asked)
        output: torch.Tensor = wrapper.run(
            query, tuple(pool.view(-1, layout.page_size, *pool.shape[1:]) for pool in (keys, values))
        )
        return output

    def _wrapper(self, layout: Layout, asked: Asked) -> Any:
        if layout.lasts:
            wrappers = self._lasting.setdefault(layout, {})
            if asked not in wrappers:  # on the run before the capture
                wrappers[asked] = self._lasting_wrapper(layout)
                self._plan(wrappers[asked], layout, asked)
            return wrappers[asked]
        if self._planned is not layout:
            self._planned = layout
            self._ready.clear()
        if asked not in self._ready:
            if asked not in self._shared:
                self._shared[asked] = self._make_wrapper(self._workspace, "NHD")
            self._plan(self._shared[asked], layout, asked)
            self._ready.add(asked)
        return self._shared[asked]

    def _lasting_wrapper(self, layout: Layout) -> Any:
        device, sessions = layout.lengths.device, len(layout.lengths)
        return self._make_wrapper(
            self._workspace,  # used by one attention after the other
            "NHD",
            use_cuda_graph=True,
            qo_indptr_buf=torch.zeros(sessions + 1, dtype=torch.int32, device=device),
            paged_kv_indptr_buf=torch.zeros(sessions + 1, dtype=torch.int32, device=device),
            paged_kv_indices_buf=torch.zeros(layout.pages.numel(), dtype=torch.int32, device=device),
            paged_kv_last_page_len_buf=torch.zeros(sessions, dtype=torch.int32, device=device),
        )

    def _plan(self, wrapper: Any, layout: Layout, asked: Asked) -> None:
        counts = -(-layout.host_lengths // layout.page_size)
        page_ends = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        pages = np.concatenate([row[:count] for row, count in zip(layout.host_pages, counts, strict=True)])
        last = (layout.host_lengths - 1) % layout.page_size + 1
        wrapper.plan(
            torch.from_numpy(layout.host_row_ends),
            torch.from_numpy(page_ends),
            torch.from_numpy(pages).to(layout.pages.device),
            torch.from_numpy(last),
            asked.heads,
            asked.kv_heads,
            asked.key_size,
            layout.page_size,
            causal=True,
            sm_scale=asked.scale,
            window_left=asked.window - 1 if asked.window else -1,
            logits_soft_cap=asked.softcap,
            q_data_type=asked.dtype,
            kv_data_type=asked.dtype,
        )
