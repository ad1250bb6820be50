"""URIs -> open stores of obstore, with the options of the job.

Options travel as credentials do, in the environment: a worker of Ray finds there what its driver
was told (`cluster.connect`). Credentials come from the environment, too, by the names obstore
knows: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_SKIP_SIGNATURE, GOOGLE_APPLICATION_CREDENTIALS,
AZURE_STORAGE_ACCOUNT_NAME …, from a profile of the AWS command line, or from the role of the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioembed_ray.errors import DeniedError
from bioembed_ray.store.config import StorageConfig, StoreConfig
from bioembed_ray.store.uris import is_below, split_uri

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# AWS_ENDPOINT_URL is what boto3 and the AWS CLI read; obstore knows AWS_ENDPOINT too.
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
OPTIONS_VARIABLE = "BIOEMBED_STORAGE"
# A machine that does not answer for so long is not there; a request itself may take much longer.
CONNECT_S = 5.0


def announce(storage: StorageConfig, output: str) -> None:
    """Make the options of a job those of this process, and of the workers that it starts."""
    if storage == StorageConfig():
        os.environ.pop(OPTIONS_VARIABLE, None)
    else:
        told = {"output": output, "storage": storage.model_dump(exclude_defaults=True)}
        os.environ[OPTIONS_VARIABLE] = json.dumps(told)


def announced() -> dict[str, str]:
    """Return the variables that workers need, besides those that their machines have."""
    told = os.environ.get(OPTIONS_VARIABLE)
    return {} if told is None else {OPTIONS_VARIABLE: told}


def open_store(uri: str) -> tuple[ObjectStore, str]:
    """Return (store of the bucket, key) of a remote URI, as the environment is at this moment."""
    scheme, bucket, key = split_uri(uri)
    endpoint = next((os.environ[v] for v in ENDPOINT_VARIABLES if os.environ.get(v)), "")
    has_region = "AWS_REGION" in os.environ or "AWS_DEFAULT_REGION" in os.environ
    options = _options(uri)
    profile = _profile() if scheme == "s3" and not options.anonymous else None
    return _open(scheme, bucket, options, endpoint, has_region, profile), key


def _options(uri: str) -> StoreConfig:
    told = os.environ.get(OPTIONS_VARIABLE)
    if told is None:
        return StoreConfig()
    output, storage = _parsed(told)
    return storage.output if is_below(uri, output) else storage.input


@lru_cache(maxsize=4)
def _parsed(told: str) -> tuple[str, StorageConfig]:
    values = json.loads(told)
    return values["output"], StorageConfig.model_validate(values["storage"])


@lru_cache(maxsize=64)
def _open(
    scheme: str,
    bucket: str,
    store: StoreConfig,
    endpoint: str,
    has_region: bool,
    profile: str | None,
) -> ObjectStore:
    from obstore.store import AzureStore, GCSStore, S3Store

    client: Any = {
        "timeout": timedelta(seconds=store.timeout_s),
        "connect_timeout": timedelta(seconds=min(CONNECT_S, store.timeout_s)),
    }
    options: Any = {
        "retry_config": {
            "max_retries": store.retries,
            "retry_timeout": timedelta(seconds=store.retry_s),
        },
        "client_options": client,
    }
    if store.anonymous:
        options["skip_signature"] = True
    where = store.endpoint or (endpoint if scheme == "s3" else "")
    if where:
        # Plain http is for stores on the own network; whoever names one means it.
        client["allow_http"] = where.startswith("http://")
        options["base_url" if scheme == "gs" else "endpoint"] = where
    if scheme == "gs":
        return GCSStore(bucket, **options)
    if scheme == "az":
        return AzureStore(bucket, **options)
    if store.region or not has_region:
        options["region"] = store.region or "us-east-1"
    if store.requester_pays:
        options["request_payer"] = True
    keys = None if profile is None else _keys_of(profile)
    if keys is not None:
        options["credential_provider"] = keys
    return S3Store(bucket, **options)


def _profile() -> str | None:
    """Return the AWS profile to use, None where keys are in the environment or there is no profile."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return None
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    return os.environ.get("AWS_PROFILE") or ("default" if path.is_file() else None)


def _keys_of(profile: str) -> Callable[[], dict[str, Any]] | None:
    """Return what gives obstore the keys of a profile, which it does not read itself.

    None where nobody asked for the profile and it holds none: the machine may have a role.

    Raises:
        DeniedError: there is no such profile, or it holds no keys.
    """
    # Comes with avex, as a part of s3fs; half a second, so only where there is a profile.
    import botocore.exceptions
    import botocore.session

    def keys() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        # Asked again every few minutes, since those of a role or a sign-in expire.
        expires_at = datetime.now(UTC) + timedelta(minutes=5)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": expires_at,
        }

    try:
        found = botocore.session.Session(profile=profile).get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise DeniedError(f"AWS_PROFILE={profile}: {error}") from error
    if found is None:
        if not os.environ.get("AWS_PROFILE"):
            return None
        raise DeniedError(f"AWS_PROFILE={profile}: holds no keys; run `aws configure`")
    return keys
