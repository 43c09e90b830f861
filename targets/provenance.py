"""What an output was made of and by which steps: the same for every backend (docs/format.md, MANIFEST)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from edgec.ir.info import ModelInfo
from edgec.targets import EmitOptions
from edgec.targets.output import file_sha256


def provenance(info: ModelInfo, options: EmitOptions) -> dict[str, Any]:
    source = {
        "weights": info.source_sha256, "graph": info.graph_sha256,
        "facts": json_sha256([info.task, info.max_context, info.vocab_size, info.bos_token, info.eos_tokens,
                              sorted(info.dynamic.items())]),
        **({"tokenizer": file_sha256(info.tokenizer)} if options.tokenizer and info.tokenizer is not None else {}),
    }
    return {"source": source, "source_sha256": json_sha256(source), "config_sha256": json_sha256(options.config),
            "passes": list(options.passes)}


def json_sha256(value: Any) -> str:
    """SHA-256 of a value as JSON without spaces, keys in order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
