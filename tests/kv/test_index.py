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
            "sha256": [f"sum of {shard}" for shard in shards],
        }
    )
    return frame.sample(frac=1, random_state=0)  # shards in any order


@pytest.mark.parametrize("count", [1, 2, 50, 700])
def test_every_row_is_found_and_no_other(tmp_path, monkeypatch, count):
    monkeypatch.setattr(places, "PIECE", 64)
    frame = index(count)
    write_parquet(tmp_path / "index.parquet", frame)
    found = StoreIndex.read(tmp_path / "index.parquet")
    for row in frame.itertuples():
        shard, start, length = found.of(row.id)
        assert (found.shards[shard], found.sha256[shard]) == (row.shard, row.sha256)
        assert (start, length) == (row.start, row.length)
        np.testing.assert_equal(found.likelihood_of(row.id), float(row.likelihood))
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


def test_a_row_takes_32_bytes(tmp_path):
    write_parquet(tmp_path / "index.parquet", index(500))
    found = StoreIndex.read(tmp_path / "index.parquet")
    assert sum(value.nbytes for value in vars(found).values() if isinstance(value, np.ndarray)) == 32 * 500
