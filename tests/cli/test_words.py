"""Help, names and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace import __version__
from millrace.cli.main import COMMANDS, EXIT_CODES
from millrace.cli.settings import parse_value, sections
from millrace.config import SHORT_NAMES, Config, setting_names
from millrace.errors import ConfigError, MillraceError
from millrace.system import FileLock

from .conftest import TINY, Cli, in_new_process

BROKEN_ENV = """
import gymnasium as gym
from gymnasium import spaces

class Words(gym.Env):
    observation_space = spaces.Text(5)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "word", {}

class Failing(Words):
    observation_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        raise TypeError("no such thing as a game")
"""


def test_the_help_names_every_command_and_exit_code(cli: Cli) -> None:
    said = cli("--help")
    assert said.code == 0
    assert all(f"  {name}" in said.out and summary in said.out for name, summary in COMMANDS.items())
    assert all(f"  {code}" in said.out and meaning in said.out for code, meaning in EXIT_CODES.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(cli: Cli, name: str) -> None:
    said = cli(name, "--help")
    assert said.code == 0
    assert said.out.startswith(f"usage: millrace {name}")
    assert f"millrace {name}" in said.out.partition("examples:")[2]


def test_the_help_of_train_documents_every_setting(cli: Cli) -> None:
    words = " ".join(cli("train", "--help").out.split())
    for section in sections():
        for setting in section.settings:
            assert setting.meaning, f"{setting.name} has no docstring"
            assert all(f"{option} " in words or f"{option}," in words for option in setting.options)
            assert " ".join(setting.meaning.split()) in words


def test_every_setting_has_an_option_and_every_short_name_a_setting() -> None:
    documented = [setting.name for section in sections() for setting in section.settings]
    assert sorted(documented) == sorted(setting_names())
    assert set(SHORT_NAMES.values()) <= set(documented)


def test_the_version_is_printed(cli: Cli) -> None:
    assert cli("--version").out == f"millrace {__version__}\n"


def test_every_error_has_an_exit_code_that_the_help_explains() -> None:
    def codes(kind: type[MillraceError]) -> set[int]:
        return {kind.exit_code}.union(*(codes(sub) for sub in kind.__subclasses__()))

    assert codes(MillraceError) <= set(EXIT_CODES)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian", "CartPole-v1"], "did you mean train?"),
        (["train", "CartPole-v1", "--ppo.clp", "0.1"], "did you mean --ppo.clip?"),
        (["train", "--gamma", "0.9", "CartPole-v1"], "did you mean --ppo.gamma?"),
        (["train", "CartPole-v2"], "did you mean CartPole-v1?"),
        (["train", "realm-mni"], "did you mean the recipe realm-mini?"),
        (["train", "no_such_module:make"], "no module 'no_such_module'"),
        (["train", "CartPole-v1", "--ppo.clip", "much"], "ppo.clip='much' must be float"),
        (["train", "CartPole-v1", "--backend", "process"], "did you mean 'processes'?"),
        (["train", "CartPole-v1", "--env.kwargs", "size"], "write KEY=VALUE"),
        (["train"], "ENV"),
        (["train", "missing.toml"], "cannot read the settings file missing.toml"),
        (["eval", "--episodes", "0"], "must be 1 or more"),
        (["eval", "--parallel", "0"], "must be 1 or more"),
        (["eval", "one", "two", "--detail", "best"], "are for one run"),
        (["replay", "missing.json"], "cannot read missing.json"),
        (["bench", "scaling", "CartPole-v1", "--workers", "some"], "must be numbers"),
    ],
)
def test_a_wrong_word_costs_one_line_and_exit_code_2(cli: Cli, words: list[str], hint: str) -> None:
    said = cli(*words)
    assert said.code == 2
    assert said.err.startswith("millrace: ")
    assert said.err.count("\n") == 1
    assert hint in said.err


def test_a_wrong_key_in_a_file_names_the_file_and_the_nearest_key(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[ppo]\nepoch = 3\n")
    said = cli("train", "mine.toml")
    assert said.code == 2
    assert "mine.toml: there is no setting ppo.epoch; did you mean ppo.epochs?" in said.err


def test_an_environment_that_breaks_its_contract_is_exit_code_3(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "broken_game.py").write_text(BROKEN_ENV)
    said = cli("train", "broken_game:Words", *TINY)
    assert said.code == 3
    assert "which has no fixed array form" in said.err


@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1", "millrace/RealmMini-v0"])
def test_an_argument_that_the_environment_does_not_take_is_named(cli: Cli, env: str) -> None:
    said = cli("train", env, "--env.kwargs", "colour=red", *TINY)
    assert said.code == 3
    assert f"cannot make {env} with colour='red': " in said.err


def test_a_missing_run_is_exit_code_4(cli: Cli) -> None:
    assert cli("eval").code == 4
    said = cli("resume", "runs/nowhere")
    assert said.code == 4
    assert "does not exist" in said.err


def test_a_run_that_another_process_trains_is_exit_code_5(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = FileLock(tmp_path / "run" / "lock")
    lock.acquire()
    try:
        said = cli("train", "CartPole-v1", "--run-dir", "run", *TINY)
    finally:
        lock.release()
    assert said.code == 5
    assert "is being trained by process" in said.err


def test_a_missing_library_is_exit_code_6_and_names_the_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ale_py", None)
    said = cli("train", "ALE/Pong-v5")
    assert said.code == 6
    assert "pip install 'millrace[atari]'" in said.err


def test_an_unexpected_error_is_one_line_with_its_place_and_a_traceback_on_request(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_game.py").write_text(BROKEN_ENV)
    said = cli("train", "failing_game:Failing", *TINY)
    assert said.code == 1
    assert said.err.startswith("millrace: TypeError: no such thing as a game (failing_game.py, line ")
    assert said.err.count("\n") == 1
    monkeypatch.setenv("MILLRACE_DEBUG", "1")
    assert "Traceback (most recent call last)" in cli("train", "failing_game:Failing", *TINY).err


def test_what_needs_no_torch_does_not_import_it() -> None:
    commands = [["--help"], ["train", "--help"], ["envs"], ["config", "CartPole-v1"], ["check-env", "CartPole-v1"]]
    code = f"import sys; from millrace.cli.main import main; [main(words) for words in {commands}]"
    done = in_new_process(code + "; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_names_with_dashes_and_underscores_are_alike(cli: Cli) -> None:
    said = cli("config", "CartPole-v1", "--ppo.learning-rate=0.5", "--total_env_steps", "1e6", "--keep-auto")
    assert "\nlearning_rate = 0.5\n" in said.out
    assert "\ntotal_env_steps = 1000000\n" in said.out


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("net.hidden", "32,16", (32, 16)),
        ("net.hidden", "[32, 16]", (32, 16)),
        ("net.hidden", "", ()),
        ("env.wrappers", "a:B,c:D", ("a:B", "c:D")),
        ("env.kwargs", "map=random", {"map": "random"}),
        ("env.kwargs", "map=runs/a=b.json", {"map": "runs/a=b.json"}),
        ("env.kwargs", "a=1, b=[2.5]", {"a": 1, "b": [2.5]}),
        ("env.kwargs", '{reward = {scale = 0.1}, map = "random"}', {"reward": {"scale": 0.1}, "map": "random"}),
        ("stop.mean_return", "-110", -110.0),
        ("stop.mean_return", "none", None),
        ("net.shared", "true", True),
        ("device", "cpu", "cpu"),
    ],
)
def test_words_become_values_of_the_setting_s_type(name: str, word: str, value: object) -> None:
    hint = next(s.hint for section in sections() for s in section.settings if s.name == name)
    config = Config().replace({name: parse_value(hint, word, name)})
    for part in name.split("."):
        config = getattr(config, part)
    assert config == value


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="write KEY=VALUE"):
        parse_value(dict[str, object], "{a = }", "--env.kwargs")
