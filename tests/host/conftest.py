"""Tests in this process compute in fp32 on every machine; tests/host/test_processor.py is about the processors that do not."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def products_in_fp32():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sanacog.kernels.processor.multiplies_bf16", lambda: False)
        yield
