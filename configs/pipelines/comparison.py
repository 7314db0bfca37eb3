"""What the comparisons share: four starting points, and how a stage of a pipeline is written; not a recipe."""

LABELS = {"random": "random", "mae": "MAE", "wsp": "WSP", "mae_wsp": "MAE→WSP"}


def stage(name, recipe, overrides, init="random", row=None):
    """A stage that runs configs/RECIPE/digits.py from the weights of stage `init`; `row` is its place in the report."""
    source = {} if init == "random" else {"init_from": init}
    report = {} if row is None else {"report": row}
    return dict(name=name, config=f"../{recipe}/digits.py", overrides=overrides, **source, **report)
