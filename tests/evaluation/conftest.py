from tests.failure.conftest import base  # noqa: F401
