from crs_jax.evaluation.published import published_rows


def test_redial_only():
    rows = published_rows("redial")
    assert rows["UniCRS"]["fresh"]["full"] == {"hr@1": 0.024, "hr@10": 0.180, "hr@50": 0.335}
    assert (rows["UniCRS"]["sr"], rows["UniCRS"]["rdl"]) == (0.048, 0.030)
    assert all("SIGIR '26" in row["source"] for row in rows.values())
    assert published_rows("inspired") == {}


def test_recalls_rise_with_the_cutoff():
    for row in published_rows("redial").values():
        recalls = list(row["fresh"]["full"].values())
        assert recalls == sorted(recalls)
        assert all(0 < value < 1 for value in recalls)
