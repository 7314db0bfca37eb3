"""Arguments that several verbs share."""

import re

from mae_pp_jax.core.errors import UserError


def overrides(rest: list[str]) -> dict[str, str]:
    """`--config.a.b=text` arguments as {"a.b": "text"}.

    Raises:
      UserError: an argument of another form.
    """
    out = {}
    for argument in rest:
        match = re.fullmatch(r"--config\.([^=]+)=(.*)", argument, re.DOTALL)
        if not match:
            raise UserError(f"{argument}: unknown argument; config keys are written --config.KEY=VALUE")
        out[match[1]] = match[2]
    return out
