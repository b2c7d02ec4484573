"""jinja2's sandbox with a budget: what a template does is counted, and what it makes is measured."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import wraps

from jinja2 import Environment, Template, nodes, pass_context
from jinja2.exceptions import TemplateSyntaxError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from qwen3_model.text.template_budget import Budget
from qwen3_model.text.template_calls import (
    FILTER_CHECKS,
    FILTERS,
    LAZY,
    TEXT_METHODS,
    check_format,
    check_method,
    check_operator,
)

FOREIGN = (nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
"""Statements that need other templates, of which there are none."""


class LimitedContext(Context):
    """The variables of one rendering, and its budget."""

    def __init__(
        self,
        environment: Environment,
        parent: dict[str, object],
        name: str | None,
        blocks: dict[str, Callable[[Context], Iterator[str]]],
        globals: MutableMapping[str, object] | None = None,
    ) -> None:
        super().__init__(environment, parent, name, blocks, globals)
        self.budget = Budget()


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates whose renderings count what they use, and raise when that is too much."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})
    context_class = LimitedContext

    def __init__(self, filters: Mapping[str, Callable[..., object]], names: Mapping[str, object]) -> None:
        """Add `filters` and the global `names` to those of jinja2 that a chat template needs."""
        # What is constant is computed while rendering, too, where it is counted.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=_count_printed,
            optimized=False,
        )
        known = {name: self.filters[name] for name in FILTERS} | dict(filters)
        self.filters = {name: _count_filter(name, function) for name, function in known.items()}
        self.filters |= {"_each": _each, "_join_counted": _join_counted, "_measure": _measure}
        del self.globals["lipsum"]
        self.globals.update(names)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        tree = _Counting().visit(tree)
        assert isinstance(tree, nodes.Template)
        return tree

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        """Return whether a template may have an attribute."""
        if isinstance(obj, str | int | float):
            return isinstance(obj, str) and attr in TEXT_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """Return the sandbox's own `format` for that of a text; there is no `format_map`."""
        return None if getattr(value, "__name__", "") == "format_map" else super().wrap_str_format(value)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Compute an operator, if its result is not too long."""
        assert isinstance(context, LimitedContext)
        budget = context.budget
        check_operator(budget, operator, left, right)
        return budget.take(super().call_binop(context, operator, left, right))

    def call(self, context: Context, callee: object, /, *given: object, **named: object) -> object:
        """Call what a template calls."""
        assert isinstance(context, LimitedContext)
        budget = context.budget
        budget.step()
        text = getattr(getattr(callee, "__wrapped__", callee), "__self__", None)
        if isinstance(text, str):
            name = getattr(callee, "__name__", "")
            if name == "format":
                check_format(budget, text, (*given, *named.values()))
            else:
                check_method(budget, text, name, given)
        elif isinstance(callee, LoopContext):
            given = tuple(budget.each(value) if isinstance(value, Iterable) else value for value in given)
        result = super().call(context, callee, *given, **named)
        return result if isinstance(result, Namespace) else budget.take(result)


def render_limited(template: Template, values: Mapping[str, object]) -> str:
    """Return what a template of a LimitedEnvironment makes of `values`."""
    context = template.new_context(dict(values))
    assert isinstance(context, LimitedContext)
    budget, length, parts = context.budget, 0, []
    budget.measure_input(values)
    for part in template.root_render_func(context):
        length += len(part)
        budget.require(length)
        parts.append(part)
    return "".join(parts)


class _Counting(NodeTransformer):
    """Puts counters around loops, and measures around values that a template puts together."""

    def generic_visit(self, node: nodes.Node, *args: object, **named: object) -> nodes.Node:
        if isinstance(node, FOREIGN):
            tag = type(node).__name__.lower()
            raise TemplateSyntaxError(f"a chat template cannot have the statement {tag}", node.lineno)
        return super().generic_visit(node, *args, **named)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        letters = sum(len(data.data) for part in node.body for data in _data(part))
        self.generic_visit(node)
        node.iter = _wrap_in_filter(node.iter, "_each", nodes.Const(letters))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _wrap_in_filter(nodes.List(node.nodes, lineno=node.lineno), "_join_counted")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        if all(isinstance(entry, nodes.Const) for entry in node.items):
            return node
        self.generic_visit(node)
        return _wrap_in_filter(node, "_measure")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _wrap_in_filter(node, "_measure")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        if node.ctx != "load" or all(isinstance(entry, nodes.Const) for entry in node.items):
            return node
        self.generic_visit(node)
        return _wrap_in_filter(node, "_measure")


def _data(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    """Yield the plain text of a statement but that of loops within, which count their own."""
    if isinstance(node, nodes.TemplateData):
        yield node
    elif not isinstance(node, nodes.For):
        for child in node.iter_child_nodes():
            yield from _data(child)


def _wrap_in_filter(node: nodes.Node, name: str, *given: nodes.Expr) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, list(given), [], None, None, lineno=node.lineno)


@pass_context
def _count_printed(context: LimitedContext, value: object) -> object:
    return context.budget.take(value)


@pass_context
def _each(context: LimitedContext, values: Iterable[object], letters: int) -> Iterator[object]:
    return context.budget.each(values, letters)


@pass_context
def _join_counted(context: LimitedContext, values: list[object]) -> str:
    budget = context.budget
    budget.step(budget.letters(values))
    return "".join(map(str, values))


@pass_context
def _measure(context: LimitedContext, value: object) -> object:
    return context.budget.take(value)


def _count_filter(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """Return a filter that is checked before and measured after."""
    check, takes_iterators = FILTER_CHECKS.get(name), name in LAZY
    # What jinja2 puts before the value; it has no public name for the mark.
    wanted = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    @wraps(function)
    def counted(context: LimitedContext, value: object, *given: object, **named: object) -> object:
        budget = context.budget
        if isinstance(value, Iterator):
            value = budget.each(value) if takes_iterators else list(budget.each(value))
        budget.letters(value)
        for entry in (*given, *named.values()):
            budget.letters(entry)
        if check is not None:
            check(budget, value, *given, **named)
        if not wanted:
            return budget.take(function(value, *given, **named))
        first = (
            context if wanted == "context" else getattr(context, wanted.replace("eval_context", "eval_ctx"))
        )
        return budget.take(function(first, value, *given, **named))

    return counted
