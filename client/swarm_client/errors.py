"""Everything a caller can do wrong or meet on the client's side, and what to do next.

    ClientError
    ├── EmptyPrompt             nothing to continue
    ├── PromptTooLong           more tokens than the model can attend to
    ├── TokenOutsideVocabulary  an id that the model does not have
    ├── InvalidParameter        a value outside what is allowed
    ├── NoTokenizer             text given, but the model comes without a tokenizer
    ├── NoChatTemplate          chat messages given, but the model comes without a template
    ├── BadChat                 messages that the model's template refuses
    ├── BadModelDirectory       a local directory that is not a model
    ├── BadDraft                a draft model that cannot be loaded
    ├── ForeignDraft            a draft model with another vocabulary
    ├── DraftNeedsTorch         a draft model where torch is not installed
    ├── NoBootstrap             no node named to ask
    ├── ModelClosed             used after its end
    ├── NotOffered              the nodes of no route can do what was asked
    └── BadResult               a hop answered something that cannot be an answer

What happens between peers stands in `swarm_net.errors`, what happens inside a session in `swarm_net.session_errors`;
a caller meets all three trees. `code` names an error for programs.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from swarm_net.session_errors import RemoteError, SessionError


class ClientError(Exception, ABC):
    """A failure on the client's side that its reader can understand and act on."""

    @abstractmethod
    def remedy(self) -> str:
        """Say in one sentence what the reader can do about it."""


def code(error: BaseException) -> str:
    """Return the name of an error for programs: `kv_full`, `invalid_parameter`."""
    if isinstance(error, RemoteError):
        return error.remote_code
    if isinstance(error, SessionError):
        return error.code
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()


def first_of(errors: BaseExceptionGroup[Exception]) -> Exception:
    """Return the first error of a group: of tasks that ran together, the one that ended the others."""
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, Exception)
    return first


@dataclass(eq=False)
class EmptyPrompt(ClientError):
    """A prompt without any token."""

    def __str__(self) -> str:
        return "the prompt is empty"

    def remedy(self) -> str:
        return "give at least one token to continue from"


@dataclass(eq=False)
class PromptTooLong(ClientError):
    """More tokens than the model can attend to."""

    tokens: int
    limit: int

    def __str__(self) -> str:
        return f"the prompt has {self.tokens} tokens, the model takes at most {self.limit}"

    def remedy(self) -> str:
        return f"shorten it by {self.tokens - self.limit} tokens or more"


@dataclass(eq=False)
class TokenOutsideVocabulary(ClientError):
    """A token id that the model does not have."""

    token: int
    vocabulary: int

    def __str__(self) -> str:
        return f"token id {self.token} is outside the model's vocabulary of {self.vocabulary}"

    def remedy(self) -> str:
        return f"use ids from 0 to {self.vocabulary - 1}, made by this model's own tokenizer"


@dataclass(eq=False)
class InvalidParameter(ClientError):
    """A value outside what is allowed."""

    name: str
    value: object
    allowed: str

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.name} = {shown if len(shown) <= 80 else shown[:77] + '...'} is not allowed"

    def remedy(self) -> str:
        return f"{self.name} takes {self.allowed}"


@dataclass(eq=False)
class NoTokenizer(ClientError):
    """Text has to be tokenized, and the model comes without tokenizer.json."""

    model: str

    def __str__(self) -> str:
        return f"{self.model} comes without a tokenizer (tokenizer.json)"

    def remedy(self) -> str:
        return "give token ids instead of text"


@dataclass(eq=False)
class NoChatTemplate(ClientError):
    """Chat messages have to be rendered, and the model comes without a template."""

    model: str

    def __str__(self) -> str:
        return f"{self.model} comes without a chat template"

    def remedy(self) -> str:
        return "give the prompt as text, or choose a model that is made for chat"


@dataclass(eq=False)
class BadChat(ClientError):
    """Messages that the template refuses, or a template that cannot be run."""

    reason: str

    def __str__(self) -> str:
        return f"the model's chat template cannot render these messages: {self.reason}"

    def remedy(self) -> str:
        return 'give messages as {"role": ..., "content": ...} with the roles, in the order, that this model knows'


@dataclass(eq=False)
class BadModelDirectory(ClientError):
    """A local directory that is not a model."""

    directory: str
    reason: str

    def __str__(self) -> str:
        return f"{self.directory}: {self.reason}"

    def remedy(self) -> str:
        return "give a directory with config.json and tokenizer.json, or the name or revision of a model in the swarm"


@dataclass(eq=False)
class BadDraft(ClientError):
    """A draft model that cannot be loaded."""

    source: str
    reason: str

    def __str__(self) -> str:
        return f"the draft model {self.source} cannot be used: {self.reason}"

    def remedy(self) -> str:
        return "give the directory of a small model (config.json, safetensors), or --draft ngram, which needs none"


@dataclass(eq=False)
class ForeignDraft(ClientError):
    """A draft model whose tokens are not the model's."""

    source: str
    reason: str

    def __str__(self) -> str:
        return f"the draft model {self.source} speaks of other tokens: {self.reason}"

    def remedy(self) -> str:
        return "give a small model of the same family, with the same tokenizer, or --draft ngram"


@dataclass(eq=False)
class DraftNeedsTorch(ClientError):
    """A draft model runs here, and what it takes is not installed."""

    reason: str

    def __str__(self) -> str:
        return f"a draft model needs torch and transformers here: {self.reason}"

    def remedy(self) -> str:
        return "pip install 'swarm-inference[node]', or use --draft ngram, which needs neither"


@dataclass(eq=False)
class NoBootstrap(ClientError):
    """No node named to ask."""

    def __str__(self) -> str:
        return "no node of a swarm is named"

    def remedy(self) -> str:
        return "give --bootstrap ADDRESS (or set SWARM_BOOTSTRAP), as `swarm-node start` prints it"


@dataclass(eq=False)
class ModelClosed(ClientError):
    """The connection to the swarm has been closed."""

    def __str__(self) -> str:
        return "this model has been closed"

    def remedy(self) -> str:
        return "connect again, and generate inside the `with` block"


@dataclass(eq=False)
class NotOffered(ClientError):
    """The model is served, but not by nodes that can do what was asked."""

    feature: str
    extra: str = ""  # what a node's install needs for it

    def __str__(self) -> str:
        return f"no route of this model offers {self.feature}"

    def remedy(self) -> str:
        if self.extra:
            able = f"pip install 'swarm-inference[node,{self.extra}]' on the machine that serves the last blocks"
            return f"do without it, or let a node join that can do it: {able}"
        return "do without it, or try again when other nodes have joined"


@dataclass(eq=False)
class BadResult(ClientError):
    """The last hop answered something that cannot be an answer."""

    peer: str
    reason: str

    def __str__(self) -> str:
        return f"hop {self.peer[-8:]} answered nonsense: {self.reason}"

    def remedy(self) -> str:
        return "try again: a route around that node is taken"
