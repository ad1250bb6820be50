"""Job files: what they become, and the one line that each mistake gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bioembed_ray.config import LocalWeights, Pretrained, RandomWeights, exact, mask_secrets
from bioembed_ray.errors import ConfigError
from bioembed_ray.job_file import load_job, parse_job

GOOD = """
input: {uri: s3://archive/2024, include: ["**/*.wav"]}
output: s3://lab/reef
encoders:
  beats:
  hubert: {layer: [6, 9], weights: random}
  mine: {model: my.module:factory, weights: random:7, hop_s: 0.25}
"""


def write(folder: Path, text: str) -> str:
    (folder / "job.yaml").write_text(text)
    return str(folder / "job.yaml")


def line_of(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_job(raw, "job.yaml")
    text = str(caught.value)
    assert "\n" not in text
    return text


def job(**values: Any) -> dict[str, Any]:
    return {"output": "out", "encoders": {"beats": {}}, **values}


def encoder(**values: Any) -> dict[str, Any]:
    return job(encoders={"beats": values})


def test_a_good_file_becomes_a_job(tmp_path: Path) -> None:
    found = load_job(write(tmp_path, GOOD))
    assert found.input.uri == "s3://archive/2024"
    assert found.encoders["beats"].model == "esp_aves2_sl_beats_all"
    assert found.encoders["beats"].weights == Pretrained()
    assert found.encoders["hubert"].layers == (6, 9)
    assert found.encoders["hubert"].weights == RandomWeights(seed=0)
    assert found.encoders["mine"].weights == RandomWeights(seed=7)
    assert found.encoders["mine"].hop_s == 0.25
    assert (found.segment_s, found.max_failed_fraction) == (300, 0.01)


def test_later_settings_win_and_reach_deep(tmp_path: Path) -> None:
    overrides = (
        "encoders.beats.hop_s=0.25",
        "encoders.beats.hop_s=0.125",
        "encoders.hubert.layer=3",
        "input.channels=each",
        "pools.default.threads=2",
        "encoders.wav2vec2.weights=random",
    )
    found = load_job(write(tmp_path, GOOD), overrides, input={"uri": "/here"}, output=None)
    assert found.encoders["beats"].hop_s == 0.125
    assert found.encoders["hubert"].layers == (3,)
    assert (found.input.channels, found.input.uri) == ("each", "/here")
    assert found.input.include == ("**/*.wav",)
    assert found.pools["default"].threads == 2
    assert found.encoders["wav2vec2"].model == "facebook/wav2vec2-base"
    assert found.output == "s3://lab/reef"


def test_no_file_at_all_is_enough() -> None:
    found = load_job(None, (), input={"uri": "/a"}, output="/b", encoders={"ast": None})
    assert found.encoders["ast"].model == "MIT/ast-finetuned-audioset-10-10-0.4593"


def test_a_path_is_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse_job(encoder(weights="models/best.pt"), "x").encoders["beats"].weights
    assert found == LocalWeights(path=str(tmp_path / "models/best.pt"))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "output: is missing"),
    ({"output": "out"}, "encoders: is missing"),
    (
        job(encoders={}),
        "encoders: none given; name one of beats, efficientnet, wav2vec2, hubert, ast, vqvae",
    ),
    (job(encoder={}), "encoder: unknown key; did you mean 'encoders'?"),
    (
        job(zzz=1),
        "zzz: unknown key; known keys: input, output, storage, encoders, codebooks, pools, segment_s, shard_minutes, "
        "embedding_dtype, frame_dtype, max_failed_fraction, max_removed_fraction",
    ),
    (encoder(hopp_s=1), "encoders.beats.hopp_s: unknown key; did you mean 'hop_s'?"),
    (job(input={"url": "x"}), "input.url: unknown key; did you mean 'uri'?"),
    (
        job(pools={"default": {"gpu": 1}}),
        "pools.default.gpu: unknown key; did you mean 'gpus'?",
    ),
    (
        encoder(tail="fill"),
        'encoders.beats.tail: got \'fill\'; use "pad", "drop" or "shift"',
    ),
    (
        encoder(precision="fp16"),
        'encoders.beats.precision: got \'fp16\'; use "float32", "bfloat16" or "float16"',
    ),
    (
        job(input={"channels": "left"}),
        'input.channels: got \'left\'; use "mix", "first" or "each"',
    ),
    (
        job(encoders={"own": {}}),
        "encoders.own.model: is missing; only beats, efficientnet, wav2vec2, hubert, ast, vqvae bring one along",
    ),
    (job(encoders={"huberd": {}}), "encoders.huberd.model: is missing; did you mean 'hubert'?"),
    (job(pools=4), "pools: got 4; must hold keys such as default"),
    (job(pools={"default": 4}), "pools.default: got 4; must hold keys such as actors"),
    (encoder(hop_s=0), "encoders.beats.hop_s: got 0; input should be greater than 0"),
    (
        encoder(hop_s="fast"),
        "encoders.beats.hop_s: got 'fast'; input should be a valid number, unable to parse string "
        "as a number",
    ),
    (
        encoder(weights=5),
        'encoders.beats.weights: got 5; use "pretrained", "random", "random:SEED" or a path',
    ),
    (
        encoder(weights=""),
        'encoders.beats.weights: got \'\'; use "pretrained", "random", "random:SEED" or a path',
    ),
    (encoder(layer=[6, 6]), "encoders.beats.layer: name each layer once"),
    (encoder(layer=[]), "encoders.beats.layer: name each layer once"),
    (encoder(layer=-1), "encoders.beats.layer: use 0 or more; null is the model's own output"),
    (encoder(block_s=0), "encoders.beats.block_s: use whole seconds, 1 or more, or whole"),
    (encoder(pool="own"), "encoders.beats.pool: got 'own'; pools has only default"),
    (
        job(encoders={"a/b": {"model": "x"}}),
        "encoders.a/b: use letters, digits, '_', '-' and '.'",
    ),
    (job(segment_s=0), "segment_s: got 0; input should be greater than or equal to 1"),
    (
        job(segment_s=0.5),
        "segment_s: got 0.5; input should be a valid integer, got a number with a fractional part",
    ),
    (
        job(max_failed_fraction=2),
        "max_failed_fraction: got 2; input should be less than or equal to 1",
    ),
    (job(output=None), "output: got None; input should be a valid string"),
    (job(encoders=["beats"]), "encoders: got ['beats']; must hold keys such as beats"),
    (
        job(encoders={"beats": "yes"}),
        "encoders.beats: got 'yes'; must hold keys such as model",
    ),
    (job(pools={"default": {"actors": 0}}), "pools.default.actors: use 1 or more, or auto"),
    (
        job(input={"time_expansion": 2.5}),
        "input.time_expansion: got 2.5; input should be a valid integer, got a number with a "
        "fractional part",
    ),
    (job(input="s3://x"), "input: got 's3://x'; must hold keys such as uri"),
    (encoder(hop_s=float("inf")), "encoders.beats.hop_s: got inf; input should be a finite number"),
    (job(output=""), "output: got ''; string should have at least 1 character"),
    (
        job(input={"uri": ""}),
        "input.uri: got an empty text; use a folder, prefix, glob or file",
    ),
    (
        job(input={"uri": ["a", ""]}),
        "input.uri: got an empty text; use a folder, prefix, glob or file",
    ),
    (job(encoders={5: {"model": "x"}}), "encoders.5: keys are text; put this one in quotes"),
    (
        job(pools={"default": {True: 1}}),
        "pools.default.True: keys are text; put this one in quotes",
    ),
    ({**job(), None: 1}, "None: keys are text; put this one in quotes"),
    (
        encoder(weights={"kind": "foo"}),
        'encoders.beats.weights: got {\'kind\': \'foo\'}; use "pretrained", "random", "random:SEED" '
        "or a path",
    ),
]


@pytest.mark.parametrize(("raw", "text"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_each_mistake_is_one_line(raw: dict[str, Any], text: str) -> None:
    assert line_of(raw) == f"job.yaml: {text}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "{path}: must hold keys such as input, output and encoders"),
        ("just words", "{path}: must hold keys such as input, output and encoders"),
        ("", "{path}: must hold keys such as input, output and encoders"),
        ("output: [\nencoders: {", "{path}: line 2: not YAML: "),
        ("output: 'x\n", "{path}: line 2: not YAML: "),
        ("a: b: c", "{path}: line 1: not YAML: mapping values are not allowed here"),
        ("output: a\noutput: b\n", "{path}: line 1: not YAML: 'output' stands twice"),
        (
            "encoders:\n  beats: {hop_s: 1}\n  beats: {hop_s: 2}\n",
            "{path}: line 2: not YAML: 'beats' stands twice",
        ),
    ],
)
def test_what_is_not_a_job_file_is_said_to_be_so(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


def test_a_job_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    missing = str(tmp_path / "jib.yaml")
    with pytest.raises(ConfigError) as caught:
        load_job(missing)
    assert str(caught.value) == f"{missing}: no such job file; `bioembed init` writes one"
    (tmp_path / "audio.wav").write_bytes(b"RIFF\xff\xfe\x80")
    with pytest.raises(ConfigError, match=r"audio\.wav: cannot be read"):
        load_job(str(tmp_path / "audio.wav"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_job(str(tmp_path))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("output", "--set output: write key=value, e.g. encoders.beats.hop_s=0.25"),
        ("=5", "--set =5: write key=value, e.g. encoders.beats.hop_s=0.25"),
        ("output.x=5", "--set output.x: output holds a value, not keys"),
        ("encoders.beats.hop_s.x=5", "--set encoders.beats.hop_s.x: encoders.beats.hop_s holds a value, not keys"),
        ("input.include=[", "--set input.include: '[' is not a YAML value"),
        ("encoders.beats.tial=drop", "{path}: encoders.beats.tial: unknown key; did you mean 'tail'?"),
        ("encoders.beats.tail=cut", "{path}: encoders.beats.tail: got 'cut'; use \"pad\", \"drop\" or \"shift\""),
        ("..=5", "--set ..=5: write key=value, e.g. encoders.beats.hop_s=0.25"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_line(tmp_path: Path, override: str, text: str) -> None:
    path = write(tmp_path, "output: out\nencoders: {beats: {hop_s: 0.5}}\n")
    with pytest.raises(ConfigError) as caught:
        load_job(path, (override,))
    assert str(caught.value) == text.format(path=path)


def test_without_a_file_the_command_line_is_at_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(None, ("encoders.beats.window=1",), output="x")
    assert str(caught.value) == (
        "command line: encoders.beats.window: unknown key; did you mean 'window_s'?"
    )


def test_seconds_are_read_as_they_were_written() -> None:
    assert exact(0.1) * 10 == 1
    assert exact(1e-05) * 10**5 == 1


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("SOME_PATH", "/a/long/path")
    text = mask_secrets("s3://me:pw@bucket/a hf_abcdefgh /a/long/path")
    assert text == "s3://***@bucket/a *** /a/long/path"
