"""What an operator can set, and where each value comes from: flag, environment, TOML file or default, in that order.

Owns the names, types and defaults of the settings, and the merging. `__main__.py` passes the flags; `program.py` reads
the result. Environment: `SWARM_NODE_` and the name in capitals (`SWARM_NODE_KV_MEMORY`); TOML: the name with
underscores, at the top level of the file.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from swarm_node.errors import BadSetting

APP = "swarm-inference"
ENVIRONMENT = "SWARM_NODE_"

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}B": size for unit, size in _UNITS.items() if unit not in ("", "B")}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def _size(value: object) -> object:
    """Read "2GiB", "512 MB" or a number of bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError("write a size such as 2GiB, 512MiB or 1.5GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _pool_size(value: object) -> object:
    if value == "auto":
        return value
    size = _size(value)
    if isinstance(size, int) and size <= 0:
        raise ValueError("write a size above 0, or auto")
    return size


def _host_port(value: object) -> object:
    if value and isinstance(value, str) and not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+):[0-9]{1,5}", value):
        raise ValueError("write HOST:PORT, an IPv6 host in brackets; port 0 takes a free one")
    return value


def _blocks(value: object) -> object:
    if isinstance(value, str) and value != "auto" and not re.fullmatch(r"[0-9]+:[0-9]+", value):
        raise ValueError("write START:END, such as 0:8, or auto")
    return value


def _money(value: object) -> object:
    text = str(value) if isinstance(value, int | float) else value
    if text and isinstance(text, str) and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise ValueError("write an amount such as 2 or 0.5")
    return text


def _switch(value: object) -> object:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _list(value: object) -> object:
    return [item for item in value.split(",") if item] if isinstance(value, str) else value


_METAVARS = {
    "model": "DIR_OR_HF_ID",
    "blocks": "START:END|auto",
    "bootstrap": "ADDR",
    "listen": "HOST:PORT",
    "announce": "HOST:PORT",
    "libp2p_listen": "MULTIADDR",
    "dht": "auto|on|off",
    "data_dir": "DIR",
    "identity": "FILE",
    "device": "auto|cpu|cuda[:N]",
    "dtype": "auto|float32|bfloat16|float16",
    "quantize": "none|int8|int4|nf4|fp8",
    "threads": "N",
    "kv_memory": "SIZE|auto",
    "swap_memory": "SIZE",
    "idle_timeout": "SECONDS",
    "share_prefixes": "off|client|everyone",
    "price": "AMOUNT",
    "currency": "credits|ETH|TOKEN",
    "bank": "auto|on|off",
    "starting_credit": "AMOUNT",
    "starting_credit_per_day": "AMOUNT",
    "starting_credit_in_total": "AMOUNT",
    "rpc": "URL",
    "contract": "ADDRESS",
    "keystore": "FILE",
    "password_file": "FILE",
    "confirmations": "N",
}

