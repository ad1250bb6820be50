"""The options of `storage:` as a server sees them, and what a job file may not say."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bioembed_ray import storage
from bioembed_ray.config import StorageConfig, StoreConfig, mask_secrets
from bioembed_ray.errors import ConfigError, DeniedError, StorageError
from bioembed_ray.job_file import load_job, parse_job
from bioembed_ray.store import stores
from tests import tiny
from tests.commands import bioembed, complaint, embed, tiny_encoder, without_ray
from tests.flaky import Flaky, Request, flaky_proxy

ENCODERS = {"beats": {}}


def announce(**sides: StoreConfig) -> None:
    stores.announce(StorageConfig(**sides), "s3://private/out")


def header(request: Request, name: str) -> str | None:
    return next((v for k, v in request.headers.items() if k.lower() == name), None)


def test_each_side_of_a_job_has_its_own_options(
    s3: Any, flaky: Flaky, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    encoders = {"energy": tiny_encoder(tiny.torchscript(tmp_path / "energy.pt"))}
    for number in range(3):
        sink = io.BytesIO()
        sound = 0.1 * np.random.default_rng(number).standard_normal(32_000)
        soundfile.write(sink, sound, 16_000, format="WAV", subtype="FLOAT")
        s3.put(f"in/{number}.wav", sink.getvalue())
    with flaky_proxy(s3_endpoint) as public:
        # Somebody else's archive lies where the environment would not look for it.
        options = {
            "input": {"endpoint": public.url, "requester_pays": True},
            "output": {"region": "eu-north-1"},
        }
        result = embed(f"{s3.uri}/in", f"{s3.uri}/out", encoders, storage=options)
    assert result.exit_code == 0
    read, written = public.log, flaky.log
    key = f"/{s3.name}/in/"
    assert {one.method for one in read} <= {"GET", "HEAD"}
    assert sum(one.path.startswith(key) for one in read) >= 6  # headers, then sound, of each
    assert all(header(one, "x-amz-request-payer") == "requester" for one in read)
    assert any(one.method == "PUT" and "/out/embeddings/" in one.path for one in written)
    assert not any(one.path.startswith(key) for one in written)
    assert all(header(one, "x-amz-request-payer") is None for one in written)
    assert all("/eu-north-1/s3/" in (header(one, "authorization") or "") for one in written)
    # The record tells the options, and no secret.
    [record] = [s3.get(one).decode() for one in s3.listing() if "out/runs/" in one]
    assert json.loads(record)["job"]["storage"]["input"]["endpoint"] == public.url


def test_a_public_bucket_is_read_without_a_signature(s3: Any, flaky: Flaky) -> None:
    for key in ("in/a", "in/b"):
        s3.client.put_object(Bucket=s3.name, Key=key, Body=b"1", ACL="public-read")
    for is_anonymous in (True, False):
        announce(input=StoreConfig(anonymous=is_anonymous))
        flaky.log.clear()
        assert [one.key for one in storage.list_objects(f"{s3.uri}/in")] == ["a", "b"]
        assert storage.read(f"{s3.uri}/in/a") == b"1"
        assert storage.exists(f"{s3.uri}/in/b")
        assert len(flaky.log) == 3
        assert all((header(one, "authorization") is None) == is_anonymous for one in flaky.log)


def test_keys_of_an_aws_profile_sign_where_the_environment_has_none(
    s3: Any, flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.put("in/a", b"1")
    path = tmp_path / "credentials"
    path.write_text(
        "[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key = x\n"
        "[lab]\naws_access_key_id = AKIDLAB\naws_secret_access_key = y\naws_session_token = z\n"
        "[empty]\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def signed_by() -> tuple[str, str | None]:
        flaky.log.clear()
        assert storage.read(uri) == b"1"
        [one] = flaky.log
        text = (header(one, "authorization") or "").partition("Credential=")[2]
        return text.partition("/")[0], header(one, "x-amz-security-token")

    assert signed_by() == ("test", None)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert signed_by() == ("AKIDDEFAULT", None)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert signed_by() == ("AKIDLAB", "z")
    for profile in ("empty", "nobody"):
        monkeypatch.setenv("AWS_PROFILE", profile)
        with pytest.raises(DeniedError, match=f"AWS_PROFILE={profile}: "):
            storage.read(uri)


def test_a_request_takes_no_longer_and_is_sent_no_more_often_than_the_options_say(
    s3: Any, flaky: Flaky
) -> None:
    flaky.rates, flaky.hold_s = {"silent": 1.0}, 2.0
    for timeout_s, retries, retry_s, n_sent in (
        (0.2, 3, 60, 4),
        (0.2, 0, 60, 1),
        (0.2, 50, 0.1, 1),
    ):
        announce(input=StoreConfig(timeout_s=timeout_s, retries=retries, retry_s=retry_s))
        flaky.log.clear()
        with pytest.raises(StorageError, match="no answer from"):
            storage.read(f"{s3.uri}/a")
        assert len(flaky.log) == n_sent
    # As long as it takes, where there is patience.
    flaky.rates, flaky.hold_s = {"late": 1.0}, 0.5
    announce()
    with pytest.raises(StorageError):
        storage.read(f"{s3.uri}/a")


@pytest.mark.parametrize(("scheme", "path"), [("gs", "/lab/x%2Fa"), ("az", "/lab/x/a")])
def test_google_and_azure_are_reached_at_an_endpoint_without_credentials(
    flaky: Flaky, monkeypatch: pytest.MonkeyPatch, scheme: str, path: str
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    flaky.gone = "bucket"
    announce(input=StoreConfig(endpoint=flaky.url, anonymous=True, retries=0))
    with pytest.raises(StorageError):
        storage.read(f"{scheme}://lab/x/a")
    assert [one.path.partition("?")[0] for one in flaky.log][:1] == [path]
    assert header(flaky.log[0], "authorization") is None


def test_azure_signs_with_the_key_of_the_environment(
    flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    flaky.gone = "bucket"
    announce(input=StoreConfig(endpoint=flaky.url, retries=0))
    with pytest.raises(StorageError):
        storage.read("az://lab/x/a")
    assert (header(flaky.log[0], "authorization") or "").startswith("SharedKey account:")


REMOTE = {"input": {"uri": "s3://a/in"}, "output": "s3://b/out", "encoders": ENCODERS}
LOCAL = {"input": {"uri": "in"}, "output": "out", "encoders": ENCODERS}
WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (REMOTE, {"output": {"secret_access_key": "hunter2hunter2"}}, "storage.output.secret_access_key: a job file holds no secrets; set AWS_ACCESS_KEY_ID and"),
    (REMOTE, {"input": {"AWS_ACCESS_KEY_ID": "hunter2hunter2"}}, "storage.input.AWS_ACCESS_KEY_ID: a job file holds no secrets; "),
    (REMOTE, {"input": {"sas_token": "hunter2hunter2"}}, "storage.input.sas_token: a job file holds no secrets; "),
    (REMOTE, {"input": {"endpoint": "https://me:hunter2hunter2@minio.lab"}}, "storage.input.endpoint: a job file holds no secrets; "),
    (REMOTE, {"input": {"endpoint": "https://minio.lab?sig=hunter2hunter2"}}, "storage.input.endpoint: a job file holds no secrets; "),
    (REMOTE, {"input": {"endpoint": "minio.lab:9000"}}, "storage.input.endpoint: got 'minio.lab:9000'; use a URL such as http://minio.lab:9000"),
    (REMOTE, {"input": {"requester_pays": True, "anonymous": True}}, "storage.input.requester_pays: whoever pays signs with credentials; drop anonymous"),
    (REMOTE, {"input": {"timeout": 5}}, "storage.input.timeout: unknown key; did you mean 'timeout_s'?"),
    (REMOTE, {"inputs": {}}, "storage.inputs: unknown key; did you mean 'input'?"),
    (REMOTE, {"input": {"timeout_s": 0}}, "storage.input.timeout_s: got 0; input should be greater than 0"),
    (LOCAL, {"output": {"retries": 9}}, "storage.output: output is no object store (out); leave these options out"),
    ({**REMOTE, "input": {"uri": "gs://a/in"}}, {"input": {"requester_pays": True}}, "storage.input.requester_pays: only s3:// has it; leave it out"),
    ({**REMOTE, "output": "az://b/out"}, {"output": {"region": "x"}}, "storage.output.region: only s3:// has it; leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("job", "said", "text"), WRONG, ids=[text[:50] for *_, text in WRONG])
def test_what_is_wrong_with_the_options_is_one_line_without_the_secret(
    job: dict[str, Any], said: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_job({**job, "storage": said}, "job.yaml")
    assert str(caught.value).startswith(f"job.yaml: {text}")
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_secret_on_the_command_line_ends_it_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    job = tmp_path / "job.yaml"
    job.write_text("input: {uri: s3://a/in}\noutput: s3://b/out\nencoders: {beats: {}}\n")
    done = bioembed("plan", str(job), "--set", "storage.input.session_token=hunter2hunter2")
    assert done.returncode == 2
    assert "storage.input.session_token: a job file holds no secrets; " in complaint(done)
    assert "hunter2" not in done.stdout + done.stderr


def test_options_are_set_like_any_other_key() -> None:
    job = load_job(None, ("output=s3://b/o", "encoders={beats: }", "storage.output.retries=9"))
    assert job.storage.output.retries == 9
    assert job.storage.input.is_default


def test_a_shared_access_signature_is_masked_in_what_is_said() -> None:
    said = mask_secrets(
        "GET https://a.blob.core.windows.net/c/k?sv=2024&sig=hunter2%3D&se=1 failed"
    )
    assert said == "GET https://a.blob.core.windows.net/c/k?sv=2024&sig=***&se=1 failed"


def test_nothing_is_announced_for_a_job_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stores.OPTIONS_VARIABLE, "of an earlier job")
    stores.announce(StorageConfig(), "s3://b/o")
    assert stores.announced() == {}
