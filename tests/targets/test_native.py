"""The native backend's last look at what it wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgec.errors import EdgecError
from edgec.native.bundle import write_bundle
from edgec.native.plan import Plan
from edgec.targets import native
from tests.native.tiny_plans import tiny_cnn, tiny_q8


def test_a_plan_that_kernels_refuse_is_no_output(tmp_path: Path) -> None:
    bundle = tmp_path / "model.edgec"
    write_bundle(bundle, tiny_q8(), tokenizer=None, golden=None, manifest={})
    native.accept(bundle)
    plan = _with_groups(tiny_q8(), 5)
    write_bundle(bundle, plan, tokenizer=None, golden=None, manifest={})
    with pytest.raises(EdgecError, match="conv2d_q8") as e:
        native.accept(bundle)
    assert e.value.code == "E0302"
    assert "layer.1" in (e.value.found or "")


def test_files_that_are_no_bundles_are_another_matter(tmp_path: Path) -> None:
    with pytest.raises(EdgecError) as e:
        native.accept(tmp_path / "model.edgec")
    assert e.value.code == "E0003"
    write_bundle(tmp_path / "model.edgec", tiny_cnn(), tokenizer=None, golden=None, manifest={})
    native.accept(tmp_path / "model.edgec")


def _with_groups(plan: Plan, groups: int) -> Plan:
    """The plan, whose first conv2d_q8 has another number of groups than its weights."""
    entry = plan.entries[0]
    at = next(i for i, call in enumerate(entry.calls) if call.kernel == "conv2d_q8")
    calls = list(entry.calls)
    calls[at] = dataclasses.replace(calls[at], ints=(*calls[at].ints[:8], groups, *calls[at].ints[9:]))
    return dataclasses.replace(plan, entries=(dataclasses.replace(entry, calls=tuple(calls)), *plan.entries[1:]))
