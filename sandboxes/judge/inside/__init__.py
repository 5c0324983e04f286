"""What runs inside the judge's sessions: standard library and `sandboxes.judge.codec` only.

`candidate` holds the judged program and `tests` the tests, each in a jail of its own; `whole` runs
both in one process.
"""
