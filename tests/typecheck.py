"""The run-time type checker of the tests: beartype, with Python's rule that an int will do for a float."""

import beartype

checker = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
