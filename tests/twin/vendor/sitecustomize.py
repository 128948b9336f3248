"""Python imports this at its start, as the folder is on its path: the modules that are imported and not used can then
be imported."""

import twin_absent

twin_absent.install()