SWITCHES = frozenset({"bank"})  # flags without a value: --bank, --no-bank
SIZES = frozenset({name for name, value in _METAVARS.items() if value.startswith("SIZE")})

Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
PoolSize = Annotated[int | Literal["auto"], BeforeValidator(_pool_size)]
HostPort = Annotated[str, BeforeValidator(_host_port)]
Blocks = Annotated[str, BeforeValidator(_blocks)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Money = Annotated[str, BeforeValidator(_money)]
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
Texts = Annotated[list[str], BeforeValidator(_list)]


class Settings(BaseModel):
    """The settings of one node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("", description="directory of a checkpoint, or a Hugging Face id")
    revision: str = Field("", description="of a Hugging Face id: branch, tag or commit")
    blocks: Blocks = Field("auto", description="START:END, or auto: what fits and what the swarm lacks")
    bootstrap: Texts = Field([], description="addresses of nodes to join; none starts a new swarm")
    listen: HostPort = Field("", description="of the direct listener; default: the next free port from 31330 on")
    announce: HostPort = Field("", description="what others dial, where it is not --listen")
    libp2p_listen: Texts = Field([], description="multiaddrs of the DHT daemon, such as /ip4/0.0.0.0/tcp/0")
    dht: Literal["auto", "on", "off"] = Field("auto", description="run the DHT daemon; off: publish through others")
    data_dir: str = Field("", description="identity and state; default: the next free one of this user")
    identity: str = Field("", description="key file; default: identity.pem in the data directory")
    device: Device = Field("auto", description="where to run")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of weights and activations")
    quantize: Literal["none", "int8", "int4", "nf4", "fp8"] = Field("none", description="weights, while loading")
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(0, description="for computing; 0: all free cores")
    kv_memory: PoolSize = Field(
        "auto", description="for keys and values, such as 4GiB; auto: 2GiB, on a GPU what the blocks leave free"
    )
    swap_memory: Size = Field(0, description="of the host, where sessions wait that do not fit there; they take turns")
    idle_timeout: Seconds = Field(300.0, description="after which a session that nobody uses ends")
    share_prefixes: Literal["off", "client", "everyone"] = Field(
        "client", description="who may reuse what was computed of a prompt; everyone: only where all hops are trusted"
    )
    price: Money = Field("", description="of an hour of this machine, in the currency; 0: free; default: a rate")
    currency: Literal["credits", "ETH", "TOKEN"] = Field("credits", description="credits of a bank, or a chain's money")
    bank: Switch = Field("auto", description="host the swarm's bank, or do not; default: where a new swarm begins")
    starting_credit: Money = Field("100", description="that the hosted bank gives to each new account")
    starting_credit_per_day: Money = Field("1000", description="at most, to one network address")
    starting_credit_in_total: Money = Field("1000000", description="at most, to all")
    rpc: Texts = Field([], description="endpoints of the chain, tried in this order")
    contract: str = Field("", description="the ledger's contract on the chain")
    keystore: str = Field("", description="encrypted key of the account that is paid on the chain")
    password_file: str = Field("", description="of the keystore; else SWARM_LEDGER_PASSWORD, else a prompt")
    confirmations: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="blocks until a channel counts")
    region: Annotated[str, Field(max_length=32)] = Field("", description="where the node is, for routing")


@dataclass(frozen=True, slots=True)
class Sourced:
    """Settings, each one's origin, and what looks like a mistake but stops nothing."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def default_config_file() -> Path:
    """Where settings are read from without --config."""
    return Path(platformdirs.user_config_dir(APP)) / "node.toml"


def resolve(flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None) -> Sourced:
    """Merge flags over environment over file over defaults; raises BadSetting naming the origin of what is wrong."""
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")
    path = config or default_config_file()
    for name, value in _file_values(config).items():
        values[name], origins[name] = value, str(path)
    for name, value in _environment_values(environment).items():
        values[name], origins[name] = value, ENVIRONMENT + name.upper()
    for name, value in flags.items():
        if value is not None:
            values[name], origins[name] = value, "--" + name.replace("_", "-")
    try:
        return Sourced(Settings(**values), origins, _unknown_variables(environment))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        reason = "no such setting" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise BadSetting(name, str(values.get(name)), origins.get(name, "flags"), reason) from error


def _file_values(config: Path | None) -> dict[str, Any]:
    path = config or default_config_file()
    if config is None and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting("config", str(path), "--config", str(error)) from error


def _environment_values(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: environment[ENVIRONMENT + name.upper()]
        for name in Settings.model_fields
        if ENVIRONMENT + name.upper() in environment
    }


def _unknown_variables(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Name the variables that look like settings and are none: another program's, or a slip of the pen."""
    known = [ENVIRONMENT + name.upper() for name in Settings.model_fields]
    warnings = []
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            warnings.append(f"{name} is no setting and does nothing; the nearest is {near}")
    return tuple(warnings)


def shown(name: str, value: object) -> str:
    """Write a setting's value as people write it: sizes with their unit, lists with commas."""
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    if name in SIZES and isinstance(value, int):
        units = [("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)]
        return next((f"{value // size}{unit}" for unit, size in units if value % size == 0), str(value))
    return str(value)


def metavar(name: str) -> str:
    """Return how `--help` names a setting's value."""
    return _METAVARS.get(name, name.upper())
