"""What a job file says of object stores: where they are, who pays, how patient to be.

Never a secret: credentials come by the platform's own ways, such as environment variables, the
role of a machine or of a service account.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from bioembed_ray.encoder_config import Settings

# Where each kind of secret belongs.
FROM_ENVIRONMENT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS or "
    "AZURE_STORAGE_ACCOUNT_KEY in the environment, or give the machines a role"
)
SECRET = re.compile(r"secret|key|token|passw|credential|sas|signature$|service_account", re.I)


class StoreConfig(Settings):
    """One side's object store."""

    endpoint: str | None = None
    """URL of a store that is not the cloud's own, such as MinIO; null is AWS_ENDPOINT_URL or the cloud's."""
    region: str | None = Field(default=None, min_length=1)
    """Region of an S3 bucket; null is AWS_REGION, or us-east-1."""
    requester_pays: bool = False
    """Pay for the requests oneself, as some public S3 buckets ask for."""
    anonymous: bool = False
    """Send no credentials, as public buckets that refuse strangers' signatures ask for."""
    timeout_s: float = Field(default=120.0, gt=0, le=3600)
    """Longest time one request may take, body included."""
    retries: int = Field(default=5, ge=0, le=100)
    """How often a request that fails is sent again, with growing pauses."""
    retry_s: float = Field(default=60.0, gt=0, le=3600)
    """Time after the first try from which on a request is not sent again."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_secrets(cls, raw: Any) -> Any:
        for key in raw if isinstance(raw, dict) else ():
            if key not in cls.model_fields and SECRET.search(str(key)):
                raise ValueError(f"{key}: a job file holds no secrets; {FROM_ENVIRONMENT}")
        return raw

    @model_validator(mode="after")
    def _check(self) -> StoreConfig:
        if self.requester_pays and self.anonymous:
            raise ValueError("requester_pays: whoever pays signs with credentials; drop anonymous")
        if self.endpoint is None:
            return self
        parts = urlsplit(self.endpoint)
        if parts.username or parts.password or parts.query:
            raise ValueError(f"endpoint: a job file holds no secrets; {FROM_ENVIRONMENT}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(
                f"endpoint: got {self.endpoint!r}; use a URL such as http://minio.lab:9000"
            )
        return self

    @property
    def is_default(self) -> bool:
        """True where nothing is asked for that a store does not do anyway."""
        return self == StoreConfig()


class StorageConfig(Settings):
    """The stores of a job; each side has its own, since the archive is often somebody else's."""

    input: StoreConfig = StoreConfig()
    """Of everything that is read: recordings, lists, manifests."""
    output: StoreConfig = StoreConfig()
    """Of everything below `output`."""

    def check(self, uris: tuple[str, ...], output: str) -> None:
        """Refuse options that nothing would heed.

        Args:
            uris: What is read.
            output: What is written.

        Raises:
            ValueError: options of a store where there is none, or of another kind of store.
        """
        for side, options, places in (
            ("input", self.input, uris),
            ("output", self.output, (output,)),
        ):
            schemes = {uri.partition("://")[0] for uri in places if "://" in uri}
            if not options.is_default and not schemes & {"s3", "gs", "az"}:
                raise ValueError(
                    f"storage.{side}: {side} is no object store ({places[0]}); leave these options out"
                )
            for key in ("region", "requester_pays"):
                if getattr(options, key) and "s3" not in schemes:
                    raise ValueError(f"storage.{side}.{key}: only s3:// has it; leave it out")
