"""Rewrite rules: what to look for, whether it is allowed, what to put in its place.

`Rule.match` finds a candidate and names its parts, `check` says in words why a candidate must stay, `rewrite` builds
the replacement. Nodes inside a match that others read as well are never lost: only the root is replaced, and dead code
goes afterwards. Most families of spellings are matched by walking back from the root; a spelling that is one fixed
picture is a `PatternRule`, matched by onnxscript's matcher.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.ir.model import Builder, describe, graph_of, graphs, op_of, remove_unused, splice

Bindings = dict[str, Any]
# A rule set that still fires after so many sweeps undoes its own work.
_MAX_SWEEPS = 64


@dataclass(frozen=True)
class Event:
    """One rule at one place; reason is empty when it fired."""

    rule: str
    where: str
    reason: str = ""


@dataclass
class RuleReport:
    """What the rules did: fired and declined, in order, each place once."""

    fired: list[Event] = field(default_factory=list)
    declined: list[Event] = field(default_factory=list)

    @property
    def modified(self) -> bool:
        return bool(self.fired)

    def add(self, rule: str, where: str, reason: str = "") -> None:
        """Notes an event. A decline met again in a later sweep counts once."""
        event = Event(rule, where, reason)
        if not reason:
            self.fired.append(event)
        elif event not in self.declined:
            self.declined.append(event)

    def extend(self, other: RuleReport) -> None:
        for event in (*other.fired, *other.declined):
            self.add(event.rule, event.where, event.reason)

    def lines(self) -> list[str]:
        """One line per rule that fired, then one per decline with its reason."""
        counts = Counter(event.rule for event in self.fired)
        return [f"{rule}: fired {n}" for rule, n in counts.items()] + [
            f"{e.rule}: declined at {e.where}: {e.reason}" for e in self.declined
        ]


class Rule(ABC):
    """roots: operator types the rule starts from (standard domain unless `domain` says otherwise)."""

    roots: ClassVar[tuple[str, ...]]
    domain: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def match(self, node: ir.Node) -> Bindings | None:
        """The parts of a candidate rooted at `node`, or None when this is something else."""

    def check(self, node: ir.Node, **parts: Any) -> str | None:
        """None to go ahead, or the reason to leave a candidate alone."""
        return None

    @abstractmethod
    def rewrite(self, op: Builder, node: ir.Node, **parts: Any) -> ir.Value | Sequence[ir.Value]:
        """The values that replace the outputs of `node`."""


class PatternRule(Rule):
    """A rule whose picture is drawn with onnxscript's pattern language; the drawn inputs are the parts.

    pattern(op, x, y, ...) returns the root. Both orders of the operands of Add and Mul are tried.
    """

    pattern: Callable[..., Any]

    def __init__(self) -> None:
        from onnxscript.rewriter import pattern

        drawn = pattern.RewriteRule(self.pattern, lambda op, **_: None, name=self.name)
        self._patterns = [
            pattern.Pattern(rule._target_pattern, name=self.name) for rule in drawn.commute()
        ]

    def match(self, node: ir.Node) -> Bindings | None:
        # The matcher looks at the node's surroundings only; an empty model stands for the part it does not read.
        graph = graph_of(node)
        model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
        for picture in self._patterns:
            found = picture.match(model, graph, node, check_nodes_are_removable=False)
            if found:
                return dict(found.bindings)
        return None


def apply_rules(model: ir.Model, rules: Sequence[Rule], *, until_stable: bool = True) -> RuleReport:
    """Applies `rules`, first match first, to every node of the main and nested graphs until none fires.

    Raises EdgecError (EDGEC-E0203) when the rules never come to rest.
    """
    import onnx_ir.passes.common as common

    by_root: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        for root in rule.roots:
            by_root.setdefault((rule.domain, root), []).append(rule)
    report = RuleReport()
    for _ in range(_MAX_SWEEPS):
        fired = 0
        for graph in graphs(model):
            for node in graph:
                for rule in by_root.get(op_of(node), ()):
                    if apply_rule(rule, node, report):
                        fired += 1
                        break
        if fired:
            remove_unused(model)
        if not fired or not until_stable:
            break
    else:
        last = report.fired[-1]
        raise EdgecError("E0203", stage="rules", where=last.where, found=f"{last.rule} still fires",
                         wanted=f"rest within {_MAX_SWEEPS} sweeps")
    if report.fired:
        common.NameFixPass()(model)
    return report


def apply_rule(rule: Rule, node: ir.Node, report: RuleReport) -> bool:
    """Tries one rule at one node and notes the outcome; True when the node was replaced."""
    parts = rule.match(node)
    if parts is None:
        return False
    where = describe(node)
    reason = rule.check(node, **parts)
    if reason is not None:
        report.add(rule.name, where, reason)
        return False
    op = Builder(node)
    made = rule.rewrite(op, node, **parts)
    new = [made] if isinstance(made, ir.Value) else made
    if any(v.uses() or v.is_graph_output() for v in node.outputs[len(new) :]):
        report.add(rule.name, where, f"an output after the first {len(new)} is read")
        return False
    splice(node, op, new)
    report.add(rule.name, where)
    return True
