"""How results look: as JSON for programs, as text for people. Called by `commands.py`."""

from typing import Any

import msgspec

from swarm_client.errors import ClientError, code
from swarm_client.results import Generation
from swarm_ledger.currencies import Currency
from swarm_ledger.errors import LedgerError
from swarm_net.errors import NetError
from swarm_net.messages import ModelSummary
from swarm_net.routing import Hop, Route

Failed = ClientError | NetError | LedgerError


def generation_json(generation: Generation) -> dict[str, Any]:
    """Return a generation as JSON values, named as its fields; the hops' times stand beside their blocks."""
    values: dict[str, Any] = msgspec.to_builtins(generation)
    timings, hops = values["timings"], values["route"]
    timings["hops"] = [{**hop, **times} for hop, times in zip(hops, timings["hops"], strict=False)]
    if values["logprobs"] is None:
        del values["logprobs"]
    if values["top_logprobs"] is None:
        del values["top_logprobs"]
    if values["drafts"] is None:
        del values["drafts"]
    if generation.receipt.hops:
        values["receipt"]["paid"] = generation.receipt.paid
    else:
        del values["receipt"]
    return values


def summary_line(generation: Generation) -> str:
    """Return what a person wants to know when the text is there."""
    timings, usage = generation.timings, generation.usage
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [f"{usage.prompt_tokens}{cached} + {usage.completion_tokens} tokens"]
    if timings.tokens_per_s is not None:
        parts.append(f"{timings.tokens_per_s:.1f} tokens/s")
    if (drafts := generation.drafts) is not None and drafts.sent:
        parts.append(f"{drafts.accepted} of {drafts.sent} drafts right")
    parts.append(f"first after {timings.time_to_first_token_s:.2f} s")
    parts.append(f"{len(generation.route)} hop{'s' if len(generation.route) > 1 else ''}")
    if generation.seed is not None:
        parts.append(f"seed {generation.seed}")
    if generation.retries:
        parts.append(f"{len(generation.retries)} route(s) given up: {for_terminal(generation.retries[-1].message)}")
    parts += costs(generation)
    parts.append(generation.finish_reason)
    return " · ".join(parts)


def costs(generation: Generation) -> list[str]:
    """Return what a generation cost, in each currency."""
    decimals = {hop.currency: hop.decimals for hop in generation.receipt.hops}
    return [Currency(name, decimals[name]).format(paid, 3) for name, paid in generation.receipt.paid.items()]


def error_json(error: Failed) -> dict[str, str]:
    """Return an error as JSON values."""
    return {"error": code(error), "message": str(error), "remedy": error.remedy()}


def model_json(summary: ModelSummary) -> dict[str, Any]:
    """Return one line of the list of models as JSON values."""
    return {
        "name": summary.model.name,
        "revision": summary.model.revision,
        "blocks": summary.blocks,
        "nodes": summary.nodes,
        "replicas": summary.replicas,
        "missing": [list(span) for span in summary.missing],
    }


def route_json(route: Route) -> dict[str, Any]:
    """Return a route as JSON values."""
    return {
        "model": route.model.name,
        "revision": route.model.revision,
        "estimated_token_ms": route.token_s * 1000,
        "hops": [_hop_json(hop) for hop in route.hops],
    }


def _hop_json(hop: Hop) -> dict[str, Any]:
    record = hop.record
    return {
        "peer": record.peer,
        "start": hop.start,
        "end": hop.end,
        "addresses": list(record.addresses),
        "numeric_class": record.numeric_class,
        "prefill_tokens_per_s": record.prefill_tokens_per_s,
        "decode_tokens_per_s": record.decode_tokens_per_s,
        "load": {
            "sessions": record.load.sessions,
            "queued_tokens": record.load.queued_tokens,
            "busy": record.load.busy,
            "kv_tokens_free": record.load.kv_tokens_free,
            "kv_tokens": record.load.kv_tokens,
        },
    }


def for_terminal(text: str) -> str:
    """Return text without control characters: a model could move a person's cursor or rename their window."""
    return "".join(character for character in text if character in "\n\t" or character.isprintable())
