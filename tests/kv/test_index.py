"""Where the rows of a store lie, against the index as pandas reads it."""

import numpy as np
import pandas as pd
import pytest

from mtkv.kv import store as places
from mtkv.kv.store import StoreIndex
from mtkv.provenance.files import write_parquet


def index(count: int) -> pd.DataFrame:
    rng = np.random.default_rng(count)
    shards = np.sort(rng.integers(0, 4, count))
    frame = pd.DataFrame(
        {
            "id": [f"行-{number}" for number in rng.permutation(10 * count)[:count]],
            "shard": [f"shard-{shard}" for shard in shards],
            "start": rng.integers(0, 2**40, count),
            "length": rng.integers(1, 9000, count),
            "likelihood": np.where(rng.random(count) < 0.3, np.nan, rng.normal(size=count)).astype(np.float32),
            "entropy": rng.normal(size=count).astype(np.float32),
            "sha256": [f"sum of {shard}" for shard in shards],
        }
    )
    return frame.sample(frac=1, random_state=0)  # shards in any order


@pytest.mark.parametrize("count", [1, 2, 50, 700])
def test_every_row_is_found_and_no_other(tmp_path, monkeypatch, count):
    monkeypatch.setattr(places, "PIECE", 64)
    frame = index(count)
    write_parquet(tmp_path / "index.parquet", frame)
    found = StoreIndex.read(tmp_path / "index.parquet", ("likelihood", "entropy"))
    for row in frame.itertuples():
        shard, start, length = found.of(row.id)
        assert (found.shards[shard], found.sha256[shard]) == (row.shard, row.sha256)
        assert (start, length) == (row.start, row.length)
        np.testing.assert_equal(found.statistics_of(row.id), {"likelihood": row.likelihood, "entropy": row.entropy})
        assert row.id in found
    known = set(frame["id"])
    for other in (f"行-{number}" for number in range(10 * count)):
        assert (other in found) == (other in known)
    with pytest.raises(KeyError, match="nobody"):
        found.of("nobody")


def test_a_row_that_is_there_twice_is_refused(tmp_path):
    frame = index(30)
    write_parquet(tmp_path / "index.parquet", pd.concat([frame, frame.iloc[[7]]]))
    with pytest.raises(ValueError, match="same id"):
        StoreIndex.read(tmp_path / "index.parquet")


@pytest.mark.parametrize("statistics", [(), ("entropy",), ("likelihood", "entropy")])
def test_a_row_takes_24_bytes_and_4_for_each_statistic_asked_for(tmp_path, statistics):
    write_parquet(tmp_path / "index.parquet", index(500))
    found = StoreIndex.read(tmp_path / "index.parquet", statistics)
    held = [value for value in vars(found).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in (*held, *found.statistics.values())) == (24 + 4 * len(statistics)) * 500


def test_an_index_from_before_a_statistic_is_read_unless_it_is_asked_for(tmp_path):
    """As stores were written before they could have an entropy: the likelihood always, NaN where nobody asked."""
    folder = tmp_path / "maths"
    folder.mkdir()
    frame = index(9).drop(columns="entropy")
    write_parquet(folder / "index.parquet", frame)
    assert StoreIndex.read(folder / "index.parquet").statistics_of(frame["id"].iloc[0]) == {}
    known = StoreIndex.read(folder / "index.parquet", ("likelihood",))
    np.testing.assert_equal(known.statistics_of(frame["id"].iloc[3]), {"likelihood": frame["likelihood"].iloc[3]})
    with pytest.raises(ValueError, match=r"store of teacher maths has no entropy.*--forcerun teacher_kv"):
        StoreIndex.read(folder / "index.parquet", ("likelihood", "entropy"))
