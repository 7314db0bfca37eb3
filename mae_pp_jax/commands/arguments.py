"""Arguments that several verbs share."""

import re

from mae_pp_jax.core.errors import UserError

RUN = "folder of a run, or weights that are converted once: a released name (convert --list), a file, a URL"


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


def add_images(parser) -> None:
    """Adds the argument that says which pictures a verb reads; see `data.picture_files`."""
    parser.add_argument(
        "--images",
        required=True,
        nargs="+",
        action="extend",
        metavar="FOLDER|GLOB|FILE",
        help="pictures: a folder with all below it, a pattern (quoted; ** stands for any folders), or files",
    )
