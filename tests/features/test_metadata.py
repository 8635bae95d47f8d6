"""What a feature file says of the encoder that made it, and the names of its records: written and read back."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning.errors import UserError
from captioning.features.base import parse_provenance
from captioning.features.factory import open_features
from captioning.features.writer import FeatureWriter

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
NUMBER = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
PROVENANCE = st.fixed_dictionaries(
    {"extractor": TEXT},
    optional={
        "weights_sha256": st.none() | TEXT,
        "transform": st.dictionaries(TEXT, NUMBER | TEXT | st.lists(NUMBER, max_size=3), max_size=4),
        "feature_type": TEXT,
        "image_size": st.none() | st.integers(1, 2048),
        "more": st.recursive(NUMBER | TEXT | st.booleans() | st.none(), st.lists, max_leaves=4),
    },
)
# no line ends, which keys of rows cannot have, and no NUL, which ends a name in HDF5
KEY = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12)


@pytest.mark.parametrize("ending", ["npy", "h5", "lmdb"])
@settings(max_examples=15)
@given(provenance=PROVENANCE, keys=st.lists(KEY, min_size=1, max_size=4, unique=True))
def test_provenance_and_keys_come_back(ending, provenance, keys):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"f.{ending}"
        with FeatureWriter(path, (2,), provenance=provenance) as writer:
            for number, key in enumerate(keys):
                writer.write(key, [number, -number])
        reader = open_features(path)
        assert reader.provenance == provenance
        assert sorted(reader.keys()) == sorted(keys)
        assert np.array_equal(reader.get_many(keys), [[n, -n] for n in range(len(keys))])


@given(PROVENANCE, st.sampled_from(["extractor", "weights_sha256", "transform", "feature_type", "image_size"]))
def test_a_value_of_another_type_is_named(provenance, name):
    with pytest.raises(UserError, match=f"^f.json: its {name} is "):
        parse_provenance(Path("f.json"), json.dumps({**provenance, name: ["x"]}))


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"extractor": "a", "extractor": "b"}', "9" * 5000])
def test_malformed_json_is_one_line(text):
    with pytest.raises(UserError, match="^f.json: what made the features is not valid JSON: ") as error:
        parse_provenance(Path("f.json"), text)
    assert "\n" not in str(error.value)
