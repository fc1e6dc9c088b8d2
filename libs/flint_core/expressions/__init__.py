"""Expressions: jq, evaluated here where it is plain, left to a guarded evaluator where it is not.

The fast path covers paths, variables, literals, constructors, comparisons, arithmetic, `and or not`, `//`, pipes,
`if`, interpolation, slices and a few builtins; it gives exactly what jq 1.8 gives, or leaves the expression to jq
(`Expression.fast` is false). Pure: no clock (`now` is given), no environment, no files.

Errors: ExpressionSyntaxError (text; TemplateSyntaxError adds where in a template) and ExpressionFault (data).
"""

from __future__ import annotations

from flint_core.expressions.errors import ExpressionFault, ExpressionSyntaxError
from flint_core.expressions.expression import Expression, compile_expression
from flint_core.expressions.template import Template, TemplateSyntaxError, compile_template

__all__ = [
    "Expression",
    "ExpressionFault",
    "ExpressionSyntaxError",
    "Template",
    "TemplateSyntaxError",
    "compile_expression",
    "compile_template",
]
