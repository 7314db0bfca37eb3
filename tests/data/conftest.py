"""The embedded dataset, prepared once for all tests of the data layer."""

import pytest

from mae_pp_jax.data import source


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def digits_config(data_dir):
    return source.DataConfig(data_dir=data_dir, image_size=8, crop="shift", cache="ram", threads=2)


@pytest.fixture(scope="session")
def digits(digits_config):
    return source.open_source(digits_config, "train")
