"""The report of benchmarks.cascade."""

from benchmarks import cascade


def test_rows_of_unlike_stages_keep_to_their_columns():
    rows = [
        {"stage": "ssr", "psnr": 30.25, "fvd": 550.0},
        {"stage": "tsr", "fvd": 22.9, "between": 1},
    ]
    assert cascade.table(rows).splitlines() == [
        "| stage | psnr | fvd | between |",
        "|---|---:|---:|---:|",
        "| ssr | 30.2 | 550 |  |",
        "| tsr |  | 22.9 | 1 |",
    ]
