"""Bad input is refused in one sentence before anything is written."""

import pytest

import train
from tests.support.tiny_run import compose_settings, run_command


def test_existing_folder_is_not_overwritten(inputs, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(SystemExit):
        train.guarded_run(compose_settings([*inputs, f"output_dir={tmp_path / 'out'}"]))
    assert "overwrite=true" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.mark.processes
def test_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    """The real-world call of the README, without a network."""
    import urllib.request

    try:
        urllib.request.urlopen("https://huggingface.co", timeout=3).close()
        pytest.skip("the hub can be reached")
    except OSError:
        pass
    call = ["model=bert-base", "data=glue", "data.name=sst2", "objective.num_heads=36", "output_dir=out"]
    process = run_command(call, cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.startswith("error: Cannot load the model 'google-bert/bert-base-uncased'")
    assert not (tmp_path / "out").exists()
