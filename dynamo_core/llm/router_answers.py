"""What a router answers, as Dynamo writes it down."""

from __future__ import annotations

from typing import Any

from dynamo_core.contracts import KvBatch, KvStored, OverlapScore, PotentialLoad, WorkerView

__all__ = ["as_seen", "dumped", "load_row", "score_row"]


def as_seen(view: WorkerView, tokens: int) -> PotentialLoad:
    """For a router that keeps no account: as the frontend counts, whatever is cached."""
    return PotentialLoad(
        prefill_tokens=view.inflight_tokens + view.inflight_tokens_elsewhere + tokens,
        decode_blocks=view.load.kv_used_blocks if view.load is not None else 0,
        requests=view.running,
    )


def load_row(worker_id: int, load: PotentialLoad) -> dict[str, int]:
    return {
        "worker_id": worker_id,
        "dp_rank": load.dp_rank,
        "potential_prefill_tokens": load.prefill_tokens,
        "potential_decode_blocks": load.decode_blocks,
        "active_requests": load.requests,
    }


def dumped(batch: KvBatch, event: KvStored) -> dict[str, Any]:
    blocks = [{"block_hash": name, "tokens_hash": None, "mm_extra_info": None} for name in event.seq_hashes]
    stored = {"parent_hash": None, "start_position": None, "blocks": blocks}
    inner = {"event_id": 0, "data": {"stored": stored}, "dp_rank": batch.dp_rank}
    return {"worker_id": batch.worker_id, "storage_tier": event.tier, "event": inner}


def score_row(worker_id: int, score: OverlapScore) -> dict[str, int]:
    return {
        "worker_id": worker_id,
        "dp_rank": score.dp_rank,
        "device_blocks": score.device,
        "host_pinned_blocks": score.host,
        "disk_blocks": score.disk,
        "host_pinned_extension_blocks": score.host,
        "disk_extension_blocks": score.disk,
        "shared_beyond_device_blocks": 0,
    }
