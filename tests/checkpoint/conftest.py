from tests.model.conftest import models  # noqa: F401
