"""The graph of the runs behind a run."""

from mae_pp_jax.core import lineage


def source(run, before=(), parents=None):
    return dict(run=run, stage=run, step=1, item="params", params_sha256=None, lineage=list(before), parents=parents)


def test_a_chain():
    first, parents = lineage.join({"": source("mae")})
    assert [record["run"] for record in first] == ["mae"] and first[0]["parents"] == [] and parents == {"": 0}
    second, parents = lineage.join({"": source("wsp", first, parents)})
    assert [(record["run"], record["parents"]) for record in second] == [("mae", []), ("wsp", [0])] and parents == {
        "": 1
    }


def test_a_common_ancestor_stands_once():
    mae, at = lineage.join({"": source("mae")})
    records, parents = lineage.join({"image": source("wsp", mae, at), "text": source("text", mae, at)})
    assert [record["run"] for record in records] == ["mae", "wsp", "text"]
    assert [record["parents"] for record in records] == [[], [0], [0]] and parents == {"image": 1, "text": 2}
    joined, parents = lineage.join({"": source("lit", records, parents)})
    assert joined[-1]["parents"] == [1, 2] and parents == {"": 3}


def test_chains_of_older_runs_are_read():
    old = [dict(run="mae", step=1), dict(run="wsp", step=2)]  # without parents
    assert lineage.parents_of(old, None) == {"": 1} and lineage.parents_of([], None) == {}
    records, parents = lineage.join({"": source("classify", old)})
    assert [record["parents"] for record in records] == [[], [0], [1]] and parents == {"": 2}


def test_a_run_without_parents_is_a_root():
    assert lineage.join({}) == ([], {})
