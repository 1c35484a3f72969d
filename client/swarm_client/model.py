"""A model that lives in a swarm, for asyncio programs.

Owns a client's connection from its beginning to its end, and how a prompt becomes ids; `token_stream.py` runs each
generation. `blocking.py` is the same for programs without asyncio.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self, Unpack, overload

from swarm_client.connection import Connection, Needs
from swarm_client.continuation import Continuation
from swarm_client.daemon_executor import DaemonExecutor
from swarm_client.deadlines import Patience
from swarm_client.detokenizer import NoText
from swarm_client.dispatch import Dispatcher
from swarm_client.draft_checkpoint import DraftCheckpoint
from swarm_client.drafting import Drafting
from swarm_client.drafts import Drafter
from swarm_client.errors import (
    EmptyPrompt,
    ModelClosed,
    NoBootstrap,
    NoChatTemplate,
    NoTokenizer,
    PromptTooLong,
    TokenOutsideVocabulary,
    first_of,
)
from swarm_client.local_model import local_directory, revision_of
from swarm_client.model_files import ModelFiles, default_cache_dir, load_model_files
from swarm_client.money import WalletOptions, wallet_of
from swarm_client.ngram import NGramDrafter
from swarm_client.parameters import Arguments, Asked, Parameters, resolve, resolve_samples
from swarm_client.prompts import (
    ChatPrompt,
    IdsPrompt,
    OnePrompt,
    Prompt,
    Prompts,
    TextPrompt,
    read_prompt,
    read_prompts,
)
from swarm_client.results import Generation
from swarm_client.token_stream import TokenStream
from swarm_client.world import World, real_world
from swarm_net.endpoint import Endpoint
from swarm_net.messages import ModelId
from swarm_net.routing import Route
from swarm_net.snapshot import Snapshot

MAX_SESSIONS_AT_ONCE = 64  # of one list of prompts; the others wait for their turn


class AsyncRemoteModel:
    """One model of a swarm. Made by `connect`; every method may be called concurrently."""

    def __init__(self, connection: Connection, files: ModelFiles) -> None:
        self._connection = connection
        self._files = files
        self._renderer = DaemonExecutor("chats")
        self._draft_models: dict[str, DraftCheckpoint] = {}

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        model: str,
        bootstrap: Sequence[str] = (),
        *,
        cache_dir: Path | None = None,
        patience: Patience | None = None,
        cache_salt: bytes | None = None,
        wallet: WalletOptions | Path | str | None = None,
        world: World | None = None,
    ) -> AsyncGenerator[Self, None]:
        """Find a model in the swarm and keep in touch with its nodes until the `async with` block ends.

        Args:
            model: a name, `name@revision`, a revision (six digits or more), or a local directory with at least
                config.json and tokenizer.json.
            bootstrap: addresses of nodes, `/ip4/HOST/tcp/PORT/p2p/PEER_ID`; any that runs will do.
            cache_dir: where tokenizers are kept; by default in the user's cache.
            patience: how long a route may be silent.
            cache_salt: what hops find the beginnings of this client's prompts by, at most 64 bytes; by default a new
                secret each time. Clients with one salt share them on nodes whose operators let everyone share.
            wallet: what nodes are paid from: `WalletOptions`, or a folder; by default this user's. "none": only nodes
                that work for nothing are used.
            world: transport, clock and randomness of a simulation.

        Raises NoBootstrap, NoSuchModel, AmbiguousModel, BadModelDirectory, and the NetError of an address that does
        not work.
        """
        addresses = [bootstrap] if isinstance(bootstrap, str) else list(bootstrap)
        if not addresses:
            raise NoBootstrap
        options = None if wallet == "none" or (wallet is None and world is not None) else _options(wallet)
        world = world or real_world()
        async with AsyncExitStack() as stack:
            endpoint = Endpoint(peer=world.peer, transport=world.transport, clock=world.clock)
            stack.push_async_callback(endpoint.close)
            local_dir = local_directory(model)
            if local_dir is not None:
                model = await revision_of(local_dir, endpoint, addresses, world)
            snapshot = Snapshot(endpoint, clock=world.clock, bootstrap=addresses, model=model, rng=world.rng)
            stack.push_async_callback(snapshot.close)
            await snapshot.connect()
            files = await load_model_files(snapshot, cache_dir or default_cache_dir(), local_dir)
            own_wallet = wallet_of(options, endpoint, world, stack) if options else world.wallet(endpoint, stack)
            connection = Connection(
                model=snapshot.model,
                manifest=snapshot.manifest,
                endpoint=endpoint,
                dispatcher=Dispatcher(endpoint),
                snapshot=snapshot,
                clock=world.clock,
                entropy=world.entropy,
                rng=world.rng,
                patience=patience or Patience(),
                wallet=own_wallet,
                cache_salt=world.entropy(16) if cache_salt is None else cache_salt,
            )
            remote = cls(connection, files)
            try:
                yield remote
            finally:
                connection.is_closed = True
                remote._renderer.shutdown(wait=False, cancel_futures=True)
                if files.chat_template is not None:
                    files.chat_template.close()
                for draft_model in remote._draft_models.values():
                    draft_model.close()

    @property
    def model(self) -> ModelId:
        """The name and exact revision that was found."""
        return self._connection.model

    # A string is also a sequence of strings; it is one prompt.
    @overload
    async def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, **arguments: Unpack[Arguments]
    ) -> Generation: ...
    @overload
    async def generate(self, prompt: Sequence[Prompt], **arguments: Unpack[Arguments]) -> list[Generation]: ...
    async def generate(self, prompt: Prompts, **arguments: Unpack[Arguments]) -> Generation | list[Generation]:
        """Continue a prompt, or several at once.

        Args:
            prompt: a string, token ids, or chat messages; a list of such gives a list of results, in order.
            arguments: see `Arguments`.

        Raises ClientError before anything is sent, NetError (NoRoute, or a SessionError with its hop) after.
        """
        asked = Asked(**arguments)
        read = read_prompts(prompt)
        if not isinstance(read, list):
            return await _drained(self._stream(await self._rendered(read), asked))
        return await _together([self._stream(await self._rendered(one), asked) for one in read])

    async def samples(self, prompt: Prompt, n: int, **arguments: Unpack[Arguments]) -> list[Generation]:
        """Continue one prompt `n` times at once, with the seeds `seed`, `seed + 1`, ...; errors as in `generate`.

        Sample i is what `generate` gives with the seed `seed + i`. Greedy decoding gives the same text n times. A long
        prompt is computed once where the nodes share prefixes: the others begin when the first has its first token.
        """
        several = resolve_samples(Asked(**arguments), n, self._files.sampling, self._connection.entropy)
        read = await self._rendered(read_prompt(prompt))
        first, *others = [self._stream_with(read, parameters) for parameters in several]
        for stream in others:
            stream.share_prompt(first)
        return await _together([first, *others])

    def stream(self, prompt: Prompt, **arguments: Unpack[Arguments]) -> TokenStream:
        """Return the tokens of one continuation as they come; arguments and errors as in `generate`.

        Iterate it with `async for`. To stop early, leave `async with model.stream(...) as tokens:`, call `aclose`, or
        drop it; the nodes are told at once. `generation` holds the whole after the last token.

        A chat is rendered before this returns: for the first one that takes a tenth of a second, in which the event
        loop waits. `tokenize` does it beside the loop, and its ids can be given instead.
        """
        return self._stream(read_prompt(prompt), Asked(**arguments))

    async def tokenize(self, prompt: Prompt) -> Sequence[int]:
        """Return a prompt's ids, as a generation would begin with. Raises ClientError."""
        if self._connection.is_closed:
            raise ModelClosed
        return self._ids(await self._rendered(read_prompt(prompt)))

    async def route(self, max_tokens: int = 1) -> Route:
        """Return the route that a session for so many tokens would take now. Raises NoRoute."""
        if self._connection.is_closed:
            raise ModelClosed
        return await self._connection.choose_first(Needs(max_tokens=max_tokens))

    def _stream(self, prompt: OnePrompt, asked: Asked) -> TokenStream:
        return self._stream_with(prompt, resolve(asked, self._files.sampling, self._connection.entropy))

    def _stream_with(self, prompt: OnePrompt, parameters: Parameters) -> TokenStream:
        if self._connection.is_closed:
            raise ModelClosed
        manifest, tokenizer = self._connection.manifest, self._files.tokenizer
        if parameters.stop and tokenizer is None:
            raise NoTokenizer(str(self.model))
        ids = self._ids(prompt)
        if not ids:
            raise EmptyPrompt
        limit = manifest.max_position
        if limit and len(ids) > limit:
            raise PromptTooLong(len(ids), limit)
        if foreign := next((token for token in ids if not 0 <= token < manifest.vocab_size), None):
            raise TokenOutsideVocabulary(foreign, manifest.vocab_size)
        for biased in parameters.sampling.logit_bias:
            if biased.token >= manifest.vocab_size:
                raise TokenOutsideVocabulary(biased.token, manifest.vocab_size)
        room = limit - len(ids) + 1 if limit else parameters.max_new_tokens
        continuation = Continuation(
            ids,
            max_new_tokens=min(parameters.max_new_tokens, room),
            eos_ids=frozenset(manifest.eos_token_ids),
            stop=parameters.stop,
            detokenizer=tokenizer.detokenizer() if tokenizer is not None else NoText(),
        )
        drafter = self._drafter(parameters)
        drafting = Drafting(drafter, manifest.vocab_size) if drafter is not None else None
        return TokenStream(self._connection, continuation, parameters, drafting)

    def _drafter(self, parameters: Parameters) -> Drafter | None:
        """Return who guesses in one generation."""
        draft = parameters.draft
        if draft == "ngram":
            return NGramDrafter()
        if not isinstance(draft, str):
            return draft
        model = self._draft_models.get(draft)
        if model is None:
            vocab_size, tokenizer = self._connection.manifest.vocab_size, self._files.tokenizer
            model = self._draft_models[draft] = DraftCheckpoint(draft, vocab_size=vocab_size, tokenizer=tokenizer)
        return model.drafter(parameters.sampling)

    async def _rendered(self, prompt: OnePrompt) -> OnePrompt:
        """Turn a chat into ids in another thread: its template may take long, and is waited for."""
        if not isinstance(prompt, ChatPrompt) or self._files.chat_template is None or self._connection.is_closed:
            return prompt
        return IdsPrompt(tuple(await asyncio.get_running_loop().run_in_executor(self._renderer, self._ids, prompt)))

    def _ids(self, prompt: OnePrompt) -> Sequence[int]:
        if isinstance(prompt, IdsPrompt):
            return prompt.token_ids
        tokenizer, template = self._files.tokenizer, self._files.chat_template
        if tokenizer is None:
            raise NoTokenizer(str(self.model))
        if isinstance(prompt, TextPrompt):
            return tokenizer.encode(prompt.text)
        if template is None:
            raise NoChatTemplate(str(self.model))
        # The template writes the special tokens itself.
        return tokenizer.encode(template.render(prompt.messages), special_tokens=False)


def _options(wallet: WalletOptions | Path | str | None) -> WalletOptions:
    return wallet if isinstance(wallet, WalletOptions) else WalletOptions(folder=Path(wallet) if wallet else None)


async def _together(streams: Sequence[TokenStream]) -> list[Generation]:
    """Run streams at once, so many at most, and return their generations in order."""
    turns = asyncio.Semaphore(MAX_SESSIONS_AT_ONCE)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(_in_turn(stream, turns)) for stream in streams]
    except* Exception as errors:
        raise first_of(errors) from None
    return [task.result() for task in running]


async def _in_turn(stream: TokenStream, turns: asyncio.Semaphore) -> Generation:
    async with turns:
        return await _drained(stream)


async def _drained(stream: TokenStream) -> Generation:
    async with stream:
        async for _ in stream:
            pass
    assert stream.generation is not None
    return stream.generation
