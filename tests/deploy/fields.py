"""Fields of manifests: every one is read by somebody, or the check fails."""
import re

REQUIRED = object()
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}


def quantity(text):
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text))
    assert match and match[2] in UNITS, f"expected a whole quantity such as 512Mi, found {text}"
    return int(match[1]) * UNITS[match[2]]


class Fields:
    """An object of a manifest. Leaving the with-block fails when there is a field that was not taken."""

    def __init__(self, value, where):
        assert isinstance(value, dict), f"{where}: expected an object, found {value!r}"
        self.left, self.where = dict(value), where

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        assert kind or not self.left, f"{self.where}: {sorted(self.left)} would be ignored; teach tests/deploy/pods.py or cluster.py what it means"

    def take(self, key, default=REQUIRED):
        assert key in self.left or default is not REQUIRED, f"{self.where}: expected the field {key}"
        return self.left.pop(key, default)

    def object(self, key, default=REQUIRED):
        return Fields(self.take(key, default), f"{self.where}.{key}")

    def objects(self, key, default=REQUIRED):
        return [Fields(value, f"{self.where}.{key}[{i}]") for i, value in enumerate(self.take(key, default))]

    def only(self, key, *allowed):
        """A field of which this runner knows these values alone."""
        value = self.take(key, None)
        assert value in allowed, f"{self.where}.{key}: expected one of {allowed} here, found {value!r}"
        return value
