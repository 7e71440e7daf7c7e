"""Tables from receipts: the numbers are computed by hand here."""

import pytest

from flowjax.evaluation import tables
from flowjax.evaluation.receipts import make_receipt, write_receipt

MARKER = "receipts/*.json rows=path columns=metric value=value format=.3f"


@pytest.fixture
def root(tmp_path):
    values = {("linear", "w2"): (0.1, 0.2, 0.3), ("linear", "kid"): (2.0,), ("vp", "w2"): (0.5,)}
    for (path, metric), repeats in values.items():
        for seed, value in enumerate(repeats):
            receipt = make_receipt(
                metric, value, config=dict(path=path), config_path="config.json", seed=seed, images_seen=12345,
                seconds=1.0, sampler="heun", nfe=20, guidance_scale=None, ema="ema", evaluator=metric, samples=10,
                path=path, commit="c", hardware="h", command="python -m flowjax.main",
            )  # fmt: skip
            write_receipt(tmp_path / "receipts", receipt)
    return tmp_path


def page(marker, old="old"):
    return f"# Title\n\n<!-- table: {marker} -->\n{old}\n<!-- end -->\n\nText.\n"


def lines_of(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_mean_and_spread_over_seeds_and_a_dash_where_nothing_was_measured(root):
    made = tables.regenerate(page(MARKER), root)
    assert lines_of(made) == [
        "| path | kid | w2 |",
        "| --- | ---: | ---: |",
        "| linear | 2.000 | 0.200 ± 0.100 |",
        "| vp | – | 0.500 |",
    ]
    assert made.startswith("# Title\n") and made.endswith("\nText.\n")
    assert tables.regenerate(made, root) == made


def test_titles_order_best_count_filters_and_formats(root):
    marker = MARKER + ' where=metric=w2 order=vp,linear best=min count=yes "titles=w2:Sliced W₂,vp:Variance preserving"'
    assert lines_of(tables.regenerate(page(marker), root)) == [
        "| path | Sliced W₂ | n |",
        "| --- | ---: | ---: |",
        "| Variance preserving | 0.500 | 1 |",
        "| linear | **0.200 ± 0.100** | 3 |",
    ]
    marker = "receipts rows=metric,path value=value,images_seen where=seed<1 'format=.1f,images_seen:,.0f'"
    assert lines_of(tables.regenerate(page(marker), root))[2:] == [
        "| kid | linear | 2.0 | 12,345 |",
        "| w2 | linear | 0.1 | 12,345 |",
        "| w2 | vp | 0.5 | 12,345 |",
    ]


def test_unlike_receipts_are_never_averaged(root):
    with pytest.raises(ValueError, match="fall into one cell.*metric"):
        tables.regenerate(page("receipts rows=path value=value"), root)


@pytest.mark.parametrize(
    "marker, message",
    [
        ("receipts rows=path colums=metric", "Did you mean 'columns'"),
        ("receipts columns=metric", "needs a source of receipts and rows"),
        ("rows=path", "needs a source"),
        ("receipts rows=path where=metric~w2", "is none of FIELD"),
        ("receipts rows=path where=metric=zzz", "No receipt meets"),
        ("receipts rows=path columns=metric format=.3q", "does not fit"),
    ],
)
def test_bad_markers_say_what_is_wrong(root, marker, message):
    with pytest.raises(ValueError, match=message):
        tables.regenerate(page(marker), root)


def test_intervals_have_the_format_of_their_column(root):
    receipt = dict(name="a", value=0.5, interval=[0.41239, 0.6])
    options = dict(rows="name", value="value,interval", format=".3f")
    assert tables.table([receipt], options).splitlines()[-1] == "| a | 0.500 | 0.412 to 0.600 |"


def test_tables_without_receipts_may_be_left_as_they_are(root):
    missing = page("receipts rows=path where=metric=zzz")
    text = tables.regenerate(missing + page(MARKER), root, partial=True)
    assert text.startswith(missing) and text[len(missing) :] == tables.regenerate(page(MARKER), root)
    assert tables.regenerate(page("nowhere/*.json rows=path"), root, partial=True) == page("nowhere/*.json rows=path")


def test_tables_that_were_never_made_stay_empty(root):
    empty = "<!-- table: receipts rows=path where=metric=zzz -->\n<!-- end -->\n"
    assert tables.regenerate(empty, root) == empty
    made = empty.replace("<!-- end", "| path |\n<!-- end")  # its receipts are gone
    with pytest.raises(ValueError, match="No receipt meets"):
        tables.regenerate(made, root)


def test_a_marker_without_end_does_not_eat_the_page(root):
    text = f"<!-- table: {MARKER} -->\n\nText\n" + page(MARKER)
    with pytest.raises(ValueError, match="has no `<!-- end -->`"):
        tables.regenerate(text, root)


def test_check_reports_the_difference_and_changes_nothing(root, capsys):
    file = root / "README.md"
    file.write_text(page(MARKER))
    assert tables.main([str(file), "--check"]) == 1
    assert "-old" in capsys.readouterr().out and file.read_text() == page(MARKER)
    assert tables.main([str(file)]) == 0
    assert tables.main([str(file), "--check"]) == 0
    file.write_text(file.read_text().replace("0.500", "0.499"))
    assert tables.main([str(file), "--check"]) == 1


def test_conditions():
    receipt = dict(nfe=20, metric="fid", config=dict(hash="ab"), scale=None)
    assert tables.matches(receipt, "nfe<=20,metric=fid|kid,config.hash=ab,scale=–")
    assert not tables.matches(receipt, "nfe<20")
    assert not tables.matches(receipt, "metric!=fid|kid")
    assert not tables.matches(receipt, "scale>0")


def test_figure_draws_a_png(root, tmp_path):
    from flowjax.evaluation.receipts import read_receipts

    path = tmp_path / "plot.png"
    tables.figure(path, read_receipts("receipts", root), x="nfe", lines="path", where="metric=w2")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 3000
