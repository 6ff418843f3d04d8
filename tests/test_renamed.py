"""Names that changed: refused with the new name where a user types them,
read silently where an older run wrote them.
"""

import pytest
import yaml

from cluster.calling import options_of
from cluster.errors import UserError, run_command
from cluster.renamed import OPTIONS, SETTINGS
from cluster.schemas import described
from cluster.settings import differences, load_settings, to_yaml
from finetune.settings import FinetuneSettings
from pretrain.settings import PretrainSettings

REQUIRED = {
    PretrainSettings: {"data.url": "shards", "out": "run"},
    FinetuneSettings: {"data.url": "shards", "out": "run", "encoder": "random", "validation_url": "shards"},
}
KEYS = {schema: {one.key for one in described(schema)} for schema in REQUIRED}
CASES = [
    (schema, old, new)
    for old, new in SETTINGS.items()
    for schema, keys in KEYS.items()
    if new in keys or new.rpartition(".")[0] in keys
]


def nested(values):
    tree = {}
    for key, value in values.items():
        *blocks, name = key.split(".")
        inner = tree
        for block in blocks:
            inner = inner.setdefault(block, {})
        inner[name] = value
    return tree


def test_every_old_name_is_one_that_no_schema_has_and_leads_to_one_that_some_schema_has():
    assert {old for _, old, _ in CASES} == set(SETTINGS)
    assert not set(SETTINGS) & set().union(*KEYS.values())


@pytest.mark.parametrize(("schema", "old", "new"), CASES)
def test_what_a_user_types_by_an_old_name_is_refused_with_the_new_one(schema, old, new, tmp_path):
    typed = [f"{key}={value}" for key, value in REQUIRED[schema].items()]
    said = f"the setting {old} is now called {new}$"
    with pytest.raises(UserError, match=f"^{old}=1: {said}"):
        load_settings(schema, None, [*typed, f"{old}=1"])
    block, _, name = old.rpartition(".")
    if block:
        with pytest.raises(UserError, match=said):
            load_settings(schema, None, [*typed, f"{block}={{{name}: 1}}"])
    with pytest.raises(UserError, match=said):
        load_settings(schema, None, typed, values={old: 1})
    with pytest.raises(UserError, match=said):
        load_settings(schema, None, typed, values=nested({old: 1}))
    config = tmp_path / "mine.yaml"
    for text in (f"{old}: 1\n", yaml.safe_dump(nested({old: 1}))):
        config.write_text(text)
        with pytest.raises(UserError, match=f"mine.yaml: {said}"):
            load_settings(schema, str(config), typed)


@pytest.mark.parametrize("schema", list(REQUIRED))
def test_what_a_run_wrote_by_old_names_is_read_by_the_new_ones(schema, tmp_path):
    names = [(old, new) for one, old, new in CASES if one is schema]
    written = tmp_path / "settings.yaml"
    written.write_text(yaml.safe_dump(nested({**REQUIRED[schema], **{old: 1 for old, _ in names}})))
    settings = load_settings(schema, str(written), [])
    assert settings == load_settings(
        schema, None, [], values={**REQUIRED[schema], **{new: 1 for _, new in names}}
    )
    # an unfinished run with the same values goes on, of one with others it is told by the names of today
    changed = dict(one.split(": ", 1) for one in differences(written.read_text(), settings, ignored=[]))
    assert not changed.keys() & ({old for old, _ in names} | {new for _, new in names})
    other = load_settings(schema, None, [], values=REQUIRED[schema])
    changed = dict(one.split(": ", 1) for one in differences(written.read_text(), other, ignored=[]))
    assert {new for _, new in names if changed.get(new, "").startswith("1 -> ")} == {new for _, new in names}
    assert not [old for old, _ in names if old.rpartition(".")[2] + ": 1" in to_yaml(settings)]


def test_old_options_are_refused_with_the_new_ones(capsys):
    from finetune.predicting import command
    from pretrain import embedding

    parsers = {"--crop-share": embedding.parser(), "--region-share": command.parser()}
    assert parsers.keys() == OPTIONS.keys()
    for old, parser in parsers.items():
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(["a", "b", "c", old, "0.5"])
        assert ended.value.code == 2
        assert f"{old} is now called {OPTIONS[old]}" in capsys.readouterr().err
        assert old not in parser.format_help()
        keyword, now = (name[2:].replace("-", "_") for name in (old, OPTIONS[old]))
        with pytest.raises(UserError, match=rf"^embed\(\): {keyword} is now called {now}$"):
            options_of("embed", parser, ["a", "b", "c"], {keyword: 0.5})
        assert getattr(options_of("embed", parser, ["a", "b", "c"], {now: 0.5}), now) == 0.5
        with pytest.raises(UserError) as refused:
            options_of("embed", parser, ["a", "b", "c"], {"nonsense": 1})
        assert keyword not in str(refused.value) and now in str(refused.value)


def test_an_old_value_of_an_option_is_refused_with_the_new_one(tmp_path, capsys):
    from pretrain.data.__main__ import main

    arguments = ["import", str(tmp_path), str(tmp_path / "out"), "--kind", "yolo", "--boxes", "shares"]
    assert run_command(lambda: main(arguments)) == 2
    assert "value of --boxes 'shares' is now called 'fractions'" in capsys.readouterr().err
