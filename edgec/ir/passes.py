"""What a pass is, and what it is given. The runner is `edgec/pipeline.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from edgec.ir.rules import RuleReport

Capabilities = frozenset[tuple[str, str]]


@dataclass
class Context:
    """What a pass may know besides the graph.

    capabilities: (domain, op_type) the target implements, for lowering. refuses: why the target cannot take a node
    although it knows the operator (an attribute, an unusual input), None when it can. options: the user's settings
    for passes, by `pass_name.setting`. quantized: compressed weights by the name of the initializer they replace, as
    the pass Quantize wants them. decoupled: pairs of factors by the weight of the convolution they replace, as
    DecoupleConv wants them. static: samples and settings of a static quantization (compress/static.py), None for a
    model that stays in float. rules: where a pass leaves what its rules did; the runner gives each pass a fresh one.
    """

    capabilities: Capabilities = frozenset()
    refuses: Callable[[ir.Node], str | None] = lambda node: None
    options: dict[str, object] = field(default_factory=dict)
    quantized: Mapping[str, object] = field(default_factory=dict)
    decoupled: Mapping[str, object] = field(default_factory=dict)
    static: object = None
    rules: RuleReport = field(default_factory=RuleReport)


class Pass(ABC):
    """One transformation. exact: the model computes the same afterwards, but for the order of sums.

    `requires` and `ensures` return violations in words, all of them, none when all is well. `call` returns the model
    (the same or another) and whether it changed anything; the runner checks that this is true. Raises EdgecError.
    """

    exact: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Snake case of the class name, which is the file's name: FoldBN lives in fold_bn.py."""
        text = type(self).__name__
        return "".join(
            "_" + c.lower() if c.isupper() and i and (text[i - 1].islower() or text[i + 1 : i + 2].islower())
            else c.lower()
            for i, c in enumerate(text)
        )

    def requires(self, model: ir.Model) -> Sequence[str]:
        return ()

    @abstractmethod
    def call(self, model: ir.Model, ctx: Context) -> tuple[ir.Model, bool]: ...

    def ensures(self, model: ir.Model) -> Sequence[str]:
        return ()
