"""Settings: a wrong one is named, and none is repeated."""

import pytest

from twofold_chassis.settings import DatabaseSettings, ServiceSettings, load
from twofold_chassis.start import StartError


@pytest.mark.parametrize(
    "url",
    [
        "mysql://app:s3cret@host/db",
        "postgresql://app:s3cret/pw@host/db",
        "postgresql://app:s3cret#pw@host/db",
        "postgresql://app:s3cret@host:port/db",
        "postgresql://app:s3cret@[host/db",
    ],
)
def test_a_wrong_url_is_refused_without_a_word_of_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    class Some(ServiceSettings):
        database: DatabaseSettings

    monkeypatch.setenv("DATABASE__URL", url)
    with pytest.raises(StartError, match="DATABASE__URL") as told:
        load(Some)
    assert not any(word in str(told.value) for word in ("s3cret", "pw@", "host", "port/"))
